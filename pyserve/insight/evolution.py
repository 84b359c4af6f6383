"""How features come about: each feature map's strongest activation after some epochs, projected back to pixels.

Zeiler & Fergus 2013, arXiv 1311.2901, figure 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyserve.errors import InvalidArgumentError
from pyserve.inference.probe import Layer, Probe
from pyserve.insight.deconvnet import usual_rule
from pyserve.insight.top_patches import Patch, ShouldStop, top_patches

if TYPE_CHECKING:
    from pyserve.data.manifest import Manifest, Part

DEFAULT_CHANNELS = 6


@dataclass(frozen=True)
class ChannelEvolution:
    """A feature map's strongest place after each epoch; None where it was never active."""

    channel: int
    patches: tuple[Patch | None, ...]


@dataclass(frozen=True)
class Evolution:
    """Several feature maps of a layer over the epochs of a training."""

    layer: Layer
    field: tuple[int, int]  # what a place sees, height and width in pixels
    rule: str  # of the projections
    epochs: tuple[int, ...]
    rows: tuple[ChannelEvolution, ...]


def evolution(
    snapshots: Sequence[tuple[int, Callable[[], Probe]]],
    manifest: Manifest,
    part: Part,
    layer: str,
    cache_dir: Path,
    *,
    channels: Sequence[int] = (),
    channel_count: int = DEFAULT_CHANNELS,
    rule: str = "",
    should_stop: ShouldStop | None = None,
) -> Evolution:
    """Look at the network after each of some epochs.

    Args:
        snapshots: epoch, and what opens the network as it was after it; ascending.
        channels: which feature maps; none means the `channel_count` that are strongest in the end.
        rule: of the projection, see `insight.deconvnet`; default: the network's usual one.

    Raises:
        InvalidArgumentError: no snapshots, an unknown layer or channel.
        FailedPreconditionError, CancelledError: as `top_patches`.
    """
    if not snapshots:
        raise InvalidArgumentError.field("snapshots", "none", "at least one")
    found = []
    for _, opened in reversed(snapshots):  # the last one says which feature maps are looked at
        probe = opened()
        rule = rule or usual_rule(probe)
        patches = top_patches(
            probe,
            manifest,
            part,
            layer,
            cache_dir,
            channels=channels,
            channel_count=channel_count,
            count=1,
            rule=rule,
            should_stop=should_stop,
        )
        channels = [c.channel for c in patches.channels]
        found.append(patches)
    found.reverse()
    rows = tuple(
        ChannelEvolution(channel, tuple(next(iter(p.channels[i].patches), None) for p in found))
        for i, channel in enumerate(channels)
    )
    return Evolution(found[-1].layer, found[-1].field, rule, tuple(epoch for epoch, _ in snapshots), rows)
