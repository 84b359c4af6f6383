"""Recipes as plans: which phases a spec's training has. To add one: a function decorated with `@register(name)`.

A recipe's other half are its defaults (`pyserve.spec`). "auto" has no plan here: it turns into another (`auto`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyserve.training.phases import Phase

if TYPE_CHECKING:
    from pyserve.spec import TrainSpec

Plan = Callable[["TrainSpec"], tuple[Phase, ...]]
PLANS: dict[str, Plan] = {}

HEAD_ON_ACTIVATIONS = "head on activations"
HEAD_ON_PICTURES = "head on pictures"
WHOLE_NETWORK = "whole network"

_LESSON_HEAD_EPOCHS = 2
# fastai v2's Learner.fine_tune: the frozen epoch rises for nearly all of its time, then comes half the rate.
_FINE_TUNE_FROZEN = (("pct_start", 0.99),)
_FINE_TUNE_WHOLE = (("pct_start", 0.3), ("div", 5.0))


def register(name: str) -> Callable[[Plan], Plan]:
    """Enter a recipe into `PLANS`."""

    def enter(plan: Plan) -> Plan:
        PLANS[name] = plan
        return plan

    return enter


def plan_phases(spec: TrainSpec) -> tuple[Phase, ...]:
    """The phases of a spec whose recipe is not "auto"."""
    return PLANS[spec.recipe](spec)


@register("schedule")
def schedule(spec: TrainSpec) -> tuple[Phase, ...]:
    """The head alone for `frozen_epochs`, on a one-cycle of its own, then `epochs` on the spec's schedule.

    The spec's learning rate is the highest of both, for it is the one the finder suggests; and the head's cycle
    comes down again, so that the body never meets a head that is still moving fast.
    """
    return (*_frozen(spec, "one_cycle"), _whole(spec))


@register("fine_tune")
def fine_tune(spec: TrainSpec) -> tuple[Phase, ...]:
    """fastai v2's `fine_tune`: `frozen_epochs` at the rate, then everything at half of it."""
    rate = _rate(spec)
    return (
        *_frozen(spec, "one_cycle", shape=_FINE_TUNE_FROZEN),
        _whole(spec, rate=rate and rate / 2, shape=_FINE_TUNE_WHOLE if spec.schedule == "one_cycle" else ()),
    )


@register("lesson1")
def lesson1(spec: TrainSpec) -> tuple[Phase, ...]:
    """fast.ai's first lesson (0.7): head on activations, head on augmented pictures, then everything in cycles.

    Each phase begins with a range test; the one for the head on pictures reads activations, as the lesson's does.
    """
    head = Phase(_LESSON_HEAD_EPOCHS, _rate(spec), frozen=True, precomputed=True, name=HEAD_ON_ACTIVATIONS)
    augmented = _frozen(spec, "sgdr", cycle_epochs=1, precomputed=False, rate_from_activations=True)
    return (*((head,) if spec.precompute else ()), *augmented, _whole(spec))


def _rate(spec: TrainSpec) -> float | None:
    return None if spec.finds_rate_itself else spec.effective_learning_rate


def _frozen(
    spec: TrainSpec,
    kind: str,
    *,
    shape: tuple[tuple[str, float], ...] = (),
    cycle_epochs: int | None = None,
    precomputed: bool | None = None,
    rate_from_activations: bool = False,
) -> tuple[Phase, ...]:
    """The phase in which only the head learns, where there is one."""
    if not spec.frozen_epochs:
        return ()
    on_activations = spec.precompute if precomputed is None else precomputed
    phase = Phase(
        spec.frozen_epochs,
        _rate(spec),
        kind,
        cycle_epochs,
        frozen=True,
        shape=shape,
        precomputed=on_activations,
        rate_from_activations=rate_from_activations,
        name=HEAD_ON_ACTIVATIONS if on_activations else HEAD_ON_PICTURES,
    )
    return (phase,)


def _whole(spec: TrainSpec, *, rate: float | None = None, shape: tuple[tuple[str, float], ...] = ()) -> Phase:
    """The last phase: everything, or throughout frozen bodies the head, on the spec's schedule."""
    precomputed = spec.freeze_body and spec.precompute
    name = WHOLE_NETWORK
    if spec.freeze_body:
        name = HEAD_ON_ACTIVATIONS if precomputed else HEAD_ON_PICTURES
    return Phase(
        spec.epochs,
        rate or _rate(spec),
        spec.schedule,
        spec.cycle_epochs,
        spec.cycle_mult,
        frozen=spec.freeze_body,
        shape=shape,
        precomputed=precomputed,
        start_image_size=spec.start_image_size,
        name=name,
    )
