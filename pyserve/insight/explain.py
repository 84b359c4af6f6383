"""Why a model says what it says about one picture: Grad-CAM, occlusion, deconvnet.

To add a way: a function decorated with `@explanation(name)`; calls, command line and tests enumerate them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pyserve.errors import CancelledError, FailedPreconditionError, InvalidArgumentError
from pyserve.inference.probe import Layer, Probe
from pyserve.insight.deconvnet import project, strongest

MAX_POSITIONS = 4096  # of the grey square
_DEFAULT_POSITIONS = 14  # along each side
_OCCLUDED_AT_ONCE = 32

ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class Question:
    """What is to be explained; None leaves a choice to the method."""

    label: int | None = None  # class; default: the likeliest one
    layer: str = ""  # default: the last one that tells places apart
    channel: int | None = None  # feature map of the layer; default: the strongest one
    size: int | None = None  # side of the grey square, pixels; default: a quarter of the picture's
    stride: int | None = None  # of its positions, pixels; default: a fourteenth of the picture's side
    rule: str = ""  # of the projection; default: the network's usual one


@dataclass(frozen=True)
class Explanation:
    """An answer, as arrays.

    `maps` by name: float32 [H, W], one number for each of H × W equal tiles of the picture, or [3, S, S], one for
    each colour of each pixel. `layer` and `channel` are those that were looked at (None: all channels).
    """

    maps: Mapping[str, npt.NDArray[np.float32]]
    label: int  # class that was asked about
    probability: float  # of that class
    layer: str
    channel: int | None
    picture: npt.NDArray[np.float32]  # as the network sees it, [S, S, 3] in 0…1
    place: tuple[int, int] | None = None  # of the layer that was looked at: row, column
    square_size: int = 0  # pixels, of an occlusion


@dataclass(frozen=True)
class Answer:
    """What a method says; the fields mean what they mean in `Explanation`."""

    maps: Mapping[str, npt.NDArray[np.float32]]
    channel: int | None = None
    place: tuple[int, int] | None = None
    square_size: int = 0


# (probe, network's input [1, 3, S, S], class, layer, question, should_stop) → answer
Method = Callable[[Probe, torch.Tensor, int, Layer, Question, ShouldStop], Answer]
EXPLANATIONS: dict[str, Method] = {}


def explanation(name: str) -> Callable[[Method], Method]:
    """Enter a function into `EXPLANATIONS`."""

    def enter(function: Method) -> Method:
        EXPLANATIONS[name] = function
        return function

    return enter


def explain(
    probe: Probe,
    batch: torch.Tensor,
    method: str,
    question: Question | None = None,
    should_stop: ShouldStop | None = None,
) -> Explanation:
    """Explain what a network says about one picture.

    Args:
        batch: uint8 [1, 3, presize, presize].
        method: one of `EXPLANATIONS`.
        question: about which class, layer, …
        should_stop: asked now and then; True ends the work.

    Raises:
        InvalidArgumentError: an unknown method, layer, channel or class, or a square that does not fit.
        FailedPreconditionError: the layer has a single position, so there is nothing to map.
        CancelledError: `should_stop` said so.
    """
    if method not in EXPLANATIONS:
        raise InvalidArgumentError.field("method", method, f"one of {', '.join(EXPLANATIONS)}")
    question = question or Question()
    x = probe.prepare(batch)
    probabilities = probe.probabilities(probe.logits(x))[0]
    label = int(probabilities.argmax()) if question.label is None else question.label
    if not 0 <= label < len(probabilities):
        raise InvalidArgumentError.field("label", label, f"0 to {len(probabilities) - 1}")
    layer = probe.layer(question.layer) if question.layer else probe.last_layer
    if question.channel is not None and not 0 <= question.channel < layer.channels:
        raise InvalidArgumentError.field("channel", question.channel, f"0 to {layer.channels - 1} of {layer.name}")
    stop = should_stop or (lambda: False)
    answer = EXPLANATIONS[method](probe, x, label, layer, question, stop)
    return Explanation(
        maps=answer.maps,
        label=label,
        probability=float(probabilities[label]),
        layer=layer.name,
        channel=answer.channel,
        picture=probe.view(batch)[0].permute(1, 2, 0).cpu().numpy(),
        place=answer.place,
        square_size=answer.square_size,
    )


@explanation("grad_cam")
def grad_cam(
    probe: Probe, x: torch.Tensor, label: int, layer: Layer, question: Question, should_stop: ShouldStop
) -> Answer:
    """Where a layer holds what speaks for the class (Selvaraju et al. 2017, arXiv 1610.02391).

    Map "grad_cam": ReLU of the feature maps' sum, each weighted with the mean over its places of the logit's
    gradient; 1 is the largest. All zero where nothing speaks for the class.
    """
    if layer.height * layer.width < 2:
        raise FailedPreconditionError(
            f"grad_cam: layer {layer.name} has a single position for pictures of {probe.input_size} pixels; "
            f"ask for an earlier one, such as {probe.last_layer.name}"
        )
    with torch.enable_grad():
        outputs, logits = probe.run(x.detach().requires_grad_(), [layer.name], to_end=True)
        assert logits is not None  # noqa: S101  asked for
        (gradient,) = torch.autograd.grad(logits[0, label], outputs[layer.name])
    weights = gradient[0].mean(dim=(1, 2))
    cam = torch.einsum("c,chw->hw", weights, outputs[layer.name][0].detach()).clamp(min=0)
    highest = float(cam.max())
    return Answer({"grad_cam": (cam / highest if highest > 0 else cam).float().cpu().numpy()})


@explanation("occlusion")
def occlusion(
    probe: Probe, x: torch.Tensor, label: int, layer: Layer, question: Question, should_stop: ShouldStop
) -> Answer:
    """What becomes of the answer where a grey square hides a part of the picture (Zeiler & Fergus, section 4.2).

    The square (the training's mean colour) is centred on each tile in turn. Maps: "probability" of the class;
    "label", the index of the likeliest class; "activation", the sum over the strongest feature map of the layer
    (or the channel asked for), 1 without a square.
    """
    side = probe.input_size
    size = max(side // 4, 1) if question.size is None else question.size
    stride = max(math.ceil(side / _DEFAULT_POSITIONS), 1) if question.stride is None else question.stride
    if not 1 <= size <= side:
        raise InvalidArgumentError.field("size", size, f"1 to {side}, the side of the picture")
    tiles = math.ceil(side / stride) if stride >= 1 else 0
    if not 1 <= stride <= side or tiles**2 > MAX_POSITIONS:
        least = math.ceil(side / math.isqrt(MAX_POSITIONS))
        raise InvalidArgumentError.field(
            "stride", stride, f"{least} to {side}, for at most {MAX_POSITIONS} positions"
        )
    with torch.inference_mode():
        whole = probe.run(x, [layer.name])[0][layer.name][0].sum(dim=(1, 2))
    channel = int(whole.argmax()) if question.channel is None else question.channel
    rows = []
    for begin in range(0, tiles**2, _OCCLUDED_AT_ONCE):
        if should_stop():
            raise CancelledError(f"the occlusion was stopped after {begin} of {tiles**2} positions")
        places = range(begin, min(begin + _OCCLUDED_AT_ONCE, tiles**2))
        hidden = torch.cat([_hidden(x, divmod(place, tiles), size, stride) for place in places])
        rows.append(_answers(probe, hidden, layer.name, channel, label))
    activation, probability, likeliest = np.concatenate(rows).reshape(tiles, tiles, 3).transpose(2, 0, 1)
    reference = float(whole[channel])
    relative = activation / reference if reference > 0 else activation
    maps = {"probability": probability, "activation": relative, "label": likeliest}
    return Answer(maps, channel, square_size=size)


@explanation("deconvnet")
def deconvnet(
    probe: Probe, x: torch.Tensor, label: int, layer: Layer, question: Question, should_stop: ShouldStop
) -> Answer:
    """What in the picture the strongest activation of a layer comes from (see `insight.deconvnet`).

    Map "projection", [3, S, S]. The channel is the one asked for, or that of the strongest activation.
    """
    with torch.inference_mode():
        output = probe.run(x, [layer.name])[0][layer.name][0]
    channel = int(output.amax(dim=(1, 2)).argmax()) if question.channel is None else question.channel
    row, column = strongest(output, channel)
    seeds = torch.zeros(1, *output.shape)
    seeds[0, channel, row, column] = float(output[channel, row, column])
    projection = project(probe, x, layer.name, seeds, question.rule)[0]
    return Answer({"projection": projection.cpu().numpy()}, channel, (row, column))


def _hidden(x: torch.Tensor, tile: tuple[int, int], size: int, stride: int) -> torch.Tensor:
    """The input with a grey square centred on a tile; zero is the mean colour."""
    begin = [round(t * stride + stride / 2 - size / 2) for t in tile]
    top, left = (max(b, 0) for b in begin)
    hidden = x.clone()
    hidden[:, :, top : begin[0] + size, left : begin[1] + size] = 0
    return hidden


@torch.inference_mode()
def _answers(probe: Probe, x: torch.Tensor, layer: str, channel: int, label: int) -> npt.NDArray[np.float32]:
    """Activation, probability of the class and likeliest class of each input, [N, 3]."""
    outputs, logits = probe.run(x, [layer], to_end=True)
    assert logits is not None  # noqa: S101  asked for
    probabilities = probe.probabilities(logits)
    columns = (
        outputs[layer][:, channel].float().sum(dim=(1, 2)),
        probabilities[:, label],
        probabilities.argmax(dim=1).float(),
    )
    answers: npt.NDArray[np.float32] = torch.stack(columns, dim=1).cpu().numpy()
    return answers
