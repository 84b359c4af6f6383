"""Models whose BatchNorms have statistics worth folding."""

from __future__ import annotations

import torch
from torch import nn

from pyserve.models import create_model


def model_with_statistics(name: str, num_classes: int = 7, seed: int = 5) -> nn.Module:
    """A registered network whose every BatchNorm scales, shifts and has statistics of its own; in eval mode.

    VGG's 120 million parameters between features and head become few, to test its structure quickly.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = create_model(name, num_classes)
        if name.startswith("vgg"):
            first, second, head = nn.Linear(512 * 49, 32), nn.Linear(32, 32), nn.Linear(32, num_classes)
            model.classifier[0], model.classifier[3], model.classifier[6] = first, second, head
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, 0, 0.3)
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.5, 2)
    return model.eval()


def pictures(*sizes: int, seed: int = 3) -> torch.Tensor:
    """Random normalised pictures."""
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference in units of the largest expected number, or of 1 where all are smaller; NaN counts."""
    got, expected = got.detach(), expected.detach()
    error = (got - expected).abs().max() / expected.abs().max().clamp(min=1)
    return float(error.nan_to_num(nan=float("inf")))
