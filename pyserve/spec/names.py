"""What fields of a job, and of calls that look at networks, may name."""

from __future__ import annotations

from typing import Literal, get_args

RESOURCE_ID = r"[a-z0-9][a-z0-9_-]{0,62}"
OWN_FINDER = "self"  # `lr_from`: the training runs range tests of its own
Recipe = Literal["schedule", "fine_tune", "lesson1", "auto"]
Schedule = Literal[
    "one_cycle", "sgdr", "triangular", "triangular2", "exp_range", "slanted_triangular", "cosine", "constant"
]
Optimizer = Literal["adamw", "sgd"]
Augment = Literal["none", "flip", "crop", "standard", "strong"]
ClassWeights = Literal["none", "balanced"]
Precision = Literal["float32", "bfloat16"]
Rule = Literal["middle", "peak", "valley", "steep", "slide", "minimum"]
Mode = Literal["exponential", "doubling", "linear"]
ImageKernel = Literal[
    "identity",
    "sobel_top",
    "sobel_bottom",
    "sobel_left",
    "sobel_right",
    "emboss",
    "sharpen",
    "blur",
    "outline",
]
IMAGE_KERNEL_NAMES: tuple[str, ...] = get_args(ImageKernel)
APPROXIMATION_TARGETS = ("waves", "sine", "sawtooth", "jump")


def default_rule(schedule: str) -> Rule:
    """The rule for a rate that is held, or for one that a schedule only touches (benchmarks/lr_advice.py)."""
    return "middle" if schedule == "constant" else "peak"
