"""The call that puts all of a model on one page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pyserve import kernels
from pyserve.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from pyserve.inference.model_info import ModelInfo
from pyserve.insight.figures import FigureFile
from pyserve.insight.report import Page, Section, Table, render
from pyserve.insight.shared import ShouldStop
from pyserve.jobs.paths import artifacts_folder
from pyserve.jobs.records import JobRecord, TrainResult
from pyserve.server import validate
from pyserve.server.services.insight.looker import Question
from pyserve.server.services.insight.neighbours import NeighbourCalls
from pyserve.server.services.insight.predictions import PredictionCalls
from pyserve.server.services.insight.report_sections import (
    NetworkSections,
    files,
    guarded,
    own_range_tests,
    renamed,
)
from pyserve.spec import OWN_FINDER, TrainSpec
from pyserve.v1 import insight_pb2

_GALLERY = 12
_ISSUES = 12
_CLASSES, _OF_A_CLASS = 10, 4
_TEXTS = {
    "most_incorrect": "Wrong, and most sure of it.",
    "most_uncertain": "Nearly as much for one class as for another.",
    "most_correct": "Right, and most sure of it.",
}


class ReportCalls(PredictionCalls, NeighbourCalls, NetworkSections):
    """See the package."""

    async def Report(self, request: insight_pb2.ReportRequest, context: Any) -> insight_pb2.ReportResponse:
        """All of a model on one page."""
        name = validate.trained_name(request.name)
        dataset = validate.dataset_name(request.dataset, "dataset") if request.dataset else ""
        part = validate.part(request.part)
        return await self.run(context, lambda stop: self._report(name, dataset, part, stop))

    def _report(
        self, name: str, dataset: str, part: validate.Part, stop: ShouldStop
    ) -> insight_pb2.ReportResponse:
        info, probe = self.looker.probe(self._model_of(name) if name.startswith("jobs/") else name)
        asked = Question(info.name, self.looker.manifest(info.name, dataset).name, part)
        job = self._job_of(info)
        sections = [
            _overview(info),
            *([guarded("Training", lambda: self._training(job)), *self._finder(job)] if job else []),
            guarded("Confusion matrix", lambda: self._confusions(asked, stop)),
            guarded("Calibration", lambda: self._reliability(asked, stop)),
            *[guarded(_title(order), partial(self._gallery, asked, order, stop)) for order in _TEXTS],
            guarded("Class by class", lambda: self._classes(asked, info.labels, stop)),
            guarded("Labels that are probably wrong", lambda: self._suspects(asked, stop)),
            guarded("Pictures that show the same", lambda: self._copies(asked, stop)),
            *self._inside(asked, probe, job, self._worst(asked, stop), stop),
            _kernels(),
        ]
        made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        page = Page(info.name, f"Looked at on the {part} part of {asked.dataset}, {made}.", sections)
        return insight_pb2.ReportResponse(model=info.name, html=render(page).encode())

    # -------------------------------------------------------- what it is about

    def _model_of(self, job: str) -> str:
        """The model that a training made."""
        result = self.jobs.get(job).result
        if not isinstance(result, TrainResult):
            raise FailedPreconditionError(
                f"{job} has made no model: wait until it has succeeded, or name another one"
            )
        return result.model

    def _job_of(self, info: ModelInfo) -> JobRecord | None:
        """The training that made a model, where it is still known."""
        try:
            return self.jobs.get(info.provenance.get("job", ""))
        except (NotFoundError, InvalidArgumentError):
            return None

    # -------------------------------------------------------- sections

    def _training(self, job: JobRecord) -> Section:
        result = job.result
        facts = {"job": job.name}
        if isinstance(result, TrainResult):
            facts |= {
                "best epoch": f"{result.best_epoch} of {result.epochs_run}",
                "learning rate": f"{result.learning_rate:.3g}",
                "time": f"{result.elapsed_s:.0f} s",
            }
        if isinstance(job.spec, TrainSpec):
            chosen = job.spec.model_dump(exclude_defaults=True)
            facts |= {key.replace("_", " "): str(value) for key, value in chosen.items()}
        return Section("Training", facts=facts, figures=self._artifacts(job, {"filters"}))

    def _finder(self, job: JobRecord) -> Sequence[Section]:
        finder = job.spec.lr_from if isinstance(job.spec, TrainSpec) else ""
        title = "Learning-rate finder"
        if finder == OWN_FINDER:
            return (guarded(title, lambda: own_range_tests(self.jobs.log(job.name))),)
        if not finder:
            return ()
        return (guarded(title, lambda: Section(title, figures=self._artifacts(self.jobs.get(finder), set()))),)

    def _artifacts(self, job: JobRecord, left_out: set[str]) -> list[FigureFile]:
        """The figures that a job drew."""
        folder = artifacts_folder(self.data_dir, job.name)
        wanted = [
            a
            for a in job.artifacts
            if a.media_type.startswith("image/") and a.name.partition(".")[0] not in left_out
        ]
        return [
            FigureFile(a.name, a.media_type, (folder / a.name).read_bytes())
            for a in wanted
            if (folder / a.name).is_file()
        ]

    def _confusions(self, asked: Question, stop: ShouldStop) -> Section:
        answer = self._confusion_matrix(asked, stop)
        rows = [(p.label, p.predicted, str(p.count)) for p in answer.most_confused]
        facts = {"accuracy": f"{answer.accuracy:.2%}", "loss": f"{answer.loss:.4f} nats"}
        table = Table(("label", "taken for", "times"), rows)
        return Section("Confusion matrix", facts=facts, table=table, figures=files(answer.figures))

    def _reliability(self, asked: Question, stop: ShouldStop) -> Section:
        answer = self._calibration(asked, 15, "equal_width", stop)
        facts = {
            "calibration error": f"{answer.before.expected_calibration_error:.2%}",
            "at the fitted temperature": f"{answer.after.expected_calibration_error:.2%}",
            "temperature": f"{answer.model_temperature:.3g}, fitted {answer.temperature:.3g} times that",
        }
        return Section("Calibration", facts=facts, figures=files(answer.figures))

    def _gallery(self, asked: Question, order: str, stop: ShouldStop) -> Section:
        answer = self._top_losses(asked, order, _GALLERY, "", "", stop)
        return Section(_title(order), _TEXTS[order], figures=files(answer.figures))

    def _classes(self, asked: Question, labels: Sequence[str], stop: ShouldStop) -> Section:
        """A table of all classes, and of the first ones the pictures that stand out."""
        answer = self._confusion_matrix(asked, stop)
        counts = np.array(answer.counts).reshape(len(answer.labels), -1)
        rows = [_class_row(answer.labels, i, row) for i, row in enumerate(counts)]
        figures = []
        for number, label in enumerate(labels[:_CLASSES], 1):
            for order in _TEXTS:
                found = self._top_losses(asked, order, _OF_A_CLASS, label, "", stop)
                figures += renamed(number, found.figures if found.items else [])
        text = "The most incorrect, most uncertain and most correct pictures of each class"
        text += f" (the first {_CLASSES} of {len(labels)})." if len(labels) > _CLASSES else "."
        table = Table(("label", "pictures", "right", "else most often taken for"), rows)
        return Section("Class by class", text, table=table, figures=figures)

    def _worst(self, asked: Question, stop: ShouldStop) -> list[str]:
        try:
            return [x.path for x in self._top_losses(asked, "most_incorrect", _GALLERY, "", "", stop).items]
        except FailedPreconditionError:  # no pictures in this part; the sections above say so
            return []

    def _suspects(self, asked: Question, stop: ShouldStop) -> Section:
        answer = self._label_issues(asked.model, asked.dataset, ("train", "valid"), _ISSUES, stop)
        text = f"{answer.suspected} pictures have neighbours with another label, {answer.confident} clearly so."
        return Section("Labels that are probably wrong", text, figures=files(answer.figures))

    def _copies(self, asked: Question, stop: ShouldStop) -> Section:
        answer = self._duplicates(asked.model, asked.dataset, ("train", "valid"), None, _GALLERY, stop)
        title = "Pictures that show the same"
        return Section(title, f"{answer.found} pairs.", figures=files(answer.figures) if answer.found else ())


def _class_row(labels: Sequence[str], i: int, counts: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """A class, its pictures, how many are right, and for what the others are taken most often."""
    others = counts.copy()
    others[i] = 0
    taken_for = f"{labels[others.argmax()]} ({others.max()})" if others.any() else ""
    return labels[i], str(counts.sum()), str(counts[i]), taken_for


def _overview(info: ModelInfo) -> Section:
    facts = {
        "architecture": info.architecture,
        "classes": ", ".join(info.labels),
        "image size": f"{info.preprocessing.image_size} pixels",
        "parameters": f"{info.parameter_count:,}",
        **{f"valid {name}": f"{value:.4g}" for name, value in sorted(info.metrics.items())},
        "temperature": f"{info.description.temperature:.3g}",
        **{name.replace("_", " "): value for name, value in sorted(info.provenance.items()) if name != "recipe"},
    }
    return Section("The model", facts=facts)


def _kernels() -> Section:
    info = kernels.info()
    rows = [(v.name, v.op, v.needs, f"{v.calls:,}") for v in info.variants if v.calls]
    fallbacks = [f"{what}: {calls:,} calls" for what, calls in info.fallbacks.items()]
    text = "Fell back to ATen: " + "; ".join(fallbacks) if fallbacks else "No call fell back to ATen."
    facts = {"instruction set": f"{info.isa_in_use} (best found: {info.isa_found})"}
    table = Table(("variant", "operator", "needs", "calls since the server started"), rows)
    return Section("What runs underneath", text, facts, table)


def _title(order: str) -> str:
    return order.replace("_", " ").capitalize()
