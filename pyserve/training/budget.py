"""What fits into a time budget: the pure half of recipe auto, from measured speeds to image size and epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pyserve.training.phases import Phase

# Epochs of everything: fewer are hardly worth it, more no longer help (a pretrained body overfits).
_FEWEST = {True: 3, False: 10}  # by whether the body is pretrained
_MOST = {True: 8, False: 60}
_HEAD_EPOCHS = 3  # on activations, which cost next to nothing
_HEAD_ALONE_EPOCHS = 10
_MARGIN = 0.9  # of the budget is planned: other processes come and go
_END_S = 6.0  # figures, bundle and its check
_START_SIZE = 0.7  # of the full one, where pictures grow
_GROWS_FROM = 96  # pixels; smaller pictures lose too much
_FINDER_STEPS = 100
_FINDER_SHARE = 0.1  # of the time, which a range test may take
_FEWEST_STEPS, _LEAST_PICTURES, MOST_PICTURES = 40, 8, 128


@dataclass(frozen=True)
class Speed:
    """Seconds a picture takes at one image size."""

    train_s: float  # forward, backward and the optimiser's part
    forward_s: float  # in evaluation mode
    decode_s: float  # 0: decoded already


@dataclass(frozen=True)
class Work:
    """What there is to do.

    Attributes:
        train_count, valid_count: pictures.
        pretrained: whether the body comes with weights.
        tta_views: views of a validation picture at the end; 0: none.
        speeds: by image size, pixels; of the sizes between two the mean by area is taken.
    """

    train_count: int
    valid_count: int
    pretrained: bool
    tta_views: int
    speeds: Mapping[int, Speed]

    def speed(self, size: int) -> Speed:
        """Measured, or linear in the area between the two sizes beside it."""
        known = sorted(self.speeds)
        low = max((s for s in known if s <= size), default=known[0])
        high = min((s for s in known if s >= size), default=known[-1])
        if low == high:
            return self.speeds[low]
        share = (size**2 - low**2) / (high**2 - low**2)
        a, b = self.speeds[low], self.speeds[high]
        return Speed(
            a.train_s + share * (b.train_s - a.train_s),
            a.forward_s + share * (b.forward_s - a.forward_s),
            a.decode_s + share * (b.decode_s - a.decode_s),
        )


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why, in words; `epochs_s` is the time planned for all epochs."""

    image_size: int
    epochs: int
    frozen_epochs: int
    freeze_body: bool
    finds_rate: bool
    start_image_size: int | None
    epochs_s: float
    why: str


def batch_size_for(train_count: int, most: int = MOST_PICTURES) -> int:
    """Pictures per step: the largest power of two, 8 to `most`, with at least 40 steps in an epoch."""
    room = max(train_count / _FEWEST_STEPS, 1)
    return int(min(max(2 ** math.floor(math.log2(room)), _LEAST_PICTURES), most))


def choose(
    work: Work, sizes: tuple[int, ...], budget_s: float, batch_size: int, *, has_rate: bool = False
) -> Choice:
    """The largest image size at which enough epochs fit; as many of them as fit and help.

    Args:
        work: what there is to do.
        sizes: that come into question, pixels, ascending.
        budget_s: from now to the model.
        batch_size: pictures per step.
        has_rate: a learning rate is known, so none is looked for.
    """
    fewest, most = _FEWEST[work.pretrained], _MOST[work.pretrained]
    fitting = {size: _epochs_that_fit(work, size, budget_s) for size in sizes}
    enough = [size for size in sizes if fitting[size] >= fewest]
    size = max(enough, default=0) or max(sizes, key=lambda s: (fitting[s], -s))
    epochs = min(fitting[size], most)
    told = ", ".join(f"{count} epochs at {s} pixels" for s, count in fitting.items())
    why = f"{budget_s / 60:.1f} minutes have room for {told}"
    if not epochs:
        return _least(work, sizes, budget_s, why)
    reason = f"{size} pixels are the most with {fewest} epochs or more" if enough else "the most epochs that fit"
    capped = f", and more than {most} would not help" if fitting[size] > most else ""
    finder_s = _FINDER_STEPS * batch_size * work.speed(size).train_s
    finds_rate = not (work.pretrained or has_rate) and finder_s <= _FINDER_SHARE * budget_s
    if finds_rate:
        epochs = min(max(_epochs_that_fit(work, size, budget_s - finder_s), 1), most)
    return Choice(
        size,
        epochs,
        _HEAD_EPOCHS if work.pretrained else 0,
        freeze_body=False,
        finds_rate=finds_rate,
        start_image_size=_start_size(size),
        epochs_s=_epochs_s(work, size, epochs),
        why=f"{why}: {reason}{capped}",
    )


def _least(work: Work, sizes: tuple[int, ...], budget_s: float, why: str) -> Choice:
    """Where not one epoch of everything fits: the head on activations, or one epoch that takes longer."""
    pictures = work.train_count + work.valid_count
    room = _MARGIN * budget_s - _END_S

    def head_s(size: int) -> float:
        speed = work.speed(size)
        return pictures * (speed.decode_s + speed.forward_s) + work.tta_views * work.valid_count * speed.forward_s

    if work.pretrained:
        size = max((s for s in sizes if head_s(s) <= room), default=sizes[0])
        reason = "only the head learns, on activations"
        return Choice(
            size,
            _HEAD_ALONE_EPOCHS,
            0,
            freeze_body=True,
            finds_rate=False,
            start_image_size=None,
            epochs_s=pictures * work.speed(size).forward_s,
            why=f"{why}: {reason}" + ("" if head_s(size) <= room else ", and even that will take longer"),
        )
    size = sizes[0]
    return Choice(
        size,
        1,
        0,
        freeze_body=False,
        finds_rate=False,
        start_image_size=_start_size(size),
        epochs_s=_epochs_s(work, size, 1),
        why=f"{why}: one epoch at the smallest size, which will take longer",
    )


def _epochs_that_fit(work: Work, size: int, budget_s: float) -> int:
    speed, pictures = work.speed(size), work.train_count + work.valid_count
    room = _MARGIN * budget_s - _END_S
    room -= pictures * speed.decode_s + work.tta_views * work.valid_count * speed.forward_s
    if work.pretrained:
        room -= pictures * speed.forward_s  # activations
    epochs = 0
    while epochs <= _MOST[work.pretrained] and _epochs_s(work, size, epochs + 1) <= room:
        epochs += 1
    return epochs


def _epochs_s(work: Work, size: int, epochs: int) -> float:
    """Training and validation of so many epochs in which the pictures grow."""
    phase = Phase(epochs, None, start_image_size=_start_size(size))
    trained = sum(work.speed(phase.image_size_at(epoch, size)).train_s for epoch in range(epochs))
    return work.train_count * trained + epochs * work.valid_count * work.speed(size).forward_s


def _start_size(size: int) -> int | None:
    return round(_START_SIZE * size) if size >= _GROWS_FROM else None
