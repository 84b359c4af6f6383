"""From an activation back to pixels: the deconvnet of Zeiler & Fergus 2013, arXiv 1311.2901, section 2.1.

Each step of the forward pass is undone by its counterpart, in reverse order:

    max pooling         unpooling: the value goes back to where the maximum was (the switch), all else is zero
    ReLU, ReLU6         the reconstruction is clamped at zero from below, whatever the forward pass clamped
    convolution         its filters transposed: the data gradient of our own kernel, `pyserve::conv2d_backward`

The paper's network has nothing else; for what later networks have, the step is the transpose of the linear map
that the layer is in evaluation mode:

    BatchNorm           times weight / √(variance + ε) of each channel; the shift plays no part
    residual addition   the reconstruction goes down both branches, and what comes back is added up
    average pooling     spread evenly over the window
    strided convolution transposed filters, as above; pixels between the strides get what the filters put there
    linear layer        its matrix transposed

So a projection is the backward pass with another rule for ReLU (Simonyan et al. 2013, arXiv 1312.6034, section 4),
and that is how it is computed.

What makes a projection depend on the picture are the switches. Where a network has none, because its convolutions
stride instead (ResNets but for one pooling, MobileNets), every projection is the same pattern. Springenberg et al.
2014 (arXiv 1412.6806) found that, and the remedy: "guided", a reconstruction also stops where the forward pass was
clamped at zero. It is what `usual_rule` takes for such networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from pyserve.errors import FailedPreconditionError, InvalidArgumentError
from pyserve.inference.probe import Probe

# How the reconstruction passes a ReLU: (reconstruction, forward input) → reconstruction
RULES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "deconvnet": lambda reconstruction, x: reconstruction.clamp(min=0.0),
    "guided": lambda reconstruction, x: reconstruction.clamp(min=0.0) * (x > 0),
}

_RELU = (F.relu, torch.relu, torch.Tensor.relu, F.relu6)
_OTHER_RELU = (F.relu_, torch.relu_, torch.Tensor.relu_, torch.ops.pyserve.bias_relu)


def usual_rule(probe: Probe) -> str:
    """The rule that says most about a network: "deconvnet" where switches do most of its shrinking."""
    modules = list(probe.model.modules())
    switches = sum(isinstance(module, nn.MaxPool2d) for module in modules)
    strides = sum(isinstance(module, nn.Conv2d) and max(module.stride) > 1 for module in modules)
    return "deconvnet" if switches > strides else "guided"


def project(probe: Probe, x: torch.Tensor, layer: str, seeds: torch.Tensor, rule: str = "") -> torch.Tensor:
    """Project parts of a layer's output down to the picture.

    Args:
        x: the network's input, [N, 3, S, S].
        layer: name of the layer.
        seeds: [N, C, H, W] like the layer's output: the activations to be projected, all others zero.
        rule: one of `RULES`; default: the network's `usual_rule`.

    Returns:
        float32 [N, 3, S, S]: what in the (normalised) picture the activations come from; exactly zero outside
        their receptive fields.

    Raises:
        InvalidArgumentError: an unknown layer or rule.
        FailedPreconditionError: the network has a ReLU of a kind that is not known here.
    """
    rule = rule or usual_rule(probe)
    if rule not in RULES:
        raise InvalidArgumentError.field("rule", rule, f"one of {', '.join(RULES)}")
    x = x.detach().requires_grad_()
    with torch.enable_grad(), _OwnRule(RULES[rule]):
        outputs, _ = probe.run(x, [layer])
    (projection,) = torch.autograd.grad(outputs[layer], x, seeds.to(outputs[layer]))
    return projection.float()


def strongest(activations: torch.Tensor, channel: int) -> tuple[int, int]:
    """Row and column of the strongest activation of a channel, [C, H, W]."""
    place = int(activations[channel].argmax())
    return divmod(place, activations.shape[2])


class _OwnRule(TorchFunctionMode):
    """While it is entered, whatever ReLU runs gets another way back."""

    def __init__(self, rule: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._rule = rule

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if func in _RELU:
            return _relu(args[0], 6.0 if func is F.relu6 else None, self._rule)
        if func is F.hardtanh and options.get("min_val") == 0:  # as nn.ReLU6 calls it
            return _relu(args[0], options["max_val"], self._rule)
        if func in _OTHER_RELU:
            raise FailedPreconditionError(
                "deconvnet: the network has a ReLU that works in place or adds as well; give it nn.ReLU modules"
            )
        return func(*args, **options)


class _ReLU(torch.autograd.Function):
    """ReLU (or ReLU6) of the activation on the way up, a rule of ours on the way down."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, highest: float | None, rule: Any) -> torch.Tensor:
        """The activation."""
        ctx.save_for_backward(x)
        ctx.rule = rule
        return x.clamp(min=0.0, max=highest)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The reconstruction."""
        return ctx.rule(grad, *ctx.saved_tensors), None, None


_relu: Any = _ReLU.apply  # which has no types
