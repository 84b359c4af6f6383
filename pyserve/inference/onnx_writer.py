"""Writes a bundle as an ONNX file: `python -m pyserve.inference.onnx_writer ORDER`, started by `onnx_export`.

PyTorch's exporter makes the graph. Normalisation, temperature and softmax are in it, so that the file answers as
the predictor does. ONNX Runtime is asked about the golden pictures before anybody gets it.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from safetensors.torch import load_file
from torch import nn

from pyserve.data.transforms import evaluation_view
from pyserve.errors import DataLossError, PyserveError, ResourceExhaustedError, is_disk_full, status_name
from pyserve.inference.bundle import load_plain
from pyserve.inference.description import GOLDEN_FILE, Description

INPUT, OUTPUT = "images", "probabilities"
OPSET = 18  # of 2022: every ONNX Runtime since 1.14 reads it
# Largest difference of a golden picture's probability: float32 added up in another order.
TOLERANCE = 1e-4


class Answering(nn.Module):
    """A plain model with what the predictor does around it: [N, 3, S, S] in 0…1 to probabilities [N, classes]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, description: Description) -> None:
        super().__init__()
        preprocessing = description.preprocessing
        self.network = network
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1))
        self.temperature = description.temperature

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities."""
        logits: torch.Tensor = self.network((images - self.mean) / self.std)
        return (logits / self.temperature).softmax(dim=1)


def write_onnx(folder: Path, target: Path, name: str) -> None:
    """See `onnx_export.export_onnx`.

    Raises:
        DataLossError, FailedPreconditionError: see `load_plain`; or ONNX Runtime does not give the golden answers.
        OSError: the file cannot be written.
    """
    network, description = load_plain(folder, name=name)
    model = _exported(Answering(network, description).eval(), description)
    _strip(model)
    onnx.helper.set_model_props(model, metadata(description, name))
    model.doc_string = f"{description.architecture} of {len(description.labels)} classes, by pyserve"
    onnx.checker.check_model(model)
    onnx.save(model, target)
    _replay(folder, target, description, name)


def metadata(description: Description, name: str) -> dict[str, str]:
    """What an ONNX file tells of its model, beside the graph."""
    return {
        "name": name,
        "labels": json.dumps(description.labels, ensure_ascii=False),  # in the order of the output
        "architecture": description.architecture,
        "image_size": str(description.preprocessing.image_size),
        "presize": str(description.preprocessing.presize),  # short side before the central square is cut, pixels
        "temperature": repr(description.temperature),
        "pyserve_version": version("pyserve"),
    }


def _exported(model: Answering, description: Description) -> Any:
    """The `onnx.ModelProto`."""
    side = description.preprocessing.image_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 3, side, side),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # noqa: S101  only without dynamo
    return program.model_proto


def _strip(model: Any) -> None:
    """Take out where the exporter found each node: lines and paths of this machine."""
    graph = model.graph
    for items in ([graph], graph.node, graph.initializer, graph.value_info, graph.input, graph.output):
        _clear(items)


def _clear(items: Iterable[Any]) -> None:
    for item in items:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def _replay(folder: Path, target: Path, description: Description, name: str) -> None:
    golden = load_file(folder / GOLDEN_FILE)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])
    images = evaluation_view(golden["inputs"], description.preprocessing.image_size)
    [found] = session.run([OUTPUT], {INPUT: images.numpy()})
    expected = (golden["logits"] / description.temperature).softmax(dim=1)
    difference = float((torch.from_numpy(found) - expected).abs().max())
    if not difference <= TOLERANCE:  # also where it is NaN
        raise DataLossError(
            f"{name}: as ONNX it answers its golden pictures otherwise, by {difference:.2g}, "
            f"expected at most {TOLERANCE:g}"
        )


def main(argv: Sequence[str]) -> int:
    """Do what the order says; an error of ours goes to standard output as JSON."""
    os.nice(19)
    torch.set_num_threads(1)
    pipe = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no message
    order = json.loads(argv[0])
    try:
        write_onnx(Path(order["folder"]), Path(order["target"]), order["name"])
    except Exception as error:
        told = _ours(error)
        if told is None:
            raise
        os.write(pipe, json.dumps({"status": status_name(told), "message": told.message}).encode())
        return 1
    return 0


def _ours(error: Exception) -> PyserveError | None:
    if is_disk_full(error):
        return ResourceExhaustedError("the server's disk has no room for the ONNX file")
    return error if isinstance(error, PyserveError) else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
