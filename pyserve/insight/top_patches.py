"""What each feature map looks for: the pictures on which it is strongest, each beside its deconvnet projection.

Zeiler & Fergus 2013, arXiv 1311.2901, figure 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import avg_pool2d

from pyserve.data.tensors import PartTensors, load_part
from pyserve.errors import CancelledError, FailedPreconditionError, InvalidArgumentError
from pyserve.inference.probe import Layer, Probe
from pyserve.insight.deconvnet import project, usual_rule
from pyserve.insight.feature_maps import check_channels
from pyserve.insight.receptive_field import Box, ReceptiveField, receptive_fields

if TYPE_CHECKING:
    from pyserve.data.manifest import Manifest, Part

DEFAULT_CHANNELS = 8
DEFAULT_PATCHES = 9
MAX_CHANNELS = 64
MAX_PATCHES = 16
_BATCH_IMAGES = 32
_SURROUNDINGS = 1e-4  # weight beside a place's own activation

ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class Patch:
    """One of the places where a feature map is strongest."""

    picture: int  # index in the part
    path: str  # relative to the dataset
    label: int  # class in the dataset
    activation: float
    row: int  # place in the feature map
    column: int
    box: Box  # what that place sees of the network's input
    pixels: npt.NDArray[np.uint8]  # that part of the picture, [h, w, 3]
    projection: npt.NDArray[np.float32]  # of the activation, the same part, [3, h, w]


@dataclass(frozen=True)
class ChannelPatches:
    """A feature map's strongest pictures, strongest first; none where it is never active."""

    channel: int
    patches: tuple[Patch, ...]


@dataclass(frozen=True)
class TopPatches:
    """Several feature maps of a layer."""

    layer: Layer
    field: tuple[int, int]  # what a place sees, height and width in pixels, the picture's size at most
    rule: str  # of the projections
    channels: tuple[ChannelPatches, ...]


@dataclass(frozen=True)
class _Strongest:
    """Of each channel, strongest picture first, [C, k]; `place` is the index in the flattened map."""

    rank: torch.Tensor
    activation: torch.Tensor
    picture: torch.Tensor
    place: torch.Tensor

    @classmethod
    def of(cls, output: torch.Tensor, first: int) -> _Strongest:
        """Of a batch's output [N, C, H, W], whose first picture has that index.

        ReLU6 has a ceiling that many reach: of equally strong places those in strong surroundings come first.
        """
        surroundings = avg_pool2d(output, 3, 1, 1) + output.mean(dim=(2, 3), keepdim=True)
        rank, place = (output + _SURROUNDINGS * surroundings).flatten(2).max(dim=2)
        activation = output.flatten(2).gather(2, place[:, :, None])[:, :, 0]
        picture = torch.arange(first, first + len(output))[:, None].expand_as(place)
        return cls(rank.T, activation.T, picture.T, place.T)

    def joined(self, other: _Strongest, count: int) -> _Strongest:
        """The strongest of both, at most `count`; of equals those of this one."""
        ranks = torch.cat([self.rank, other.rank], dim=1)
        order = ranks.sort(dim=1, descending=True, stable=True).indices[:, :count]
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Strongest(*(torch.cat(pair, dim=1).gather(1, order) for pair in pairs))


def top_patches(
    probe: Probe,
    manifest: Manifest,
    part: Part,
    layer: str,
    cache_dir: Path,
    *,
    channels: Sequence[int] = (),
    channel_count: int = DEFAULT_CHANNELS,
    count: int = DEFAULT_PATCHES,
    rule: str = "",
    should_stop: ShouldStop | None = None,
) -> TopPatches:
    """Search a part of a dataset for what excites a layer's feature maps.

    Args:
        layer: its name.
        cache_dir: where decoded pictures are kept.
        channels: which feature maps; none means the `channel_count` with the strongest activations.
        count: pictures for each, one place in each picture.
        rule: of the projection, see `insight.deconvnet`; default: the network's usual one.
        should_stop: asked between batches; True ends the work.

    Raises:
        InvalidArgumentError: an unknown layer or channel, too many of something.
        FailedPreconditionError: the part is empty.
        CancelledError: `should_stop` said so.
    """
    found = probe.layer(layer)
    chosen = check_channels(found, channels, channel_count, MAX_CHANNELS)
    if not 1 <= count <= MAX_PATCHES:
        raise InvalidArgumentError.field("count", count, f"1 to {MAX_PATCHES}")
    rule = rule or usual_rule(probe)
    stop = should_stop or (lambda: False)
    data = _load(probe, manifest, part, cache_dir, stop)
    strongest = _search(probe, data, layer, count, stop)
    if not chosen:
        order = strongest.rank[:, 0].sort(descending=True, stable=True).indices
        chosen = tuple(order[:channel_count].tolist())
    field = receptive_fields(probe)[layer]
    patches = []
    for done, channel in enumerate(chosen):
        _ask(stop, f"projecting feature map {done + 1} of {len(chosen)}")
        patches.append(ChannelPatches(channel, _patches(probe, data, found, channel, strongest, field, rule)))
    return TopPatches(found, field.size(probe.input_size), rule, tuple(patches))


def _load(probe: Probe, manifest: Manifest, part: Part, cache_dir: Path, stop: ShouldStop) -> PartTensors:
    if not manifest.part_items(part):
        raise FailedPreconditionError(f"{manifest.name} has no pictures in its {part} part")
    return load_part(
        manifest,
        part,
        probe.preprocessing.presize,
        cache_dir,
        threads=torch.get_num_threads(),
        progress=lambda done, total: _ask(stop, f"reading picture {done} of {total}"),
    )


@torch.inference_mode()
def _search(probe: Probe, data: PartTensors, layer: str, count: int, stop: ShouldStop) -> _Strongest:
    none = torch.empty(probe.layer(layer).channels, 0)
    strongest = _Strongest(none, none, none.long(), none.long())
    for begin in range(0, len(data), _BATCH_IMAGES):
        _ask(stop, f"looking at picture {begin} of {len(data)}")
        x = probe.prepare(data.images[begin : begin + _BATCH_IMAGES])
        output = probe.run(x, [layer])[0][layer].float().cpu()
        strongest = strongest.joined(_Strongest.of(output, begin), count)
    return strongest


def _patches(
    probe: Probe,
    data: PartTensors,
    layer: Layer,
    channel: int,
    strongest: _Strongest,
    field: ReceptiveField,
    rule: str,
) -> tuple[Patch, ...]:
    """One channel's pictures, all projected at once; those on which it is not active are left out."""
    active = strongest.activation[channel] > 0
    pictures = strongest.picture[channel][active]
    if not len(pictures):
        return ()
    activations, places = strongest.activation[channel][active], strongest.place[channel][active]
    batch = data.images[pictures]
    seeds = torch.zeros(len(pictures), layer.channels, layer.height * layer.width)
    seeds[torch.arange(len(pictures)), channel, places] = activations
    seeds = seeds.reshape(len(pictures), layer.channels, layer.height, layer.width)
    projections = project(probe, probe.prepare(batch), layer.name, seeds, rule).cpu().numpy()
    views = (probe.view(batch) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    patches = []
    for i, picture in enumerate(pictures.tolist()):
        row, column = divmod(int(places[i]), layer.width)
        box = field.box(row, column, probe.input_size)
        rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
        item = data.items[picture]
        patches.append(
            Patch(
                picture=picture,
                path=item.path,
                label=item.label,
                activation=float(activations[i]),
                row=row,
                column=column,
                box=box,
                pixels=views[i, rows, columns],
                projection=projections[i, :, rows, columns],
            )
        )
    return tuple(patches)


def _ask(stop: ShouldStop, doing: str) -> None:
    if stop():
        raise CancelledError(f"the search for patches was stopped while {doing}")
