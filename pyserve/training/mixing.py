"""Mixup (Zhang et al., arXiv 1710.09412) and CutMix (Yun et al., arXiv 1905.04899) of a batch with itself.

Every picture gets a part of another one of its batch, and the loss the same part of that one's label. As in the
papers one share is drawn for the whole batch. What is drawn comes from numpy on the host, a function of the seed
alone, so that the device is not waited for and a resumed training draws the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Targets:
    """Labels of a batch, and where pictures were mixed those of the partners.

    The loss is share · loss(labels) + (1 − share) · loss(partners).
    """

    labels: torch.Tensor  # int64 [N]
    partners: torch.Tensor | None = None  # int64 [N]
    share: torch.Tensor | None = None  # float32 scalar on the device: of a picture's own part

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Those there are."""
        return [t for t in (self.labels, self.partners, self.share) if t is not None]

    def clone(self) -> Targets:
        """The same in other memory."""
        return Targets(*(tensor.clone() for tensor in self.tensors))


@dataclass(frozen=True)
class Mixing:
    """Alphas of the Beta distributions from which shares are drawn; 0 leaves a kind out.

    With both, each batch has one of them, either with the same chance.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def apply(self, x: torch.Tensor, y: torch.Tensor, seed: int) -> tuple[torch.Tensor, Targets]:
        """The mixed batch and its targets.

        Args:
            x: float [N, C, H, W].
            y: int64 [N].
            seed: of everything that is drawn.
        """
        source = np.random.default_rng(seed)
        cut = source.random() < 0.5 if self.mixup > 0 and self.cutmix > 0 else self.cutmix > 0
        alpha = self.cutmix if cut else self.mixup
        share = float(source.beta(alpha, alpha))
        order = _moved(torch.from_numpy(source.permutation(len(y))), x.device)
        others = x[order]
        if cut:
            box = cut_box(x.shape[-2], x.shape[-1], share, (float(source.random()), float(source.random())))
            top, bottom, left, right = box
            x = x.clone(memory_format=torch.preserve_format)
            x[..., top:bottom, left:right] = others[..., top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (x.shape[-2] * x.shape[-1])
        else:
            x = others.lerp(x, share)
        return x, Targets(y, y[order], _moved(torch.tensor(share, dtype=torch.float32), x.device))


def cut_box(height: int, width: int, share: float, centre: tuple[float, float]) -> tuple[int, int, int, int]:
    """The box that CutMix replaces: (top, bottom, left, right), pixels.

    Args:
        height, width: of the picture.
        share: of the picture that would stay if the box lay wholly inside it.
        centre: of the box, fractions of height and width; what sticks out is cut off.
    """
    half_height, half_width = height * math.sqrt(1 - share) / 2, width * math.sqrt(1 - share) / 2
    row, column = centre[0] * height, centre[1] * width
    top, bottom = round(max(row - half_height, 0)), round(min(row + half_height, height))
    left, right = round(max(column - half_width, 0)), round(min(column + half_width, width))
    return top, bottom, left, right


def _moved(drawn: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device without waiting for it."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)
