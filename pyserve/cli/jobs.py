"""`pyserve jobs …`, and how a finished job is told."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pyserve.cli import exits
from pyserve.cli.options import options_of
from pyserve.cli.output import (
    Address,
    AsJson,
    connect,
    format_bytes,
    format_time,
    note,
    print_facts,
    print_json,
    print_table,
    save_figures,
)
from pyserve.cli.progress import job_display
from pyserve.client import DEFAULT_ADDRESS
from pyserve.client.job_facts import training_of
from pyserve.errors import InvalidArgumentError
from pyserve.v1 import jobs_pb2

app = typer.Typer(help="List, watch, cancel, resume jobs; fetch their files.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="jobs/{id}", metavar="JOB")]


def add_to(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.add_typer(app, name="jobs")


@app.command("list")
def list_(
    state: Annotated[list[str] | None, typer.Option(help="Only this state, such as running; repeatable.")] = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    states = [_state(name) for name in state or ()]
    with connect(address) as client:
        jobs = client.list_jobs(states)
    if as_json:
        print_json(jobs)
        return
    rows = [(j.name, _kind(j), _state_name(j), _done(j), _dataset(j), format_time(j.create_time)) for j in jobs]
    print_table(("job", "kind", "state", "done", "dataset", "asked for"), rows)


@app.command()
def show(name: Name, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Describe one job: state, progress, result, files."""
    with connect(address) as client:
        job = client.get_job(name)
    if as_json:
        print_json(job)
    else:
        show_job(job)


@app.command(epilog=exits.EXIT_CODES)
def watch(
    name: Name,
    from_seq: Annotated[int, typer.Option(min=0, help="First event wanted; 0 means all.")] = 0,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Follow a job to its end; --json prints one event per line. Leaving changes nothing for the job."""
    with connect(address) as client:
        if as_json:
            for event in client.watch(name, from_seq):
                print_json(event, line=True)
            ended = client.get_job(name)
            raise typer.Exit(0 if ended.state == jobs_pb2.SUCCEEDED else exits.FAILURE)
        with job_display(client.get_job(name)) as display:
            for event in client.watch(name, from_seq):
                display.show(event)
        finish(client.get_job(name), as_json)


@app.command()
def cancel(name: Name, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Ask a job to stop.

    It does within one training step and keeps a checkpoint.
    """
    with connect(address) as client:
        _tell_state(client.cancel_job(name), as_json)


@app.command()
def resume(name: Name, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Let an INTERRUPTED job go on from its last checkpoint."""
    with connect(address) as client:
        _tell_state(client.resume_job(name), as_json)


@app.command()
def delete(name: Name, address: Address = DEFAULT_ADDRESS) -> None:
    """Remove a job that has ended, with its log, checkpoints and files.

    Models that it made stay.
    """
    with connect(address) as client:
        client.delete_job(name)
    note(f"{name} is gone")


@app.command()
def artifacts(
    name: Name,
    output: Annotated[Path | None, typer.Option(help="Folder to save to; default: the job's id.")] = None,
    only_list: Annotated[bool, typer.Option("--list", help="Only list the files.")] = False,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Save the files that a job made, such as its figures."""
    with connect(address) as client:
        job = client.get_job(name)
        if only_list:
            if as_json:
                print_json(list(job.artifacts))
                return
            rows = [(a.name, a.media_type, format_bytes(a.size_bytes)) for a in job.artifacts]
            print_table(("file", "type", "size"), rows)
            return
        folder = output or Path(name.rsplit("/", 1)[-1])
        paths = save_figures((client.get_artifact(name, a.name) for a in job.artifacts), folder)
    if as_json:
        print_json({"files": [str(path) for path in paths]})
    else:
        print("\n".join(map(str, paths)))


@app.command()
def tensorboard(
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of event files.")] = Path("runs"),
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Write a job's log as an event file for TensorBoard.

    Look at it with: tensorboard --logdir runs
    """
    with connect(address) as client:
        path = client.tensorboard(name, output, follow=follow)
    if as_json:
        print_json({"file": str(path)})
    else:
        print(path)


def finish(job: jobs_pb2.Job, as_json: bool) -> None:
    """Print an ended job and exit with 0 where it succeeded, else 1."""
    if as_json:
        print_json(job)
    else:
        show_job(job)
        if job.state == jobs_pb2.INTERRUPTED:
            note(f"It can go on from its last checkpoint: pyserve jobs resume {job.name}")
        elif job.HasField("train_result"):
            note(f"All of it on one page: pyserve report {job.name}")
    if job.state != jobs_pb2.SUCCEEDED:
        raise typer.Exit(exits.FAILURE)


def show_job(job: jobs_pb2.Job) -> None:
    """A job on stdout."""
    facts: dict[str, object] = {
        "job": job.name,
        "kind": _kind(job),
        "state": _state_name(job),
        "reason": job.reason,
        "dataset": _dataset(job),
        "done": _done(job),
        "asked for": format_time(job.create_time),
        "began": format_time(job.start_time),
        "ended": format_time(job.end_time),
        "attempt": job.attempt if job.attempt > 1 else "",
        **_result(job),
        "files": ", ".join(a.name for a in job.artifacts),
    }
    print_facts(facts)
    if job.HasField("learning_rate_result"):
        _show_suggestions(job)


def _result(job: jobs_pb2.Job) -> dict[str, object]:
    if not job.HasField("train_result"):
        return {}
    result = job.train_result
    stopped = " (stopped early)" if result.stopped_early else ""
    return {
        "model": result.model,
        **{f"valid {name}": float(value) for name, value in sorted(result.metrics.items())},
        "best epoch": f"{result.best_epoch} of {result.epochs_run}{stopped}",
        "learning rate": result.learning_rate,
        "time": f"{result.elapsed_s:.1f} s",
    }


def _show_suggestions(job: jobs_pb2.Job) -> None:
    result = job.learning_rate_result
    rows = []
    for s in result.suggestions:
        spread = f"{s.lowest:.2e} – {s.highest:.2e}" if s.learning_rate else s.problem
        mark = "← recommended" if s.rule == result.rule else ""
        rows.append((s.rule, f"{s.learning_rate:.2e}" if s.learning_rate else "none", spread, mark))
    print_table(("rule", "learning rate", "spread", ""), rows)
    if not result.diverged:
        note("The loss did not diverge before the last rate: a higher --end-lr may show more.")
    options = [*options_of(training_of(job)), "--lr-from", job.name]
    note(f"Train with it: pyserve train {_dataset(job)} {shlex.join(options)}")


def _tell_state(job: jobs_pb2.Job, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        print(f"{job.name} is {_state_name(job)}")


def _state(name: str) -> jobs_pb2.JobState.ValueType:
    known = jobs_pb2.JobState.keys()[1:]
    if name.upper() not in known:
        raise InvalidArgumentError.field("--state", name, f"one of {', '.join(known).lower()}")
    return jobs_pb2.JobState.Value(name.upper())


def _state_name(job: jobs_pb2.Job) -> str:
    return jobs_pb2.JobState.Name(job.state)


def _kind(job: jobs_pb2.Job) -> str:
    return {"train": "train", "find_learning_rate": "lr-find"}.get(job.WhichOneof("spec") or "", "")


def _dataset(job: jobs_pb2.Job) -> str:
    return training_of(job).dataset


def _done(job: jobs_pb2.Job) -> str:
    p = job.progress
    return f"{p.step}/{p.total_steps} steps, {p.epoch}/{p.total_epochs} epochs" if p.total_steps else ""
