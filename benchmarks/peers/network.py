"""The network that the peers serve: the same weights in PyTorch or ONNX Runtime, pictures prepared by torchvision.

Runs in the peers' own virtual environments; knows nothing of pyserve.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

try:
    import torchvision
except RuntimeError:  # its compiled operators are of another build of torch; none of them is needed here
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
    import torchvision
from torchvision.transforms import v2

CLASSES = 1000
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PREPARE = v2.Compose(
    [
        v2.Resize(256, antialias=True),
        v2.CenterCrop(224),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(_MEAN, _STD),
    ]
)

Network = Callable[[Sequence[bytes]], "np.ndarray"]


def load(backend: str, folder: Path, threads: int) -> Network:
    """A function from encoded pictures to probabilities, float32 [N, classes].

    Args:
        backend: "torch" or "onnxruntime".
        folder: with `model.safetensors` and `model.onnx`.
        threads: of a pass.
    """
    run = _torch(folder, threads) if backend == "torch" else _onnxruntime(folder, threads)

    def predict(pictures: Sequence[bytes]) -> np.ndarray:
        batch = torch.stack([_PREPARE(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures])
        logits = run(batch)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    return predict


def _torch(folder: Path, threads: int) -> Callable[[torch.Tensor], np.ndarray]:
    torch.set_num_threads(threads)
    model = torchvision.models.resnet18(num_classes=CLASSES)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model = model.eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(batch: torch.Tensor) -> np.ndarray:
        return model(batch.contiguous(memory_format=torch.channels_last)).numpy()

    return run


def _onnxruntime(folder: Path, threads: int) -> Callable[[torch.Tensor], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch.numpy()})[0]


def export(folder: Path) -> None:
    """Write `model.onnx` of `model.safetensors`, for batches of any size."""
    model = torchvision.models.resnet18(num_classes=CLASSES)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    batch = torch.export.Dim("batch", min=1, max=1024)
    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 3, 224, 224),),
        folder / "model.onnx",
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        external_data=False,
    )


if __name__ == "__main__":
    export(Path(sys.argv[1]))
