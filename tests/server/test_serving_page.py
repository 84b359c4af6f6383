"""The examples of docs/serving.md run as they stand there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyserve.client import Client
from pyserve.v1 import jobs_pb2
from tests.server.support import CLASSES, SIZE, Stubs, png


def example(word: str) -> str:
    """The Python of docs/serving.md that has a word in it."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()
    blocks = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    [found] = [block for block in blocks if word in block]
    return found


def test_a_triton_client(
    stubs: Stubs, trained: jobs_pb2.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(png(1, 3))
    printed: list[Any] = []
    program = example("tritonclient").replace("127.0.0.1:50051", stubs.address).replace('"pets"', '"colours"')
    exec(program, {"print": printed.append})  # noqa: S102  # our own page
    assert printed[0][0][0].decode().endswith(f":1:{CLASSES[1]}")


def test_onnx_runtime(
    stubs: Stubs, trained: jobs_pb2.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Client(stubs.address) as client:
        client.export_model(trained.train_result.model, "pets.onnx", format="onnx")
    found: dict[str, Any] = {}
    exec(example("onnxruntime").replace("224, 224", f"{SIZE}, {SIZE}"), found)  # noqa: S102  # our own page
    assert found["labels"] == list(CLASSES)
    np.testing.assert_allclose(found["probabilities"].sum(1), np.ones(4), rtol=1e-5)
