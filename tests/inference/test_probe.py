"""Probes: the outputs they keep are those of the network, whatever comes after them, from many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from pyserve import kernels
from pyserve.errors import InvalidArgumentError
from pyserve.inference.bundle import load_bundle
from pyserve.inference.description import Preprocessing
from pyserve.inference.probe import Probe
from tests.inference.test_bundle import golden, saved
from tests.models.support import model_with_statistics, pictures

SIDE = 32
PREPROCESSING = Preprocessing(image_size=SIDE, presize=SIDE, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
NETWORKS = ("smallnet", "resnet20", "resnet18", "mobilenet_v2")


def probe(name: str) -> Probe:
    return Probe(model_with_statistics(name), PREPROCESSING)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_before_anything_works_in_place(name: str) -> None:
    """Each BatchNorm's output, made from its input by hand; in the plain network the ReLU after it spoils it."""
    opened = probe(name)
    norms = {n: m for n, m in opened.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    before = {
        n: list(opened.model.named_modules())[i - 1][0] for i, (n, _) in enumerate(opened.model.named_modules())
    }
    chosen = [n for n in norms if before[n] in {x.name for x in opened.layers}][:3]
    with torch.no_grad():
        outputs, _ = opened.run(pictures(2, 3, SIDE, SIDE), [*chosen, *(before[n] for n in chosen)])
        for n in chosen:
            expected = norms[n](outputs[before[n]])
            assert (outputs[n] - expected).abs().max() <= 1e-5 * expected.abs().max()
            assert outputs[n].min() < 0


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_features_are_the_networks(name: str) -> None:
    plain, opened = model_with_statistics(name), probe(name)
    x = pictures(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        expected = plain(x)
        assert (opened.logits(x) - expected).abs().max() < 1e-3 * expected.abs().max()
        features = opened.features(x)
        assert features.shape == (2, opened.head_module.in_features)
        assert (opened.head_module(features) - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_tell_their_sizes(name: str) -> None:
    opened = probe(name)
    names = [layer.name for layer in opened.layers]
    assert len(set(names)) == len(names)
    with torch.no_grad():
        outputs, _ = opened.run(pictures(1, 3, SIDE, SIDE), names)
    for layer in opened.layers:
        assert outputs[layer.name].shape == (1, layer.channels, layer.height, layer.width)
    assert opened.first_convolution in names


def test_the_last_layer_still_tells_places_apart() -> None:
    assert probe("resnet20").last_layer.name == "layer3"
    assert probe("smallnet").last_layer.name == "stage3"
    assert probe("resnet18").last_layer.name == "layer3"  # 32 pixels leave layer4 a single position
    assert probe("vgg16_bn").last_layer.name == "features.40"  # as they do features, after the last pooling


def test_an_unknown_layer_names_those_there_are() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"layer: got 'conv9', expected one of stem\.0, stem\.1, .* in all"
    ):
        probe("smallnet").run(pictures(1, 3, SIDE, SIDE), ["conv9"])


def test_a_pass_ends_where_all_is_had() -> None:
    opened = probe("smallnet")
    ran: list[str] = []
    for name, module in opened.model.named_children():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    opened.run(pictures(1, 3, SIDE, SIDE), ["stage1.0"])
    assert ran == ["stem"]
    _, logits = opened.run(pictures(1, 3, SIDE, SIDE), ["stage1.0"], to_end=True)
    assert logits is not None
    assert ran[-1] == "fc"


def test_gradients_reach_the_picture_through_our_kernels() -> None:
    opened, plain = probe("smallnet"), model_with_statistics("smallnet")
    x = pictures(1, 3, SIDE, SIDE).requires_grad_()
    before = sum(n for name, n in kernels.info().calls.items() if name.startswith("conv2d_") and "dgrad" in name)
    _, logits = opened.run(x, [], to_end=True)
    assert logits is not None
    (got,) = torch.autograd.grad(logits[0, 1], x)
    (expected,) = torch.autograd.grad(plain(x)[0, 1], x)
    assert (got - expected).abs().max() < 1e-3 * expected.abs().max()
    after = sum(n for name, n in kernels.info().calls.items() if name.startswith("conv2d_") and "dgrad" in name)
    assert after > before


def test_threads_do_not_see_each_others_outputs() -> None:
    opened = probe("smallnet")
    inputs = [pictures(1, 3, SIDE, SIDE, seed=seed) for seed in range(12)]

    def ask(i: int) -> torch.Tensor:
        with torch.no_grad():
            return opened.run(inputs[i], ["stage2"])[0]["stage2"] if i % 2 else opened.features(inputs[i])

    alone = [ask(i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, list(range(12)) * 3))
    assert all(torch.equal(got, alone[i % 12]) for i, got in enumerate(together))


def test_the_probe_of_a_bundle_answers_like_it(tmp_path: Path) -> None:
    saved(tmp_path)
    bundle = load_bundle(tmp_path)
    opened = Probe.load(tmp_path)
    with torch.inference_mode():
        expected = bundle.model(bundle.prepare(golden()))
    assert (opened.logits(opened.prepare(golden())) - expected).abs().max() < 1e-4
