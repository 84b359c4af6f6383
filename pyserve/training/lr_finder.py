"""Finding the learning rate: range tests, what every rule suggests, and the spread over repeats."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyserve.errors import FailedPreconditionError
from pyserve.training.callbacks import STOPPED_STATUS, Callbacks, Status, Stopped, raise_if_stopped
from pyserve.training.lr_curve import problem_of
from pyserve.training.lr_rules import RULES, suggest
from pyserve.training.range_test import Curve, RangeTest, range_test

if TYPE_CHECKING:
    from pyserve.data.manifest import Manifest
    from pyserve.spec import FindLearningRateSpec
    from pyserve.training.prepare import TrainDirs


@dataclass(frozen=True)
class Suggestion:
    """What one rule says over all repeats; where it found none `learning_rate` is None and `problem` says why."""

    rule: str
    learning_rate: float | None  # median
    lowest: float | None = None
    highest: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class LrFinderResult:
    """The curves and what they suggest.

    `lrs`, `losses` and `smoothed` are those of the first run, `runs` holds all. `rule` is the one whose rate is
    recommended: the spec's, or the first that found one where that did not.
    """

    status: Status
    runs: Sequence[Curve] = ()
    suggestions: Mapping[str, Suggestion] = field(default_factory=dict)
    learning_rate: float | None = None
    rule: str = ""
    diverged: bool = False

    @property
    def lrs(self) -> list[float]:
        """Learning rates of the first run."""
        return self.runs[0].lrs if self.runs else []

    @property
    def losses(self) -> list[float]:
        """Mini-batch losses of the first run, nats."""
        return self.runs[0].losses if self.runs else []

    @property
    def smoothed(self) -> list[float]:
        """Smoothed losses of the first run, nats."""
        return self.runs[0].smoothed if self.runs else []


def suggest_all(runs: Sequence[Curve]) -> dict[str, Suggestion]:
    """What every rule suggests: median, lowest and highest over the runs on which it found a rate."""
    suggestions = {}
    for rule in RULES:
        rates, problem = [], ""
        for curve in runs:
            try:
                rates.append(suggest(rule, curve))
            except FailedPreconditionError as error:
                problem = error.message
        if rates:
            suggestions[rule] = Suggestion(rule, statistics.median(rates), min(rates), max(rates))
        else:
            suggestions[rule] = Suggestion(rule, None, problem=problem)
    return suggestions


def useful(runs: Sequence[Curve], warn: Callable[[str, str], None]) -> list[Curve]:
    """The curves that can be read; those that cannot are told.

    Raises:
        FailedPreconditionError: none can be read; says why.
    """
    problems = [problem_of(curve) for curve in runs]
    kept = [curve for curve, problem in zip(runs, problems, strict=True) if problem is None]
    if not kept:
        raise FailedPreconditionError("; ".join(dict.fromkeys(problem for problem in problems if problem)))
    for run, problem in enumerate(problems):
        if problem is not None:
            warn("useless_curve", f"run {run + 1} of {len(runs)} is left out: {problem}")
    return kept


def recommend(suggestions: Mapping[str, Suggestion], rule: str) -> Suggestion:
    """The suggestion of `rule`, or of the first rule that has one where it has none.

    Raises:
        FailedPreconditionError: no rule found a learning rate; says why.
    """
    for name in (rule, *suggestions):
        if suggestions[name].learning_rate is not None:
            return suggestions[name]
    raise FailedPreconditionError("; ".join(s.problem for s in suggestions.values()))


def find_learning_rate(
    spec: FindLearningRateSpec, manifest: Manifest, dirs: TrainDirs, callbacks: Callbacks
) -> LrFinderResult:
    """Run the range tests of a spec; each repeat begins from its own seed, as a training with it would.

    The body is frozen where the whole training has it frozen; `frozen_epochs` before that play no part.

    Raises:
        FailedPreconditionError: the curves are flat, too short, or diverge at once, or no rule found a rate.
    """
    runs: list[Curve] = []
    try:
        for run in range(spec.repeats):
            runs.append(_run(spec, run, manifest, dirs, callbacks))
    except Stopped as stop:
        return LrFinderResult(STOPPED_STATUS[stop.kind], runs)
    suggestions = suggest_all(useful(runs, callbacks.on_warning))
    rule = spec.effective_rule
    chosen = recommend(suggestions, rule)
    if chosen.rule != rule:
        callbacks.on_warning(
            "rule_without_answer", f"{suggestions[rule].problem}; taking that of {chosen.rule} instead"
        )
    diverged = any(curve.diverged for curve in runs)
    return LrFinderResult("done", runs, suggestions, chosen.learning_rate, chosen.rule, diverged)


def _run(spec: FindLearningRateSpec, run: int, manifest: Manifest, dirs: TrainDirs, callbacks: Callbacks) -> Curve:
    from pyserve.training.phases import Phase
    from pyserve.training.prepare import prepare  # the range test itself needs torch alone
    from pyserve.training.stages import Stages

    training = spec.training.model_copy(update={"seed": (spec.training.seed + run) % 2**31})
    prepared = prepare(training, manifest, dirs, callbacks)
    phase = Phase(1, None, frozen=training.freeze_body, precomputed=training.freeze_body and training.precompute)
    stages = Stages(training, prepared.network, prepared.pictures, (phase,), lambda: raise_if_stopped(callbacks))
    stage = stages.of(0)
    options = RangeTest(spec.start_lr, spec.end_lr, spec.steps, spec.mode, spec.divergence_factor)
    return range_test(
        stage.network,
        prepared.config,
        stage.train,
        options,
        run=run,
        frozen=training.freeze_body,
        on_point=callbacks.on_curve_point,
        before_step=lambda: raise_if_stopped(callbacks),
    )
