"""The rivals on the CPU: where they are installed, and one network in each of them as a function.

`enter()` starts the calling script again in a virtual environment that has ONNX Runtime and OpenVINO beside all
that this one has; it is made on first use, in PYSERVE_BENCHMARK_CACHE or ~/.cache/pyserve-benchmarks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import environments

REQUIREMENTS = ("onnx==1.23.2", "onnxscript==0.7.2", "onnxruntime==1.32.0", "openvino==2026.4.1")
PACKAGES = ["torch", "torchvision", "onnxruntime", "openvino"]  # whose versions a result tells
Predict = Callable[[Tensor], Tensor]


def enter() -> None:
    """Go on in the environment with the rivals."""
    environments.enter("cpu", REQUIREMENTS)


# ------------------------------------------------------------ a network in every rival


def predictors(model: nn.Module, x: Tensor, dtype: torch.dtype, names: list[str]) -> dict[str, Predict]:
    """The named rivals, ready for inputs like x: [N, 3, H, W] of `dtype`; the model is float32, in eval mode."""
    threads = torch.get_num_threads()
    made: dict[str, Callable[[], Predict]] = {
        "eager": lambda: _eager(model, dtype),
        "torch.compile": lambda: _compiled(model, dtype),
        "ONNX Runtime": lambda: _onnxruntime(model, x, threads),
        "OpenVINO": lambda: _openvino(model, x, dtype, threads),
    }
    return {name: made[name]() for name in names}


def _eager(model: nn.Module, dtype: torch.dtype) -> Predict:
    eager: Predict = model.to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return eager


def _compiled(model: nn.Module, dtype: torch.dtype) -> Predict:
    from torch._inductor import config

    config.freezing = True
    compiled: Predict = torch.compile(model.to(dtype, memory_format=torch.channels_last))  # type: ignore[call-overload]
    return compiled


def exported(model: nn.Module, x: Tensor, path: Path) -> None:
    """The model as an ONNX file for inputs like x."""
    torch.onnx.export(
        model.float(), (x.float().contiguous(),), path, dynamo=True, verbose=False, external_data=False
    )


def _onnxruntime(model: nn.Module, x: Tensor, threads: int) -> Predict:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        exported(model, x, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads == 1 else "1")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _openvino(model: nn.Module, x: Tensor, dtype: torch.dtype, threads: int) -> Predict:
    import openvino

    precision = "bf16" if dtype is torch.bfloat16 else "f32"
    hints: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        exported(model, x, path)
        request = openvino.compile_model(path, "CPU", hints).create_infer_request()

    def predict(x: Tensor) -> Tensor:
        request.infer([openvino.Tensor(x.numpy(), shared_memory=True)], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data)

    return predict
