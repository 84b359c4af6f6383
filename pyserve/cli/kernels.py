"""`pyserve kernels`: what runs underneath a server, and the tuner, which works on this machine and needs none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pyserve.cli.exits import EXIT_CODES, INTERRUPTED
from pyserve.cli.output import Address, AsJson, connect, note, print_facts, print_json, print_table
from pyserve.cli.server import server_needed
from pyserve.client import DEFAULT_ADDRESS
from pyserve.v1 import insight_pb2

app = typer.Typer(
    help="Show what runs underneath: every choice of a kernel and why, and what fell back to ATen.",
    invoke_without_command=True,
)

_VARIABLE = "PYSERVE_KERNEL_TABLE"


def add_to(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.add_typer(app, name="kernels")


@app.callback(epilog=EXIT_CODES)
def show(context: typer.Context, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Show what runs underneath, which kernel each problem takes and why, and what fell back to ATen."""
    if context.invoked_subcommand is not None:
        return
    with connect(address) as client:
        answer = client.kernels()
    if as_json:
        print_json(answer)
    else:
        _print(answer)


@app.command(epilog=EXIT_CODES)
def tune(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The table's file; default: in the cache folder.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads that the measured calls use.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Few problems, to see that it works.")] = False,
) -> None:
    """Measure on this machine which kernel is the fastest for which problem, and write a table of them.

    Takes some minutes, in which nothing else should run. Ctrl-C stops it and leaves a table as it was.
    """
    os.environ.pop(_VARIABLE, None)  # the table that is to be replaced may be of another machine
    with server_needed():
        import torch

        from pyserve.kernels import choices
        from pyserve.kernels import tune as tuner
    torch.set_num_threads(threads)
    path = output or choices.default_path()
    problems = tuner.problems()[:: 40 if quick else 1]
    rows = []
    try:
        for i, problem in enumerate(problems, 1):
            variant, times = tuner.fastest(problem)
            rows.append(tuner.row(problem, variant))
            told = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in times.items())
            note(f"{i}/{len(problems)} {rows[-1]}   ({told})")
    except KeyboardInterrupt:
        note(f"stopped after {len(rows)} of {len(problems)} problems; {path} is as it was")
        raise typer.Exit(INTERRUPTED) from None
    choices.write_table(tuner.table_of(rows).merged(path), path)
    note(f"used where {_VARIABLE}={path}")
    print(path)


def _print(answer: insight_pb2.KernelsResponse) -> None:
    workspace = answer.workspace
    facts: dict[str, Any] = {
        "instruction set": f"{answer.isa_used} (best found: {answer.isa_found})",
        "CUDA kernels": "loaded" if answer.cuda_loaded else "not loaded",
        "threads": answer.threads,
        "measured choices": f"{answer.table}, then the built-in ones" if answer.table else "built in",
        "scratch memory": f"{_mib(workspace.held_bytes)} held, {_mib(workspace.lent_bytes)} of these lent, "
        f"{_mib(workspace.most_held_bytes)} at most, {_mib(workspace.given_back_bytes)} given back",
        **dict(sorted(answer.build.items())),
    }
    print_facts(facts)
    rows = [(v.name, v.op, v.device, v.isa, "yes" if v.available else "no", v.calls) for v in answer.variants]
    print_table(("variant", "operator", "device", "needs", "runs here", "calls"), rows)
    if answer.choices:
        print_table(("chosen", "for", "why"), [(c.variant, c.problem, c.why) for c in answer.choices])
    if answer.fallbacks:
        print_table(("fell back to ATen", "why", "calls"), [(f.op, f.reason, f.calls) for f in answer.fallbacks])
    else:
        print("no call fell back to ATen")


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"
