"""A network opened up: the outputs of its layers, the features that its head sees.

The inference form of a model has no such places any more (BatchNorms folded, activations in epilogues), so a probe
runs the plain network; its convolutions are ours all the same, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyserve import models
from pyserve.data.transforms import evaluation_view, normalize
from pyserve.errors import FailedPreconditionError, InvalidArgumentError
from pyserve.inference.bundle import load_plain
from pyserve.inference.description import Preprocessing
from pyserve.kernels.layers import Conv2d
from pyserve.models.snapshots import Snapshot, load_snapshot

_NAMED_IN_ERRORS = 12


@dataclass(frozen=True)
class Layer:
    """A module whose output is one picture per channel."""

    name: str  # as `named_modules` has it: "layer2.0.conv1"
    kind: str  # class: "Conv2d"
    channels: int
    height: int
    width: int


@dataclass
class _Recording:
    """What one forward pass of one thread is to keep."""

    names: frozenset[str]
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    shapes: list[tuple[str, torch.Size]] | None = None  # of every output, where a list
    features: torch.Tensor | None = None
    wants_features: bool = False
    stops: bool = False

    @property
    def is_complete(self) -> bool:
        return len(self.outputs) == len(self.names) and (not self.wants_features or self.features is not None)


class _Complete(Exception):  # noqa: N818  not an error
    """Ends a forward pass that has given all that was wanted."""


_recording: ContextVar[_Recording | None] = ContextVar("recording", default=None)


class Probe:
    """A plain network in evaluation mode; all methods may be called from many threads at once.

    Args:
        model: as `models.create_model` makes it, with its weights; the probe owns it from here on.
        preprocessing: how pictures become its input.
        device: where it runs.
        temperature: logits are divided by it where probabilities are made of them.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        device: torch.device | str = "cpu",
        temperature: float = 1.0,
    ) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.temperature = temperature
        self.preprocessing = preprocessing
        self.device = torch.device(device)
        for name, module in model.named_modules():
            if type(module) is nn.Conv2d:
                Conv2d.adopt(module)
            if getattr(module, "inplace", False):  # would change the output of the layer before
                module.inplace = False
            if name:
                module.register_forward_hook(_keep_output(name))
        self.head = models.head_name(model)
        self.head_module.register_forward_pre_hook(_keep_features)
        self.layers = self._find_layers()

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu", *, name: str = "") -> Probe:
        """The network of a bundle.

        Raises:
            DataLossError, FailedPreconditionError: as `load_plain`.
        """
        model, description = load_plain(folder, name=name)
        return cls(model, description.preprocessing, device, description.temperature)

    @classmethod
    def of_snapshot(cls, snapshot: Snapshot, device: torch.device | str = "cpu") -> Probe:
        """The network as it was after an epoch of its training.

        Raises:
            DataLossError: the snapshot is damaged.
        """
        model, facts = load_snapshot(snapshot)
        architecture = models.get_architecture(facts.architecture)
        preprocessing = Preprocessing(
            image_size=facts.image_size, presize=facts.presize, mean=architecture.mean, std=architecture.std
        )
        return cls(model, preprocessing, device)

    @property
    def head_module(self) -> nn.Linear:
        """The last linear layer."""
        head = self.model.get_submodule(self.head)
        assert isinstance(head, nn.Linear)  # noqa: S101  that is what `head_name` looks for
        return head

    @property
    def input_size(self) -> int:
        """Side of the square that the network sees, pixels."""
        return self.preprocessing.image_size

    def view(self, batch: torch.Tensor) -> torch.Tensor:
        """uint8 [N, 3, presize, presize] as the square that the network sees: float32 [N, 3, S, S] in 0…1."""
        return evaluation_view(batch.to(self.device), self.input_size)

    def prepare(self, batch: torch.Tensor) -> torch.Tensor:
        """uint8 [N, 3, presize, presize] as the network's normalised input, as validation makes it."""
        return normalize(self.view(batch), self.preprocessing.mean, self.preprocessing.std)

    def layer(self, name: str) -> Layer:
        """The layer of a name.

        Raises:
            InvalidArgumentError: there is none; names those there are.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise InvalidArgumentError.field("layer", name, f"one of {_some([layer.name for layer in self.layers])}")

    @property
    def first_convolution(self) -> str:
        """The name of the convolution that sees the picture."""
        return self._convolutions()[0]

    @property
    def last_layer(self) -> Layer:
        """The outermost layer around the last convolution that still tells places apart: Grad-CAM's usual one.

        Raises:
            FailedPreconditionError: every layer has a single position.
        """
        spatial = [layer for layer in self.layers if layer.height * layer.width > 1]
        for convolution in reversed(self._convolutions()):
            around = [x for x in spatial if f"{convolution}.".startswith(f"{x.name}.")]
            if around:
                return min(around, key=lambda layer: layer.name.count("."))
        raise FailedPreconditionError("the network has no layer with more than one position at this picture size")

    def run(
        self, x: torch.Tensor, names: Sequence[str], *, to_end: bool = False
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """Outputs of layers, part of the graph where x requires a gradient.

        Args:
            x: the network's input, [N, 3, S, S].
            names: of layers.
            to_end: go on to the logits after the last of them.

        Returns:
            Name → output [N, C, H, W], and the logits [N, classes] (None unless `to_end`).

        Raises:
            InvalidArgumentError: an unknown layer.
        """
        recording = _Recording(frozenset(self.layer(name).name for name in names), stops=not to_end)
        logits = self._forward(x, recording)
        return recording.outputs, logits if to_end else None

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Softmax of logits [N, classes] at the temperature, float32."""
        return (logits.float() / self.temperature).softmax(dim=1)

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes] of the network's input."""
        logits = self._forward(x, _Recording(frozenset()))
        assert logits is not None  # noqa: S101  nothing ends this pass early
        return logits

    @torch.inference_mode()
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the head sees of the network's input: float32 [N, D]."""
        recording = _Recording(frozenset(), wants_features=True, stops=True)
        self._forward(x, recording)
        assert recording.features is not None  # noqa: S101  every network here has a head
        return recording.features.float()

    def _convolutions(self) -> list[str]:
        """Their names, in the network's order."""
        return [name for name, module in self.model.named_modules() if isinstance(module, nn.Conv2d)]

    def _forward(self, x: torch.Tensor, recording: _Recording) -> torch.Tensor | None:
        token = _recording.set(recording)
        try:
            logits: torch.Tensor = self.model(x.contiguous(memory_format=torch.channels_last))
            return logits
        except _Complete:
            return None
        finally:
            _recording.reset(token)

    @torch.inference_mode()
    def _find_layers(self) -> tuple[Layer, ...]:
        """The modules that run once in a pass and give [N, C, H, W], in the order in which they finish."""
        recording = _Recording(frozenset(), shapes=[])
        self._forward(torch.zeros(1, 3, self.input_size, self.input_size, device=self.device), recording)
        assert recording.shapes is not None  # noqa: S101  just made
        names = [name for name, _ in recording.shapes]
        kinds = {name: type(module).__name__ for name, module in self.model.named_modules()}
        return tuple(
            Layer(name, kinds[name], *shape[1:])
            for name, shape in recording.shapes
            if len(shape) == 4 and names.count(name) == 1
        )


def _keep_output(name: str) -> Callable[[nn.Module, Any, Any], torch.Tensor | None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> torch.Tensor | None:
        recording = _recording.get()
        if recording is None or not isinstance(output, torch.Tensor):
            return None
        if recording.shapes is not None:
            recording.shapes.append((name, output.shape))
        if name not in recording.names:
            return None
        recording.outputs[name] = output
        if recording.stops and recording.is_complete:
            raise _Complete
        return output.clone()  # what follows may work in place

    return hook


def _keep_features(module: nn.Module, inputs: Any) -> None:
    recording = _recording.get()
    if recording is not None and recording.wants_features:
        recording.features = inputs[0]
        if recording.stops and recording.is_complete:
            raise _Complete


def _some(names: Sequence[str]) -> str:
    """All names, or the first and the last of many."""
    if len(names) <= _NAMED_IN_ERRORS:
        return ", ".join(names)
    half = _NAMED_IN_ERRORS // 2
    first, last = ", ".join(names[:half]), ", ".join(names[-half:])
    return f"{first}, … {last} ({len(names)} in all; the call Layers lists them)"
