"""A learning-rate range test and its figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyserve.data.catalog import Catalog
from pyserve.jobs.events import CurvePoint, JobState
from pyserve.jobs.records import LearningRateResult, Suggestion
from pyserve.jobs.worker.artifacts import keep_figure
from pyserve.jobs.worker.report import Ending, JobCallbacks
from pyserve.jobs.worker.train import stopped, train_dirs
from pyserve.training.lr_finder import LrFinderResult, find_learning_rate
from pyserve.training.range_test import RangeTest

if TYPE_CHECKING:
    from pyserve.insight.figures import FigureFile
    from pyserve.jobs.runner import WorkerOrder
    from pyserve.jobs.worker.process import Control
    from pyserve.jobs.worker.report import JobReport
    from pyserve.spec import FindLearningRateSpec


def run_range_test(spec: FindLearningRateSpec, order: WorkerOrder, report: JobReport, control: Control) -> Ending:
    """Run the test and draw its curve."""
    manifest = Catalog(order.data_dir).get(spec.training.dataset)
    points = len(RangeTest(spec.start_lr, spec.end_lr, spec.steps, spec.mode).rates()) * spec.repeats
    callbacks = JobCallbacks(report, control, range_points=points)
    found = find_learning_rate(spec, manifest, train_dirs(spec.training, order), callbacks)
    if found.status != "done":
        return stopped(found.status, control)
    keep_figure("range test", lambda: _figure(found), order, report)
    return Ending(JobState.SUCCEEDED, result=_result(found, manifest.digest))


def _figure(found: LrFinderResult) -> Sequence[FigureFile]:
    from pyserve.insight.figures import lr_curve  # matplotlib is slow to load, and needed last

    rates = {rule: s.learning_rate for rule, s in found.suggestions.items() if s.learning_rate is not None}
    spreads = {
        rule: (s.lowest, s.highest)
        for rule, s in found.suggestions.items()
        if s.lowest is not None and s.highest is not None and len(found.runs) > 1
    }
    return lr_curve(found.runs, rates, rule=found.rule, spreads=spreads)


def _result(found: LrFinderResult, dataset_digest: str) -> LearningRateResult:
    suggestions = tuple(
        Suggestion(
            rule=s.rule,
            learning_rate=s.learning_rate or 0.0,
            lowest=s.lowest or 0.0,
            highest=s.highest or 0.0,
            problem=s.problem,
        )
        for s in found.suggestions.values()
    )
    curve = tuple(
        CurvePoint(learning_rate=p.learning_rate, loss=p.loss, smoothed_loss=p.smoothed_loss, run=p.run)
        for p in found.runs[0].points
    )
    return LearningRateResult(
        learning_rate=found.learning_rate or 0.0,
        rule=found.rule,
        suggestions=suggestions,
        curve=curve,
        diverged=found.diverged,
        dataset_digest=dataset_digest,
    )
