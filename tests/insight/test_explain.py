"""Grad-CAM, occlusion and deconvnet on networks whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyserve.errors import CancelledError, FailedPreconditionError, InvalidArgumentError
from pyserve.insight.explain import EXPLANATIONS, Question, explain
from tests.insight.networks import SIDE, batch, planted, registered, stripe
from tests.models.support import pictures


@pytest.mark.parametrize("method", EXPLANATIONS)
@pytest.mark.parametrize("name", ["smallnet", "resnet20", "resnet18", "mobilenet_v2"])
def test_every_way_explains_every_kind_of_network(method: str, name: str) -> None:
    probe = registered(name)
    picture = (pictures(1, 3, 32, 32).sigmoid() * 255).byte()
    found = explain(probe, picture, method, Question(stride=8))
    assert found.picture.shape == (32, 32, 3)
    assert found.layer == probe.last_layer.name
    assert 0 < found.probability <= 1
    assert all(values.dtype == np.float32 and np.isfinite(values).all() for values in found.maps.values())
    if method == "deconvnet":
        assert found.maps["projection"].shape == (3, 32, 32)
        assert np.abs(found.maps["projection"]).max() > 0


def test_grad_cam_lights_up_where_the_class_is() -> None:
    """Class 0 is bright columns: the map is the feature map of those, and nothing else speaks for it."""
    probe = planted()
    found = explain(probe, batch(stripe(column=4, row=11)), "grad_cam", Question(label=0, layer="relu"))
    cam = found.maps["grad_cam"]
    assert cam.shape == (SIDE, SIDE)
    assert cam.max() == 1
    lit = cam > 0
    assert lit[:, 4].sum() >= SIDE - 3
    lit[:, 4] = False
    assert not lit.any()
    rows = explain(probe, batch(stripe(column=4, row=11)), "grad_cam", Question(label=1, layer="relu"))
    assert (rows.maps["grad_cam"][11] > 0).sum() >= SIDE - 3


def test_grad_cam_by_its_formula() -> None:
    probe = registered("smallnet")
    picture = (pictures(1, 3, 32, 32).sigmoid() * 255).byte()
    found = explain(probe, picture, "grad_cam", Question(label=2, layer="stage2"))
    x = probe.prepare(picture)
    features = probe.model.stage2(probe.model.stage1(probe.model.stem(x))).detach().requires_grad_()
    logit = probe.model.fc(probe.model.pool(probe.model.stage3(features)).flatten(1))[0, 2]
    (gradient,) = torch.autograd.grad(logit, features)
    expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1)[0].relu()
    assert found.maps["grad_cam"] == pytest.approx((expected / expected.max()).detach().numpy(), abs=1e-4)


def test_where_nothing_speaks_for_the_class_the_map_is_empty() -> None:
    found = explain(planted(), batch(np.zeros((SIDE, SIDE, 3), np.uint8)), "grad_cam", Question(layer="relu"))
    assert (found.maps["grad_cam"] == 0).all()


def test_hiding_the_stripe_changes_the_answer() -> None:
    probe = planted()
    pixels = np.full((SIDE, SIDE, 3), 128, np.uint8)  # as grey as the square, which so has no edges of its own
    pixels[:, 3] = 255
    found = explain(probe, batch(pixels), "occlusion", Question(layer="relu", size=5, stride=4))
    assert found.label == 0
    probability, activation = found.maps["probability"], found.maps["activation"]
    assert probability.shape == activation.shape == found.maps["label"].shape == (4, 4)
    assert found.channel == 0
    assert found.square_size == 5
    # tiles of column 0 have centres at x = 2: the square covers columns 0 to 4, and with them the stripe
    assert (probability[:, 0] < found.probability - 0.01).all()
    assert (activation[:, 0] < 0.85).all()
    assert probability[:, 2:] == pytest.approx(found.probability, abs=0.02)
    assert activation[:, 3] == pytest.approx(1, abs=0.02)


def test_occlusion_by_hiding_by_hand() -> None:
    probe = registered("resnet20")
    picture = (pictures(1, 3, 32, 32).sigmoid() * 255).byte()
    found = explain(probe, picture, "occlusion", Question(label=1, size=10, stride=11))
    x = probe.prepare(picture)
    assert found.maps["probability"].shape == (3, 3)
    for row in range(3):
        for column in range(3):
            hidden = x.clone()
            top, left = (round(11 * i + 5.5 - 5) for i in (row, column))
            hidden[:, :, max(top, 0) : top + 10, max(left, 0) : left + 10] = 0
            expected = probe.logits(hidden).softmax(1)[0]
            assert found.maps["probability"][row, column] == pytest.approx(float(expected[1]), abs=1e-4)
            assert found.maps["label"][row, column] == int(expected.argmax())


def test_deconvnet_finds_the_strongest_place() -> None:
    found = explain(planted(), batch(stripe(column=9)), "deconvnet", Question(layer="relu"))
    assert found.channel == 0
    assert found.place is not None
    assert found.place[1] == 9
    energy = np.abs(found.maps["projection"]).sum(axis=(0, 1))
    assert set(np.flatnonzero(energy)) <= {8, 9, 10}
    red = explain(planted(), batch(stripe(row=2, colour=(255, 0, 0))), "deconvnet", Question(None, "relu", 2))
    assert red.channel == 2
    assert red.place is not None
    assert red.place[0] == 2


def test_bad_questions() -> None:
    probe = planted()
    picture = batch(stripe(column=3))

    def ask(method: str, **question: object) -> None:
        explain(probe, picture, method, Question(**question))  # type: ignore[arg-type]

    with pytest.raises(InvalidArgumentError, match="method: got 'why', expected one of grad_cam, occlusion"):
        ask("why")
    with pytest.raises(InvalidArgumentError, match="layer: got 'conv9', expected one of conv, relu, pool"):
        ask("grad_cam", layer="conv9")
    with pytest.raises(InvalidArgumentError, match="label: got 3, expected 0 to 2"):
        ask("grad_cam", label=3)
    with pytest.raises(InvalidArgumentError, match="channel: got 4, expected 0 to 3 of relu"):
        ask("deconvnet", layer="relu", channel=4)
    with pytest.raises(InvalidArgumentError, match="size: got 17, expected 1 to 16, the side of the picture"):
        ask("occlusion", layer="relu", size=17)
    with pytest.raises(InvalidArgumentError, match="stride: got 0, expected 1 to 16"):
        ask("occlusion", layer="relu", stride=0)
    with pytest.raises(FailedPreconditionError, match="layer pool has a single position for pictures of 16"):
        ask("grad_cam", layer="pool")
    with pytest.raises(CancelledError, match="stopped after 0 of 256 positions"):
        explain(probe, picture, "occlusion", Question(stride=1, layer="relu"), lambda: True)
