"""`pyserve lr-find` and `pyserve train`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from pyserve.cli import exits
from pyserve.cli.jobs import finish
from pyserve.cli.options import spec_options
from pyserve.cli.output import Address, AsJson, connect, note, print_json
from pyserve.cli.progress import job_display, upload
from pyserve.client import DEFAULT_ADDRESS, Client
from pyserve.client.archive import prepared
from pyserve.errors import InvalidArgumentError, NotFoundError
from pyserve.spec import RESOURCE_ID, FindLearningRateSpec, TrainSpec, parse
from pyserve.v1 import jobs_pb2

Data = Annotated[
    str,
    typer.Argument(
        help="datasets/{id}, or a local folder or archive, which is uploaded first.", metavar="DATASET"
    ),
]
Detach = Annotated[bool, typer.Option("--detach", help="Only start the job: print its name and leave.")]
CancelOnInterrupt = Annotated[
    bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels the job instead of leaving it running.")
]
_ANY_DATASET = "datasets/any"
_PLAYS_NO_PART = ("epochs", "learning_rate", "lr_from", "lr_from_policy", "cycle_epochs", "cycle_mult")


def add_to(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.command("lr-find", epilog=exits.EXIT_CODES)(lr_find)
    parent.command("train", epilog=exits.EXIT_CODES)(train)


@spec_options(FindLearningRateSpec, TrainSpec, leave_out=("training", "dataset", "model_id", *_PLAYS_NO_PART))
def lr_find(
    data: Data,
    detach: Detach = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
    **fields: Any,
) -> None:
    """Find the learning rate by a range test.

    It runs a few steps of the training at growing rates, leaves no trace, and tells what each rule suggests.
    """
    own = {name: value for name, value in fields.items() if name in FindLearningRateSpec.model_fields}
    training = {name: value for name, value in fields.items() if name not in own}
    whole = {**own, "training": {"dataset": _ANY_DATASET, **training}}
    parse(FindLearningRateSpec, whole, "find_learning_rate")
    with connect(address) as client:
        dataset, _ = dataset_for(client, data)
        job = client.find_learning_rate(dataset=dataset, **fields)
        _follow(client, job, detach=detach, cancel_on_interrupt=cancel_on_interrupt, as_json=as_json)


@spec_options(TrainSpec, leave_out=("dataset",))
def train(
    data: Data,
    detach: Detach = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
    **fields: Any,
) -> None:
    """Train a model.

    Ctrl-C leaves the job running on the server and says how to watch or cancel it.
    """
    parse(TrainSpec, {"dataset": _ANY_DATASET, **fields}, "train")
    with connect(address) as client:
        dataset, model_id = dataset_for(client, data)
        job = client.train(dataset=dataset, **{"model_id": model_id, **fields})
        _follow(client, job, detach=detach, cancel_on_interrupt=cancel_on_interrupt, as_json=as_json)


def dataset_for(client: Client, data: str) -> tuple[str, str | None]:
    """The dataset's name, and a model id where the folder's name suggests a better one than the dataset's.

    A local folder becomes datasets/{its name}-{start of its checksum}, so that the same pictures are sent once.
    """
    if re.fullmatch(rf"datasets/{RESOURCE_ID}", data):
        return data, None
    path = Path(data).expanduser()
    if not path.exists():
        raise InvalidArgumentError.field(
            "DATASET", data, "datasets/{id}, or a local folder or archive that exists"
        )
    base = re.sub(r"[^a-z0-9_-]+", "-", path.resolve().name.split(".")[0].lower()).strip("-_")[:50] or "pictures"
    with prepared(path) as archive:
        dataset_id = f"{base}-{archive.sha256[:8]}"
        try:
            name = client.get_dataset(f"datasets/{dataset_id}").name
            note(f"{data} is on the server already: {name}")
        except NotFoundError:
            name = upload(client, archive.path, dataset_id).name
            note(f"uploaded {data} as {name}")
    return name, base


def _follow(client: Client, job: jobs_pb2.Job, *, detach: bool, cancel_on_interrupt: bool, as_json: bool) -> None:
    if detach:
        if as_json:
            print_json(job)
        else:
            print(job.name)
        return
    note(f"{job.name} started")
    try:
        with job_display(job) as display:
            ended = client.wait(job.name, on_event=display.show)
    except KeyboardInterrupt:
        if cancel_on_interrupt:
            client.cancel_job(job.name)
            note(f"{job.name} was asked to stop; it keeps a checkpoint")
        else:
            note(f"{job.name} goes on on the server.")
            note(f"Watch it: pyserve jobs watch {job.name}    Stop it: pyserve jobs cancel {job.name}")
        raise typer.Exit(exits.INTERRUPTED) from None
    finish(ended, as_json)
