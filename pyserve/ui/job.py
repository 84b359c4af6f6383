"""One job, live: its log replayed from the first event and followed, so that a reload shows the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from nicegui import background_tasks, context, ui

from pyserve.client.job_facts import ENDED, is_finder, training_of
from pyserve.errors import PyserveError
from pyserve.ui import frame
from pyserve.ui.charts import Curves
from pyserve.v1 import jobs_pb2

_REFRESH_S = 0.3
_CHART = "w-full h-72"


async def page(job_id: str) -> None:
    """Build the page."""
    with frame.page("Job", beside=job_id):
        content = ui.column().classes("w-full gap-4")
    await _fill(content, f"jobs/{job_id}")


@frame.filled
async def _fill(content: ui.column, name: str) -> None:
    job = await frame.client().get_job(name)
    with content:
        view = JobView(job)
    task = background_tasks.create(view.follow(), name=f"watch {name}")
    context.client.on_delete(task.cancel)


class JobView:
    """What the page shows of a job."""

    def __init__(self, job: jobs_pb2.Job) -> None:
        self._name = job.name
        self._finder, self._training = is_finder(job), training_of(job)
        self._steps = max(job.find_learning_rate.steps * max(job.find_learning_rate.repeats, 1), 1)
        self._curves, self._changed = Curves(), False
        self._client = context.client
        with ui.row().classes("items-center gap-4 w-full"):
            self._state = ui.badge("").props("outline").classes("text-base px-3 py-1")
            with ui.row().classes("gap-1"):
                ui.label("Learning-rate finder on" if self._finder else "Training on")
                ui.link(self._training.dataset.partition("/")[2], f"/{self._training.dataset}")
            ui.space()
            self._cancel = ui.button("Cancel", on_click=self._ask_to_stop).props("outline color=negative")
            self._resume = ui.button("Resume", on_click=self._go_on).props("outline")
        self._bar = ui.linear_progress(0, show_value=False).props('rounded aria-label="progress"')
        self._facts = ui.label("").classes("opacity-70 text-sm")
        self._result = ui.column().classes("w-full gap-2")
        self._range = self._chart("Learning-rate finder")
        self._losses = self._chart("Losses")
        self._accuracies = self._chart("Accuracy")
        with ui.expansion("Log").classes("w-full"):
            self._log = ui.log(max_lines=500).classes("w-full h-64")
        self._drawing = ui.timer(_REFRESH_S, self._draw_news)
        self._shown(job.state)

    @staticmethod
    def _chart(title: str) -> tuple[ui.card, ui.echart]:
        with frame.section(title) as card:
            chart = ui.echart({}, renderer="svg").classes(_CHART)
        card.set_visibility(False)
        return card, chart

    async def follow(self) -> None:
        """Show each event as it comes, until the job has ended; the watch reconnects by itself."""
        try:
            async with aclosing(frame.client().watch(self._name)) as events:
                async for event in events:
                    with self._client:
                        self._take(event)
            job = await frame.client().get_job(self._name)
            with self._client:
                self._finish(job)
        except PyserveError as error:
            with self._client:
                frame.tell(error)

    def _take(self, event: jobs_pb2.Event) -> None:
        kind = event.WhichOneof("event")
        if kind == "state":
            self._shown(event.state.state)
            if event.state.reason:
                self._log.push(event.state.reason)
        elif kind == "warning":
            self._log.push(f"warning: {event.warning.message}")
        elif kind == "log":
            self._log.push(event.log.message)
            self._facts.text = event.log.message
        elif kind == "step":
            self._bar.value = event.step.step / max(event.step.total_steps, 1)
            self._facts.text = _step_facts(event.step)
        elif kind == "curve_point" and self._finder:
            point = event.curve_point
            self._bar.value = min(self._bar.value + 1 / self._steps, 1)
            self._facts.text = f"rate {point.learning_rate:.2g}, loss {point.smoothed_loss:.3f}"
        elif kind == "epoch":
            values = ", ".join(f"{name} {value:.4g}" for name, value in sorted(event.epoch.metrics.items()))
            self._log.push(f"epoch {event.epoch.epoch} of {event.epoch.total_epochs}: {values}")
        self._changed |= self._curves.add(event)

    def _draw_news(self) -> None:
        """Events come faster than charts can be drawn, or looked at."""
        if self._changed:
            self._changed = False
            self._draw()

    def _draw(self, suggestion: float | None = None) -> None:
        drawings: list[tuple[tuple[ui.card, ui.echart], bool, Callable[[], dict[str, Any]]]] = [
            (self._range, self._curves.finds_rate, lambda: self._curves.range_test(suggestion)),
            (self._losses, self._curves.trains, self._curves.losses),
            (self._accuracies, self._curves.trains, self._curves.accuracies),
        ]
        for (card, chart), wanted, options in drawings:
            card.set_visibility(wanted)
            if wanted:
                chart.options.clear()
                chart.options.update(options())
                chart.update()

    def _shown(self, state: jobs_pb2.JobState.ValueType) -> None:
        self._state.text = jobs_pb2.JobState.Name(state).lower()
        color = {jobs_pb2.SUCCEEDED: "positive", jobs_pb2.FAILED: "negative", jobs_pb2.INTERRUPTED: "warning"}
        self._state.props(f"color={color.get(state, 'primary')}")
        self._cancel.set_visibility(state in (jobs_pb2.QUEUED, jobs_pb2.RUNNING))
        self._resume.set_visibility(state == jobs_pb2.INTERRUPTED)
        self._bar.set_visibility(state not in ENDED)

    def _finish(self, job: jobs_pb2.Job) -> None:
        """What came out, and where to go from here."""
        self._shown(job.state)
        self._drawing.cancel()
        found = job.learning_rate_result.learning_rate if self._finder else 0.0
        self._draw(found or None)
        self._facts.text = job.reason
        with self._result:
            if job.error.message:
                ui.label(job.error.message).classes("text-negative")
            if found:
                self._show_rates(job)
            if job.train_result.model:
                self._show_model(job)

    def _show_rates(self, job: jobs_pb2.Job) -> None:
        result = job.learning_rate_result
        ui.label(f"Learning rate {result.learning_rate:.2g}").classes("text-xl")
        others = [s for s in result.suggestions if not s.problem]
        ui.label("by rule: " + ", ".join(f"{s.rule} {s.learning_rate:.2g}" for s in others)).classes("opacity-70")
        ui.button(
            "Train with it", on_click=lambda: ui.navigate.to(f"/{self._training.dataset}?lr_from={self._name}")
        )

    def _show_model(self, job: jobs_pb2.Job) -> None:
        accuracy = job.train_result.metrics.get("accuracy")
        if accuracy is not None:
            ui.label(f"Accuracy {frame.percent(accuracy)}").classes("text-xl")
        with ui.row():
            ui.button("Look at the model", on_click=lambda: ui.navigate.to(f"/{job.train_result.model}"))
            ui.button("Report", on_click=self._report).props("outline")

    @frame.told
    async def _report(self) -> None:
        report = await frame.client().report(self._name)
        ui.download.content(report.html, f"pyserve-{self._name.rpartition('/')[2][:8]}.html", "text/html")

    @frame.told
    async def _ask_to_stop(self) -> None:
        with frame.busy(self._cancel):
            await frame.client().cancel_job(self._name)

    @frame.told
    async def _go_on(self) -> None:
        with frame.busy(self._resume):
            await frame.client().resume_job(self._name)
        ui.navigate.reload()


def _step_facts(step: jobs_pb2.StepDone) -> str:
    rate = f", rate {step.learning_rates[-1]:.2g}" if step.learning_rates else ""
    speed = f", {step.images_per_s:.0f} pictures/s" if step.images_per_s else ""
    return f"{step.phase}: step {step.step} of {step.total_steps}, loss {step.loss:.3f}{rate}{speed}"
