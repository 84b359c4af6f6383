"""A job's events as a progress bar, with a line for each epoch and warning, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from pyserve.cli.output import console
from pyserve.client import Client
from pyserve.client.job_facts import ENDED
from pyserve.spec import FindLearningRateSpec
from pyserve.v1 import datasets_pb2, jobs_pb2


class JobDisplay:
    """Shows events as they come; made by `job_display`."""

    def __init__(self, progress: Progress, job: jobs_pb2.Job) -> None:
        self._progress = progress
        self._range_points = _range_points(job)
        self._task = progress.add_task("waits", total=None, facts="")
        self._points = 0

    def show(self, event: jobs_pb2.Event) -> None:
        """Take in one event."""
        kind = event.WhichOneof("event")
        if kind == "state":
            self._state(event.state)
        elif kind == "phase":
            self._phase(event.phase)
        elif kind == "step":
            self._step(event.step)
        elif kind == "epoch":
            self._epoch(event.epoch)
        elif kind == "warning":
            self._print(f"warning ({event.warning.code}): {event.warning.message}", style="yellow")
        elif kind == "curve_point":
            self._points += 1
            facts = f"lr {event.curve_point.learning_rate:.2e}  loss {event.curve_point.smoothed_loss:.4f}"
            self._progress.update(
                self._task,
                description="range test",
                completed=self._points,
                total=self._range_points,
                facts=facts,
            )
        elif kind == "log":
            self._print(event.log.message)

    def _state(self, state: jobs_pb2.StateChange) -> None:
        name = jobs_pb2.JobState.Name(state.state)
        self._progress.update(self._task, description=name.lower())
        if state.state in ENDED and state.state != jobs_pb2.SUCCEEDED:
            self._print(f"{name}: {state.reason}" if state.reason else name, style="red")

    def _phase(self, phase: jobs_pb2.PhaseStarted) -> None:
        learns = "the head" if phase.frozen else "all layers"
        self._print(
            f"phase {phase.phase}/{phase.total_phases}: {phase.name}, {phase.epochs} epochs of {phase.schedule}, "
            f"lr {phase.learning_rate:.2e}, {learns} learning"
        )
        self._points = 0

    def _step(self, step: jobs_pb2.StepDone) -> None:
        facts = f"loss {step.loss:.4f}"
        if step.learning_rates:
            facts += f"  lr {step.learning_rates[-1]:.2e}"
        if step.images_per_s:
            facts += f"  {step.images_per_s:.0f} pictures/s"
        self._progress.update(
            self._task,
            description=step.phase or "running",
            completed=step.step,
            total=step.total_steps or None,
            facts=facts,
        )

    def _epoch(self, epoch: jobs_pb2.EpochDone) -> None:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in sorted(epoch.metrics.items()))
        best = "  best so far" if epoch.best else ""
        self._print(f"epoch {epoch.epoch}/{epoch.total_epochs}  {metrics}  {epoch.elapsed_s:.1f} s{best}")

    def _print(self, line: str, style: str = "") -> None:
        self._progress.console.print(Text(line, style=style))


def _range_points(job: jobs_pb2.Job) -> int:
    """Mini-batches that a range test does at most; it ends early where the loss diverges.

    A training's own ones have the default number.
    """
    asked = job.find_learning_rate
    fields = FindLearningRateSpec.model_fields
    steps = asked.steps if asked.HasField("steps") else fields["steps"].default
    return int(steps * (asked.repeats if asked.HasField("repeats") else fields["repeats"].default))


@contextmanager
def job_display(job: jobs_pb2.Job) -> Iterator[JobDisplay]:
    """A progress bar for one job, gone when it ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        yield JobDisplay(progress, job)


@contextmanager
def transfer_bar(before: str, during: str, after: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for bytes, gone at the end; gives what takes (bytes done, bytes in all).

    Args:
        before, during, after: what happens before the first byte, while bytes travel, after the last one.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(before, total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, description=during if done < total else after, completed=done, total=total)

        yield show


def upload(client: Client, path: Path, dataset_id: str, **options: object) -> datasets_pb2.Dataset:
    """`Client.upload_dataset` with a progress bar."""
    with transfer_bar("packs", "uploads", "server reads the pictures") as show:
        return client.upload_dataset(path, dataset_id, progress=show, **options)  # type: ignore[arg-type]
