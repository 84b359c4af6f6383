"""Drawing a validation part: of every class the same fraction, the same for the same seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from pyserve.errors import DataError


def draw_valid(pictures: Mapping[str, str], *, fraction: float, seed: int, name: str) -> frozenset[str]:
    """The pictures of one class that become its validation part.

    Copies of one picture stay together, so that the network is never measured on what it has learnt from. Who is
    drawn depends on the paths, the contents and the seed alone: not on an order, nor on the other classes.

    Args:
        pictures: path → SHA-256 of the content.
        fraction: of the pictures, 0 < fraction < 1; at least one becomes part of either part. The nearest number
            that copies staying together allow.
        seed: of the draw.
        name: the class, for the error.

    Raises:
        DataError: there are less than two different pictures.
    """
    copies: dict[str, list[str]] = {}
    for path in sorted(pictures):
        copies.setdefault(pictures[path], []).append(path)
    if len(copies) < 2:
        different = "" if len(copies) == len(pictures) else " different"
        raise DataError(
            f"class {name!r} is too small to split: got {len(copies)}{different} picture, expected 2 or more"
        )
    order = sorted(copies.values(), key=lambda group: hashlib.sha256(f"{seed}/{group[0]}".encode()).digest())
    wanted = min(max(math.floor(fraction * len(pictures) + 0.5), 1), len(pictures) - 1)
    drawn: list[str] = []
    for group in order[:-1]:  # the last one stays, so that neither part is empty
        if len(drawn) + len(group) / 2 <= wanted:
            drawn += group
    return frozenset(drawn or sorted(order, key=len)[0])
