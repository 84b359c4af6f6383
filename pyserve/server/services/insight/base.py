"""What the groups of calls have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pyserve.insight.pictures import Picture, load_pictures
from pyserve.insight.shared import ShouldStop
from pyserve.server.caller import run_for
from pyserve.server.ledger import RequestLedger
from pyserve.server.pools import Pools
from pyserve.server.services.insight.looker import Looker

T = TypeVar("T")


class InsightCalls:
    """A group of calls.

    Args:
        looker: finds what they ask about.
        pools: threads for their work.
        ledger: remembers requests that make something, by id.
    """

    def __init__(self, looker: Looker, pools: Pools, ledger: RequestLedger) -> None:
        self.looker = looker
        self.ledger = ledger
        self._pools = pools

    async def run(self, context: Any, work: Callable[[ShouldStop], T]) -> T:
        """Work in a thread, for as long as somebody waits for it."""
        return await run_for(context, self._pools.insight, work)

    def pictures(self, root: str, paths: Sequence[str]) -> Sequence[Picture | None]:
        """Pictures of a dataset, small, for a figure; None for one that cannot be read any more."""
        return load_pictures(root, paths, max_pixels=self.looker.max_image_pixels)
