"""Pictures that show the same: found as neighbours in feature space, proved by their pixels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pyserve.errors import CancelledError, InvalidArgumentError
from pyserve.insight.neighbours import Neighbours, ShouldStop

NEIGHBOURS = 5  # candidates for each picture
_LEAST, _MOST = 0.7, 0.99  # correlation of copies, whatever the pictures
_DEVIATIONS = 5
_MAD_TO_SD = 1.4826  # median absolute deviation of a normal distribution to its standard deviation
_NEARLY_ONE = 1 - 1e-6
_PAIRS_AT_ONCE = 256
_LARGEST_SHIFT = 3  # pixels of a thumbnail, each way
_SCALES = (0.95, 0.9, 0.85, 0.8)  # of a cropped copy: this share of the other picture's side
_BLUR = 7  # pixels; what is smoother than this tells nothing: two black cats are smooth alike


@dataclass(frozen=True)
class Duplicate:
    """Two pictures that show the same."""

    first: int
    second: int
    similarity: float  # cosine of the features
    correlation: float  # of the thumbnails' details, −1…1


@dataclass(frozen=True)
class Duplicates:
    """Pairs of pictures that show the same, the surest first."""

    pairs: tuple[Duplicate, ...]
    least_correlation: float  # of those


def duplicates(
    neighbours: Neighbours,
    thumbnails: npt.NDArray[np.uint8],
    least_correlation: float | None = None,
    should_stop: ShouldStop | None = None,
) -> Duplicates:
    """Find pictures that show the same.

    Neighbours in feature space are the candidates: a network hardly minds that a copy was recompressed, resized,
    cropped, mirrored or recoloured. It minds as little which of two black cats it sees, so a pair counts only
    where the pixels agree as well: the correlation of the details of grey thumbnails (what a blur of 7 pixels
    removes), the best over mirroring, crops down to 80 % of a side, and shifts of up to three pixels.

    Args:
        neighbours: of N pictures.
        thumbnails: grey, [N, T, T].
        least_correlation: of a pair that counts; None: see `usual_threshold`.
        should_stop: asked now and then; True ends the work.

    Raises:
        InvalidArgumentError: a correlation out of range.
        CancelledError: `should_stop` said so.
    """
    if least_correlation is not None and not -1 <= least_correlation <= 1:
        raise InvalidArgumentError.field("least_correlation", least_correlation, "-1 to 1")
    pairs = _pairs(neighbours)
    pixels = torch.from_numpy(thumbnails).float()
    found: list[float] = []
    for begin in range(0, len(pairs), _PAIRS_AT_ONCE):
        if should_stop is not None and should_stop():
            raise CancelledError(f"the search for duplicates was stopped after {begin} of {len(pairs)} pairs")
        chunk = pairs[begin : begin + _PAIRS_AT_ONCE]
        first, second = (pixels[[pair[i] for pair in chunk]] for i in (0, 1))
        found += correlations(first, second).tolist()
    least = usual_threshold(np.array(found)) if least_correlation is None else least_correlation
    kept = [
        Duplicate(i, j, similarity, correlation)
        for (i, j, similarity), correlation in zip(pairs, found, strict=True)
        if correlation >= least
    ]
    return Duplicates(tuple(sorted(kept, key=lambda d: (-d.correlation, d.first, d.second))), least)


def usual_threshold(found: npt.NDArray[np.float64]) -> float:
    """The correlation from which on pairs of neighbours are copies.

    0.7 for photographs: different ones stayed below 0.65 in 11,420 pairs (cats and dogs), copies are above 0.8,
    but for those rotated by 5 degrees (0.4 to 0.7). More where all pictures are alike, as digits are: five
    robust standard deviations above the neighbours' median, in Fisher's z (atanh), in which correlations are
    about normal.

    Args:
        found: correlations of all neighbours.
    """
    if not len(found):
        return _LEAST
    z = np.arctanh(np.clip(found, -_NEARLY_ONE, _NEARLY_ONE))
    median = float(np.median(z))
    deviation = _MAD_TO_SD * float(np.median(np.abs(z - median)))
    return float(min(max(_LEAST, np.tanh(median + _DEVIATIONS * deviation)), _MOST))


def correlations(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The best correlation of the details of pairs of grey pictures, float [M, T, T] each, −1…1 [M]."""
    best = torch.full((len(first),), -1.0)
    for mirrored in (False, True):
        other = second.flip(2) if mirrored else second
        whole = _details(first, 1.0), _details(other, 1.0)
        best = torch.maximum(best, _shifted_correlation(*whole))
        for scale in _SCALES:
            best = torch.maximum(best, _shifted_correlation(_details(first, scale), whole[1]))
            best = torch.maximum(best, _shifted_correlation(whole[0], _details(other, scale)))
    return best


def _details(pictures: torch.Tensor, scale: float) -> torch.Tensor:
    """The central part, this share of a side, enlarged to the whole, without what a blur leaves of it."""
    zoom, blur = _zoom_matrix(pictures.shape[-1], scale), _blur_matrix(pictures.shape[-1])
    zoomed = zoom @ pictures @ zoom.T
    return zoomed - blur @ zoomed @ blur.T


@functools.cache
def _zoom_matrix(side: int, scale: float) -> torch.Tensor:
    """[T, T]: linear interpolation along one axis."""
    place = torch.arange(side, dtype=torch.float32)
    source = (place - (side - 1) / 2) * scale + (side - 1) / 2
    return (1 - (source[:, None] - place).abs()).clamp(min=0)


@functools.cache
def _blur_matrix(side: int) -> torch.Tensor:
    """[T, T]: the mean of neighbours along one axis, mirrored at the ends."""
    edge = _BLUR // 2
    padded = functional.pad(torch.eye(side)[None], (edge, edge), mode="reflect")
    return functional.avg_pool1d(padded, _BLUR, 1)[0].T


def _shifted_correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of b's centre with a, the best over shifts [M]; of a picture of one colour 0."""
    cut, side = _LARGEST_SHIFT, a.shape[-1]
    shifts = 2 * cut + 1
    template = b[:, cut:-cut, cut:-cut]
    template = template - template.mean((1, 2), keepdim=True)
    spectrum = torch.fft.rfft2(a) * torch.fft.rfft2(template, s=(side, side)).conj()
    products = torch.fft.irfft2(spectrum, s=(side, side))[:, :shifts, :shifts]  # where nothing wraps
    window = torch.ones(shifts, side).tril(side - shifts).triu()  # [i, j]: whether shift i sees pixel j
    total, squares = window @ a @ window.T, window @ a.square() @ window.T
    variance = (squares - total.square() / (side - 2 * cut) ** 2).clamp(min=0)
    norm = variance.sqrt() * template.square().sum((1, 2)).sqrt()[:, None, None]
    best: torch.Tensor = (products / norm.clamp(min=1e-3)).amax((1, 2))
    return best


def _pairs(neighbours: Neighbours) -> Sequence[tuple[int, int, float]]:
    """Each pair of neighbours once, the lower index first."""
    near: dict[tuple[int, int], float] = {}
    for i, (row, values) in enumerate(zip(neighbours.index, neighbours.similarity, strict=True)):
        for j, value in zip(row[:NEIGHBOURS].tolist(), values[:NEIGHBOURS].tolist(), strict=True):
            near.setdefault((min(i, j), max(i, j)), value)
    return [(i, j, value) for (i, j), value in sorted(near.items())]
