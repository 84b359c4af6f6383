"""Lists in pages: sizes, and the tokens that name the place where the next page begins."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from pyserve.errors import InvalidArgumentError

DEFAULT_SIZE, MOST = 100, 1000


def page_size(requested: int) -> int:
    """How many entries a page gets: 0 means 100, more than 1000 means 1000.

    Raises:
        InvalidArgumentError: a negative size.
    """
    if requested < 0:
        raise InvalidArgumentError.field("page_size", requested, "≥ 0")
    return min(requested or DEFAULT_SIZE, MOST)


def encode_token(place: Sequence[Any]) -> str:
    """A token for a place, which JSON can hold."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def decode_token(token: str, kinds: Sequence[type]) -> list[Any]:
    """The place that `encode_token` was given.

    Args:
        kinds: the type of each part of the place.

    Raises:
        InvalidArgumentError: no list of that form gave the token.
    """
    try:
        place = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        if isinstance(place, list) and [type(part) for part in place] == list(kinds):
            return place
    except (binascii.Error, ValueError):
        pass
    raise bad_token(token)


def bad_token(token: str) -> InvalidArgumentError:
    """What is said of a token that this list did not give."""
    return InvalidArgumentError.field(
        "page_token", token[:100], "next_page_token of the page before, asked for in the same way"
    )
