"""The first page: data sets, models, jobs; upload."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path, PurePath

from nicegui import events, ui

from pyserve.client.job_facts import is_finder, training_of
from pyserve.ui import folder, frame
from pyserve.v1 import datasets_pb2, jobs_pb2, models_pb2

_MAX_UPLOAD_BYTES = 8 * 2**30
_ARCHIVES = ".zip,.tar,.tar.gz,.tgz"
_SHOWN_JOBS = 10


async def page() -> None:
    """Build the page."""
    with frame.page("Data sets and models"):
        with frame.section("Your pictures"):
            ui.label(
                "A zip, tar or folder with a sub-folder for each class, train/ and valid/ around them or not."
            ).classes("opacity-70")
            _upload_form()
            listed = ui.column().classes("w-full gap-2")
        with frame.section("Models"):
            models = ui.column().classes("w-full gap-2")
        with frame.section("Jobs"):
            jobs = ui.column().classes("w-full gap-2")
    await _list(listed, models, jobs)


@frame.filled
async def _list(datasets: ui.column, models: ui.column, jobs: ui.column) -> None:
    client = frame.client()
    with datasets:
        _rows([_dataset_row(dataset) for dataset in await client.list_datasets()], "No data sets yet.")
    with models:
        _rows([_model_row(model) for model in await client.list_models()], "No models yet: train one.")
    with jobs:
        _rows([_job_row(job) for job in (await client.list_jobs())[:_SHOWN_JOBS]], "No jobs yet.")


def _rows(rows: list[tuple[str, str, str]], nothing: str) -> None:
    """Links with a fact beside each."""
    if not rows:
        ui.label(nothing).classes("opacity-70")
    for text, target, facts in rows:
        with ui.row().classes("items-baseline gap-x-3 gap-y-0"):
            ui.link(text, target).classes("font-medium")
            ui.label(facts).classes("opacity-70 text-sm")


def _dataset_row(dataset: datasets_pb2.Dataset) -> tuple[str, str, str]:
    return dataset.name.partition("/")[2], f"/{dataset.name}", facts_of(dataset)


def facts_of(dataset: datasets_pb2.Dataset) -> str:
    """Its pictures in a line."""
    facts = (
        f"{len(dataset.classes)} classes, {dataset.train_count} pictures to train on, "
        f"{dataset.valid_count} to validate"
    )
    return facts + (f", {len(dataset.bad_images)} left out: not readable" if dataset.bad_images else "")


def _model_row(model: models_pb2.Model) -> tuple[str, str, str]:
    accuracy = model.metrics.get("accuracy")
    facts = f"{model.architecture}" + ("" if accuracy is None else f", accuracy {frame.percent(accuracy)}")
    return model.name.partition("/")[2], f"/{model.name}", facts


def _job_row(job: jobs_pb2.Job) -> tuple[str, str, str]:
    name = "learning-rate finder" if is_finder(job) else "training"
    return f"{name} on {training_of(job).dataset}", f"/{job.name}", jobs_pb2.JobState.Name(job.state).lower()


def _upload_form() -> None:
    """A name and a file; the name is suggested by the file's."""
    name = ui.input("Name of the data set").classes("w-full sm:w-80")

    @frame.told
    async def send(event: events.UploadEventArguments) -> None:
        dataset_id = name.value.strip() or _suggested(event.file.name)
        progress.set_visibility(True)
        try:
            with tempfile.TemporaryDirectory(prefix="pyserve-ui-") as place:
                path = Path(place, "pictures" + _suffix(event.file.name))
                await event.file.save(path)
                dataset = await frame.client().upload_dataset(path, dataset_id)
        finally:
            progress.set_visibility(False)
            upload.reset()
        ui.navigate.to(f"/{dataset.name}")

    with ui.row().classes("items-center gap-x-4 gap-y-0 w-full"):
        upload = frame.upload(
            "Choose an archive, or drop it here", send, accept=_ARCHIVES, max_bytes=_MAX_UPLOAD_BYTES
        )
        folder.chooser(upload)
    with ui.row().classes("items-center gap-2") as progress:
        ui.spinner()
        ui.label("The server unpacks and reads the pictures …")
    progress.set_visibility(False)


def _suffix(name: str) -> str:
    """The ending that tells an archive's kind."""
    return "".join(PurePath(name).suffixes[-2:]) if name.lower().endswith(".tar.gz") else PurePath(name).suffix


def _suggested(name: str) -> str:
    """A data set's name from a file's."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower().split(".")[0]).strip("-_")[:50] or "pictures"
