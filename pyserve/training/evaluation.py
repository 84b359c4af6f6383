"""How good a model is on a part: accuracy and loss, plain and with test-time augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional

from pyserve.errors import InvalidArgumentError

Views = tuple[Sequence[torch.Tensor], torch.Tensor]


def logits_of(model: nn.Module, x: torch.Tensor, precision: str) -> torch.Tensor:
    """What the model says, in the arithmetic of a spec: "float32", or "bfloat16" (autocast)."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits: torch.Tensor = model(x)
    return logits


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Views], before_batch: Callable[[], None], precision: str = "float32"
) -> dict[str, float]:
    """Accuracy (0…1) and loss (nats, without label smoothing) over all pictures, in evaluation mode.

    Of several views of a picture the mean of the probabilities counts (test-time augmentation).

    Args:
        model: its modes are put back.
        batches: views of the same pictures, each [N, 3, S, S], and labels [N].
        before_batch: called before each batch; may raise to end it.
        precision: as for `logits_of`.

    Waits for the device once, at the end.
    """
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    sums: list[torch.Tensor] = []
    images = 0
    try:
        for views, y in batches:
            before_batch()
            told = torch.stack([logits_of(model, x, precision).float().log_softmax(1) for x in views])
            mean = told.logsumexp(0) - math.log(len(views))
            loss = functional.nll_loss(mean, y, reduction="sum")
            sums.append(torch.stack([loss.double(), (mean.argmax(1) == y).sum().double()]))
            images += len(y)
    finally:
        for module, training in was_training.items():
            module.training = training
    if not images:
        raise InvalidArgumentError("the validation part has no pictures, expected at least one")
    loss_sum, correct = torch.stack(sums).sum(0).tolist()
    return {"loss": loss_sum / images, "accuracy": correct / images}
