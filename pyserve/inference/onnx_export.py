"""A bundle as one ONNX file, made in a process of its own: that takes seconds of a core and a gigabyte of memory.

The process is a fresh interpreter that runs `onnx_writer` and stands back for everybody else, so that predictions
go on; what it took goes back when it ends. Nothing here loads torch.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pyserve.errors import (
    CancelledError,
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
    error_class,
)

log = logging.getLogger(__name__)

NEEDS = ("onnx", "onnxscript", "onnxruntime")
_LOOK_S = 0.1  # between two looks at whether the file is still wanted


def export_onnx(folder: Path, target: Path, *, name: str, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Write the bundle in `folder` as an ONNX file that answers as its predictor does.

    Its input "images" is float32 [batch, 3, S, S] in 0…1 as `Predictor.check_tensor` takes it, not normalised, S
    the model's image size, any batch ≥ 1; its output "probabilities" is float32 [batch, classes], with the model's
    temperature. Labels, architecture and the rest are in the file's metadata (see `onnx_writer`).

    Args:
        folder: of the bundle.
        target: the file; its folder exists.
        name: what errors call the model, and the file's metadata.
        should_stop: asked now and then; where it says so, the work ends.

    Raises:
        FailedPreconditionError: packages that this takes are not installed; says what to install.
        DataLossError: the bundle is damaged, or ONNX Runtime does not give the golden answers.
        ResourceExhaustedError: the disk is full, or the system killed the process, for memory most likely.
        CancelledError: `should_stop` said so.
        InternalError: anything else; the log has the details.
    """
    check_installed()
    order = json.dumps({"folder": str(folder), "target": str(target), "name": name})
    command = [sys.executable, "-m", "pyserve.inference.onnx_writer", order]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while True:
            try:
                told, details = process.communicate(timeout=_LOOK_S)
            except subprocess.TimeoutExpired:
                if should_stop():
                    process.kill()
                    raise CancelledError(f"{name}: nobody waits for its ONNX file any more") from None
            else:
                break
    if process.returncode:
        raise _fault(name, process.returncode, told, details)


def check_installed() -> None:
    """Refuse where a package is missing.

    Raises:
        FailedPreconditionError: names all that are.
    """
    missing = [package for package in NEEDS if importlib.util.find_spec(package) is None]
    if missing:
        raise FailedPreconditionError(
            f"exporting as ONNX takes {', '.join(missing)}, which the server lacks: "
            "pip install 'pyserve[onnx]' there",
            metadata={"extra": "onnx"},
        )


def _fault(name: str, status: int, told: str, details: str) -> Exception:
    """The error of a process that failed."""
    try:
        fault = json.loads(told)
        return error_class(fault["status"])(fault["message"])
    except (ValueError, KeyError):
        log.error("exporting %s as ONNX ended with status %d: %s", name, status, details.strip())
    if status == -signal.SIGKILL:
        return ResourceExhaustedError(f"{name}: the system ended its export, for want of memory most likely")
    return InternalError(f"{name} cannot be exported as ONNX; the server's log tells more")
