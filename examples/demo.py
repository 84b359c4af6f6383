"""The whole of pyserve on real pictures: upload, find the learning rate, train, look at the mistakes, predict.

    make demo                   the handwritten digits that scikit-learn carries
    make demo DATA=folder       your own pictures, one sub-folder per class, with or without train/ and valid/

Starts a server of its own, speaks to it through the Python client, and leaves a folder of figures. The plan
(network, size, epochs) is made from the pictures so that two cores need at most five minutes.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo_pictures import DataProblem, Pictures, digits, own_pictures
from demo_server import running_server
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pyserve.client import Client
from pyserve.errors import PyserveError
from pyserve.v1 import common_pb2, insight_pb2, jobs_pb2

MARKER = ".pyserve-demo"
console = Console(highlight=False)


def main() -> None:
    """Parse the command line, run, and exit: 0 done, 1 failed, 2 wrong arguments, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(description="pyserve from upload to prediction, on real pictures")
    parser.add_argument("--data", type=Path, help="folder with one sub-folder per class; default: digits")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for figures and model")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        with fresh_folder(options.output) as folder:
            demo(options.data, folder)
    except KeyboardInterrupt:
        fail("demo: stopped", 130)
    except DataProblem as problem:
        fail(f"demo: {problem}", 2)
    except (PyserveError, JobFailed) as error:
        fail(f"demo: {error}", 1)


def demo(data: Path | None, folder: Path) -> None:
    """All steps, one after another."""
    begin = time.monotonic()
    cores = len(os.sched_getaffinity(0))
    pictures = own_pictures(data, folder, cores) if data else digits(folder)
    console.print(Text(f"Pictures: {pictures.description}"))
    with running_server(folder / "server", folder / "server.log", console) as address, Client(address) as client:
        figures = Figures(folder)
        heading("Upload")
        dataset = upload(client, pictures)
        plan = pictures.plan(cores, gpu=client.kernels().cuda_loaded)
        console.print(f"Plan: {plan.describe()}")

        heading("Find the learning rate")
        training = {"dataset": dataset, **plan.training()}
        finder = follow(client, client.find_learning_rate(**training, steps=plan.finder_steps))
        figures.save_artifacts(client, finder)
        show_suggestions(finder.learning_rate_result)

        heading("Train")
        job = follow(client, client.train(**training, epochs=plan.epochs, lr_from=finder.name))
        figures.save_artifacts(client, job)
        model = job.train_result.model

        heading("What it gets wrong")
        with console.status("evaluates the validation pictures"):
            matrix = client.confusion_matrix(model)
            losses = client.top_losses(model, count=9)
        figures.save(matrix.figures)
        figures.save(losses.figures)
        show_confusion(matrix)
        show_losses(losses)

        heading("Pictures it has never seen")
        right = predict_unseen(client, model, pictures)
    summary(job, finder, pictures, right, figures, time.monotonic() - begin)


class JobFailed(Exception):  # noqa: N818  # a report, not a fault of the caller
    """A job ended without a result."""


class Figures:
    """The PNG figures of the demo, in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def save(self, figures: Any) -> None:
        """Keep the PNG form of each."""
        for figure in figures:
            if figure.media_type == "image/png":
                name = Path(figure.name).name
                (self.folder / name).write_bytes(figure.data)
                self.names.append(name)

    def save_artifacts(self, client: Client, job: jobs_pb2.Job) -> None:
        """Fetch and keep what a job drew."""
        wanted = [a.name for a in job.artifacts if a.media_type == "image/png"]
        figures: list[common_pb2.Figure] = [client.get_artifact(job.name, name) for name in wanted]
        self.save(figures)


def upload(client: Client, pictures: Pictures) -> str:
    """Send the folder; the dataset's name."""
    with bar() as progress:
        task = progress.add_task("uploads", total=None, facts="")

        def show(sent: int, total: int) -> None:
            what = "uploads" if sent < total else "server reads the pictures"
            progress.update(task, description=what, completed=sent // 1024, total=total // 1024, facts="KiB")

        dataset = client.upload_dataset(pictures.folder, pictures.name, progress=show)
    split = f"{dataset.train_count} to learn from, {dataset.valid_count} to measure"
    console.print(Text(f"{dataset.name}: {len(dataset.classes)} classes, {split}"))
    for bad in dataset.bad_images:
        console.print(Text(f"left out: {bad.path} ({bad.reason})", style="yellow"))
    return dataset.name


def follow(client: Client, job: jobs_pb2.Job) -> jobs_pb2.Job:
    """Show a job's events until it has ended; raise JobFailed where it did not succeed."""
    with bar() as progress:
        task = progress.add_task("starts", total=job.find_learning_rate.steps or None, facts="")

        def show(event: jobs_pb2.Event) -> None:
            kind = event.WhichOneof("event")
            if kind == "step":
                step = event.step
                facts = f"loss {step.loss:.3f}  {step.images_per_s:.0f} pictures/s"
                total = step.total_steps or None
                progress.update(task, description="steps", completed=step.step, total=total, facts=facts)
            elif kind == "curve_point":
                facts = f"learning rate {event.curve_point.learning_rate:.1e}"
                progress.update(task, description="mini-batches", advance=1, facts=facts)
            elif kind == "epoch":
                epoch, metrics = event.epoch, event.epoch.metrics
                line = f"epoch {epoch.epoch:2d}/{epoch.total_epochs}  train loss {metrics['train_loss']:.3f}"
                line += f"  valid loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.1%}"
                progress.console.print(Text(line))
            elif kind == "warning":
                progress.console.print(Text(event.warning.message, style="yellow"))

        ended = client.wait(job.name, on_event=show)
    if ended.state != jobs_pb2.SUCCEEDED:
        raise JobFailed(f"{ended.name} is {jobs_pb2.JobState.Name(ended.state)}: {ended.reason}")
    return ended


def show_suggestions(result: jobs_pb2.LearningRateResult) -> None:
    """What each rule suggests."""
    table = Table("rule", "learning rate", "", box=None)
    for suggestion in result.suggestions:
        rate = f"{suggestion.learning_rate:.1e}" if suggestion.learning_rate else suggestion.problem
        table.add_row(suggestion.rule, rate, "← taken" if suggestion.rule == result.rule else "")
    console.print(table)


def show_confusion(matrix: insight_pb2.ConfusionMatrixResponse, most: int = 12) -> None:
    """The matrix where it fits the screen, else the pairs most often confused."""
    n = len(matrix.labels)
    if n <= most:
        table = Table("label ↓ predicted →", *matrix.labels, box=None)
        for i, label in enumerate(matrix.labels):
            counts = matrix.counts[i * n : (i + 1) * n]
            cells = [
                Text(str(c) if c else "·", style="green" if i == j else "red" if c else "dim")
                for j, c in enumerate(counts)
            ]
            table.add_row(label, *cells)
        console.print(table)
    for pair in matrix.most_confused[:5]:
        console.print(Text(f"{pair.label} taken for {pair.predicted}: {pair.count} times"))


def show_losses(losses: insight_pb2.TopLossesResponse) -> None:
    """The most incorrect predictions."""
    if not losses.items:
        console.print("No validation picture is labelled wrongly.")
        return
    table = Table("most incorrect", "label", "predicted", "probability", box=None)
    for item in losses.items:
        table.add_row(Text(item.path), item.label, item.predicted, f"{item.probability:.1%}")
    console.print(table)


def predict_unseen(client: Client, model: str, pictures: Pictures, shown: int = 10) -> int:
    """Predict the pictures that were held out; how many are right."""
    if not pictures.unseen:
        console.print("Too few pictures to hold some out.")
        return 0
    answer = client.predict(model, [path for path, _ in pictures.unseen], top_k=1)
    best = [prediction.scores[0] for prediction in answer.predictions]
    results = [(path.name, label, score) for (path, label), score in zip(pictures.unseen, best, strict=True)]
    table = Table("picture", "label", "predicted", "probability", box=None)
    for name, label, score in results[:: max(1, len(results) // shown)][:shown]:
        style = "green" if score.label == label else "red"
        table.add_row(Text(name), label, Text(score.label, style=style), f"{score.probability:.1%}")
    console.print(table)
    return sum(score.label == label for _, label, score in results)


def summary(
    job: jobs_pb2.Job, finder: jobs_pb2.Job, pictures: Pictures, right: int, figures: Figures, elapsed_s: float
) -> None:
    """The table at the end, and how to go on."""
    heading("Summary")
    result = job.train_result
    table = Table(box=None, show_header=False)
    accuracy = f"{result.metrics['accuracy']:.2%}"
    rows = {
        "model": f"{result.model} ({job.train.architecture})",
        "learning rate": f"{result.learning_rate:.1e}, found by {finder.learning_rate_result.rule}",
        "validation accuracy": f"{accuracy} (epoch {result.best_epoch} of {result.epochs_run})",
        "unseen pictures": f"{right} of {len(pictures.unseen)} right" if pictures.unseen else "none held out",
        "training time": f"{result.elapsed_s:.0f} s",
        "whole demo": f"{elapsed_s:.0f} s",
        "figures": "\n".join(str(figures.folder / name) for name in figures.names),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    console.print(table)
    model = result.model.split("/versions/")[0]
    console.print(Text(f"\nThe model stays: pyserve serve --data-dir {figures.folder / 'server'}"))
    console.print(Text(f"then, from another shell: pyserve predict {model} PICTURE"))


def heading(text: str) -> None:
    """A line between two steps."""
    console.print()
    console.rule(Text(text, style="bold"), align="left")


def bar() -> Progress:
    """A progress bar with room for facts."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[facts]}"), console=console, transient=True)


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """The output folder without what an earlier demo left, held against a second demo at the same time."""
    if folder.exists() and not (folder / MARKER).exists() and any(folder.iterdir()):
        raise DataProblem(f"--output: got {folder}, expected an empty folder or that of an earlier demo")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / MARKER).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataProblem(f"another demo is writing to {folder}") from None
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != MARKER:
                path.unlink()
        yield folder


def fail(sentence: str, code: int) -> None:
    """Tell what went wrong and exit."""
    print(sentence, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
