"""Bundles: what is saved is what is loaded, proved by golden pictures; damage is found and named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pyserve.data.transforms import evaluation_view, normalize
from pyserve.errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from pyserve.inference.bundle import Bundle, load_bundle, save_bundle
from pyserve.inference.description import DESCRIPTION_FILE, GOLDEN_FILE, WEIGHTS_FILE, Preprocessing
from pyserve.models import create_model

LABELS = ("blue", "green", "red")
PREPROCESSING = Preprocessing(image_size=16, presize=18, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def network(seed: int = 0) -> nn.Module:
    """A network whose BatchNorms have seen something."""
    torch.manual_seed(seed)
    model = create_model("smallnet", len(LABELS))
    model.train()
    with torch.no_grad():
        model(torch.randn(16, 3, 16, 16))
    return model


def golden(count: int = 4, side: int = 18) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def saved(folder: Path, model: nn.Module | None = None, **changes: Any) -> nn.Module:
    model = model or network()
    fields: dict[str, Any] = {
        "architecture": "smallnet",
        "labels": LABELS,
        "preprocessing": PREPROCESSING,
        "golden_inputs": golden(),
        "metrics": {"accuracy": 0.9, "loss": float("nan")},
        "provenance": {"job": "jobs/1"},
    }
    save_bundle(folder, model, **(fields | changes))
    return model


def test_a_loaded_bundle_answers_like_the_model(tmp_path: Path) -> None:
    model = saved(tmp_path).eval()
    bundle = load_bundle(tmp_path, name="models/pets/versions/1")
    pictures = golden(8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    crop = pictures[:, :, 1:17, 1:17].float() / 255  # the central 16 of 18
    with torch.inference_mode():
        expected = model((crop - mean) / std)
        got = bundle.model(bundle.prepare(pictures))
    assert (got - expected).abs().max() < 1e-4
    assert (bundle.name, bundle.labels) == ("models/pets/versions/1", LABELS)
    assert bundle.description.metrics == {"accuracy": 0.9}  # what is not finite is left out
    assert bundle.description.provenance == {"job": "jobs/1"}
    assert bundle.description.parameter_count == sum(p.numel() for p in model.parameters())
    assert not bundle.model.training


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    saved(tmp_path, model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("file", [WEIGHTS_FILE, GOLDEN_FILE])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_files_are_named(tmp_path: Path, file: str, damage: str) -> None:
    saved(tmp_path)
    path = tmp_path / file
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[-1] ^= 1
        path.write_bytes(data[:-2] if damage == "cut" else data)
    with pytest.raises(DataLossError, match=rf"^models/pets: {file} (is damaged|cannot be read)") as info:
        load_bundle(tmp_path, name="models/pets")
    assert str(tmp_path) not in info.value.message


def rewrite(folder: Path, file: str, tensors: dict[str, torch.Tensor]) -> None:
    """Another file, and the checksum that goes with it."""
    from hashlib import sha256

    save_file(tensors, folder / file)
    data = (folder / file).read_bytes()
    description = json.loads((folder / DESCRIPTION_FILE).read_text())
    description["files"][file] = {"size_bytes": len(data), "sha256": sha256(data).hexdigest()}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description))


def test_weights_that_answer_otherwise_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    state = load_file(tmp_path / WEIGHTS_FILE)
    name = next(n for n, v in state.items() if v.dim() == 2)  # of the head: a BatchNorm would undo a factor
    state[name] = state[name] * 2
    rewrite(tmp_path, WEIGHTS_FILE, state)
    with pytest.raises(DataLossError, match="answers to its golden pictures differ by"):
        load_bundle(tmp_path)


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    state = load_file(tmp_path / WEIGHTS_FILE)
    name = next(n for n, v in state.items() if v.dim() == 4)
    state[name][0] = float("nan")
    rewrite(tmp_path, WEIGHTS_FILE, state)
    with pytest.raises(DataLossError, match="differ by nan"):
        load_bundle(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    state = load_file(tmp_path / WEIGHTS_FILE)
    del state[next(n for n, v in state.items() if v.dim() == 4)]
    rewrite(tmp_path, WEIGHTS_FILE, state)
    with pytest.raises(DataLossError, match=r"model\.safetensors does not fit smallnet: .*Missing key"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"inputs": golden()},
        {"inputs": golden(side=20), "logits": torch.zeros(4, 3)},
        {"inputs": golden().float(), "logits": torch.zeros(4, 3)},
        {"inputs": golden(), "logits": torch.zeros(4, 2)},
        {"inputs": golden()[:0], "logits": torch.zeros(0, 3)},
    ],
)
def test_golden_files_of_another_form(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    saved(tmp_path)
    rewrite(tmp_path, GOLDEN_FILE, {name: value.contiguous() for name, value in tensors.items()})
    with pytest.raises(DataLossError, match="does not hold golden pictures of this model"):
        load_bundle(tmp_path)


def test_unknown_architecture(tmp_path: Path) -> None:
    saved(tmp_path)
    description = json.loads((tmp_path / DESCRIPTION_FILE).read_text())
    description["architecture"] = "network-of-tomorrow"
    (tmp_path / DESCRIPTION_FILE).write_text(json.dumps(description))
    with pytest.raises(FailedPreconditionError, match="'network-of-tomorrow', expected one of"):
        load_bundle(tmp_path, name="models/pets")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"golden_inputs": golden()[:0]}, r"golden_inputs: got 'uint8 \[0, 3, 18, 18\]'"),
        ({"golden_inputs": golden(side=17)}, r"golden_inputs: got 'uint8 \[4, 3, 17, 17\]'"),
        ({"golden_inputs": golden().float()}, r"golden_inputs: got 'float32"),
        ({"labels": LABELS[:2]}, "labels: got '2 labels', expected 3"),
    ],
)
def test_what_cannot_be_saved(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        saved(tmp_path, **changes)


def test_a_model_that_answers_nan_is_not_saved(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        next(model.parameters()).fill_(float("inf"))
    with pytest.raises(InvalidArgumentError, match="not finite"):
        saved(tmp_path, model)
    assert not (tmp_path / DESCRIPTION_FILE).exists()


def test_loading_disturbs_nobodys_random_numbers(tmp_path: Path) -> None:
    saved(tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_bundle(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_the_input_is_normalised_as_in_training(tmp_path: Path) -> None:
    saved(tmp_path)
    view = evaluation_view(golden(5), 16)
    expected = normalize(view, PREPROCESSING.mean, PREPROCESSING.std)
    got = load_bundle(tmp_path).normalize(view)
    assert torch.equal(got, expected)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert load_bundle(tmp_path, dtype=torch.bfloat16).normalize(view).dtype == torch.bfloat16


def seeing(folder: Path, dtype: torch.dtype, image_size: int) -> Bundle:
    """A bundle whose pictures have ImageNet's statistics; its network does not matter."""
    saved(folder)
    statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    changed = PREPROCESSING.model_copy(update=statistics | {"image_size": image_size, "presize": 256})
    return dataclasses.replace(load_bundle(folder, dtype=dtype), preprocessing=changed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "side"), [(224, 256), (224, 224), (1, 4), (17, 20), (33, 64)])
def test_pictures_in_one_pass_are_those_of_training_to_the_bit(
    tmp_path: Path, dtype: torch.dtype, size: int, side: int
) -> None:
    bundle = seeing(tmp_path, dtype, size)
    for count in (0, 1, 3):
        batch = golden(count, side)
        view = evaluation_view(batch, size)
        trained = normalize(view, bundle.preprocessing.mean, bundle.preprocessing.std)
        for laid_out in (batch, batch.contiguous(memory_format=torch.channels_last)):
            got = bundle.prepare(laid_out)
            assert torch.equal(got, bundle.normalize(view))
            assert torch.equal(got, trained.to(dtype))
            assert got.dtype is dtype
            assert got.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(bundle.prepare(batch.float() / 255), got)


def test_pictures_that_cannot_be_prepared_are_named(tmp_path: Path) -> None:
    bundle = seeing(tmp_path, torch.float32, 16)
    with pytest.raises(
        InvalidArgumentError, match=r"images: got \[4, 3, 15, 15\], expected pictures of at least 16"
    ):
        bundle.prepare(golden(4, 15))
    with pytest.raises(InvalidArgumentError, match=r"pixels is \[4, 1, 16, 16\], expected \[N, 3, H, W\]"):
        bundle.prepare(golden(4, 18)[:, :1])


@pytest.mark.parametrize("architecture", ["smallnet", "resnet20", "mobilenet_v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_is_the_stored_one(tmp_path: Path, architecture: str, dtype: torch.dtype) -> None:
    model = saved(
        tmp_path,
        create_model(architecture, len(LABELS)),
        architecture=architecture,
        preprocessing=PREPROCESSING.model_copy(update={"image_size": 32, "presize": 32}),
        golden_inputs=golden(side=32),
    )
    bundle = load_bundle(tmp_path, dtype=dtype)
    expected, got = model.state_dict(), bundle.model.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name].to(got[name].dtype), got[name]) for name in expected)
    assert {t.dtype for t in bundle.model.parameters()} == {dtype}
    assert bundle.memory_bytes >= sum(p.numel() * dtype.itemsize for p in model.parameters())
