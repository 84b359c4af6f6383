"""ONNX files answer as the predictor does, for every architecture, and say so where they cannot be made."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from pyserve import models
from pyserve.data.transforms import normalize
from pyserve.errors import CancelledError, DataLossError, FailedPreconditionError, InternalError
from pyserve.inference import onnx_export
from pyserve.inference.bundle import load_bundle, save_bundle
from pyserve.inference.description import (
    DESCRIPTION_FILE,
    GOLDEN_FILE,
    Preprocessing,
    read_description,
)
from pyserve.inference.onnx_export import export_onnx
from pyserve.inference.onnx_writer import write_onnx
from pyserve.inference.predictor import Predictor

LABELS = ("cat", "dog", "Käfer", "d, 'e'")
NAME = "models/m/versions/3"
TEMPERATURE = 1.7
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
# Larger than its own size for a network whose pooling then has to be more than an average of all.
SIDES = {"smallnet": 24, "resnet20": 33, "resnet56": 32, "vgg16": 96, "vgg16_bn": 64}


def bundle(folder: Path, architecture: str) -> Path:
    """A bundle with random weights whose answers differ from picture to picture."""
    side = SIDES.get(architecture, 64)
    torch.manual_seed(1)
    network = models.create_model(architecture, len(LABELS))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    head = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():  # as after a training: statistics of what comes in, answers that differ
        network(normalize(pictures(8, side), MEAN, STD))
        logits = network.eval()(normalize(pictures(8, side), MEAN, STD))
        scale = logits.std(dim=0).mean()
        head.weight.div_(scale)
        head.bias.sub_(logits.mean(dim=0)).div_(scale)
    save_bundle(
        folder,
        network,
        architecture=architecture,
        labels=LABELS,
        preprocessing=Preprocessing(image_size=side, presize=side + 4, mean=MEAN, std=STD),
        golden_inputs=(pictures(2, side + 4) * 255).to(torch.uint8),
    )
    change(folder, temperature=TEMPERATURE)
    return folder


def pictures(count: int, side: int) -> torch.Tensor:
    """Noise of a brightness and a colour for each picture, float32 [count, 3, side, side] in 0…1."""
    return torch.rand(count, 3, 1, 1) * torch.rand(count, 3, side, side)


def change(folder: Path, **fields: Any) -> None:
    description = read_description(folder, NAME).model_copy(update=fields)
    (folder / DESCRIPTION_FILE).write_text(description.model_dump_json())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(tmp_path_factory.mktemp("small"), "smallnet")


@pytest.mark.parametrize("architecture", sorted(models.architectures()))
def test_onnx_runtime_answers_as_the_predictor(architecture: str, tmp_path: Path) -> None:
    folder = bundle(tmp_path, architecture)
    write_onnx(folder, tmp_path / "model.onnx", NAME)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    predictor = Predictor(load_bundle(folder))
    side = SIDES.get(architecture, 64)
    torch.manual_seed(2)
    for batch in (1, 2, 3, 8):
        images = pictures(batch, side).numpy()
        [found] = session.run(["probabilities"], {"images": images})
        expected = predictor.probabilities(torch.from_numpy(predictor.check_tensor(images)))
        assert found.shape == (batch, len(LABELS))
        assert (np.abs(found - expected) <= 1e-4).all()
    assert expected.std(axis=0).max() > 0.02  # else any answer would have done


def test_the_file_tells_of_its_model_and_of_no_path(small: Path, tmp_path: Path) -> None:
    export_onnx(small, tmp_path / "model.onnx", name=NAME)
    model = onnx.load(tmp_path / "model.onnx")
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["labels"]) == list(LABELS)
    assert (told["name"], told["architecture"], told["image_size"]) == (NAME, "smallnet", "24")
    assert float(told["temperature"]) == TEMPERATURE
    data = (tmp_path / "model.onnx").read_bytes()
    assert b"smallnet" in data
    assert not any(text in data for text in (b"site-packages", b"smallnet.py", b"/pyserve/"))
    [images], [probabilities] = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (images, probabilities)]
    assert (images.name, probabilities.name) == ("images", "probabilities")
    assert shapes == [["batch", 3, 24, 24], ["batch", 4]]


def test_a_missing_package_is_named(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(FailedPreconditionError) as info:
        export_onnx(small, tmp_path / "model.onnx", name=NAME)
    assert info.value.message == (
        "exporting as ONNX takes onnxscript, which the server lacks: pip install 'pyserve[onnx]' there"
    )


def test_a_damaged_bundle_is_told(tmp_path: Path) -> None:
    folder = bundle(tmp_path, "smallnet")
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x55")
    with pytest.raises(DataLossError, match=f"{NAME}: model.safetensors is damaged: its checksum"):
        export_onnx(folder, tmp_path / "model.onnx", name=NAME)


def test_golden_answers_that_do_not_come_out_are_told(tmp_path: Path) -> None:
    folder = bundle(tmp_path, "smallnet")
    golden = load_file(folder / GOLDEN_FILE)
    save_file(golden | {"logits": golden["logits"] + torch.tensor([1.0, 0, 0, 0])}, folder / GOLDEN_FILE)
    with pytest.raises(DataLossError, match=f"{NAME}: as ONNX it answers its golden pictures otherwise, by 0"):
        export_onnx(folder, tmp_path / "model.onnx", name=NAME)


def test_work_that_nobody_waits_for_ends(small: Path, tmp_path: Path) -> None:
    asked: list[None] = []
    with pytest.raises(CancelledError, match=f"{NAME}: nobody waits for its ONNX file any more"):
        export_onnx(small, tmp_path / "model.onnx", name=NAME, should_stop=lambda: not asked.append(None))
    assert len(asked) == 1
    assert not (tmp_path / "model.onnx").exists()


def test_a_process_that_fails_is_told_without_its_details(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InternalError, match=f"{NAME} cannot be exported as ONNX; the server's log tells more"):
        export_onnx(small, tmp_path / "model.onnx", name=NAME)
    assert f"exporting {NAME} as ONNX ended with status 1" in caplog.text
    monkeypatch.setattr(sys, "executable", str(tmp_path / "killed"))
    (tmp_path / "killed").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "killed").chmod(0o755)
    with pytest.raises(onnx_export.ResourceExhaustedError, match="for want of memory most likely"):
        export_onnx(small, tmp_path / "model.onnx", name=NAME)
