"""A layer's feature maps of one picture, and its first filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pyserve.errors import InvalidArgumentError
from pyserve.inference.probe import Layer, Probe

DEFAULT_CHANNELS = 16
MAX_CHANNELS = 256


@dataclass(frozen=True)
class FeatureMaps:
    """Some channels of a layer's output."""

    layer: Layer
    channels: tuple[int, ...]
    maps: npt.NDArray[np.float32]  # [channels, H, W]
    picture: npt.NDArray[np.float32]  # as the network sees it, [S, S, 3] in 0…1


def feature_maps(
    probe: Probe, batch: torch.Tensor, layer: str, channels: Sequence[int] = (), count: int = DEFAULT_CHANNELS
) -> FeatureMaps:
    """Feature maps of one picture.

    Args:
        batch: uint8 [1, 3, presize, presize].
        layer: name of the layer.
        channels: which; none means the `count` with the strongest single activations, strongest first.

    Raises:
        InvalidArgumentError: an unknown layer, a channel that it does not have, too many of them.
    """
    found = probe.layer(layer)
    chosen = check_channels(found, channels, count)
    with torch.inference_mode():
        output = probe.run(probe.prepare(batch), [layer])[0][layer][0].float().cpu()
    if not chosen:
        order = output.amax(dim=(1, 2)).sort(descending=True, stable=True).indices
        chosen = tuple(order[:count].tolist())
    picture = probe.view(batch)[0].permute(1, 2, 0).cpu().numpy()
    return FeatureMaps(found, chosen, output[list(chosen)].numpy(), picture)


def check_channels(layer: Layer, channels: Sequence[int], count: int, most: int = MAX_CHANNELS) -> tuple[int, ...]:
    """The channels, once they are known to exist.

    Raises:
        InvalidArgumentError: one does not exist, or there are too many.
    """
    for channel in channels:
        if not 0 <= channel < layer.channels:
            raise InvalidArgumentError.field("channels", channel, f"0 to {layer.channels - 1} of {layer.name}")
    if len(channels) > most:
        raise InvalidArgumentError.field("channels", f"{len(channels)} channels", f"at most {most}")
    if not 1 <= count <= most:
        raise InvalidArgumentError.field("count", count, f"1 to {most}")
    return tuple(channels)


def first_filters(probe: Probe) -> tuple[str, npt.NDArray[np.float32]]:
    """Name and weights [K, 3, R, S] of the convolution that sees the picture."""
    name = probe.first_convolution
    module = probe.model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)  # noqa: S101  that is what the name is of
    weights: npt.NDArray[np.float32] = module.weight.detach().float().cpu().numpy()
    return name, weights
