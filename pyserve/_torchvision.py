"""Import torchvision beside any torch build.

torchvision's wheels are compiled against one torch build. Beside another one (a CPU build of torch, say) its
compiled operators do not load, and its import then fails while it registers fake implementations for operators
that nobody defined. Image classification needs none of them, so their schemas are defined here and the import
goes through. Beside a matching torchvision nothing is changed.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@functools.cache
def torchvision() -> ModuleType:
    """The torchvision module, importable also where its compiled operators do not load."""
    try:
        import torchvision as module
    except RuntimeError as error:  # "operator torchvision::nms does not exist"
        if "torchvision::" not in str(error):
            raise
        _define_missing_schemas()
        import torchvision as module
    return module  # type: ignore[no-any-return]


def _define_missing_schemas() -> None:
    import sys

    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left half-made
    for name, schema in _SCHEMAS.items():
        try:
            torch.library.define(f"torchvision::{name}", schema)
        except RuntimeError as error:  # defined already by the operators that did load
            if "already" not in str(error) and "multiple times" not in str(error):
                raise
