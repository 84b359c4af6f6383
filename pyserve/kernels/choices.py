"""Tables of measured choices: which CPU variant is the fastest for a class of convolutions.

The committed one is `csrc/cpu/choices.inc`. `pyserve kernels tune` writes one for a machine, in the same form, and
the environment variable `PYSERVE_KERNEL_TABLE` names it; its rows then go ahead of the committed ones.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path

from pyserve.errors import InvalidArgumentError
from pyserve.kernels._extension import C

TABLE_VARIABLE = "PYSERVE_KERNEL_TABLE"
_FORMAT = 1
_TUNE = "`pyserve kernels tune` writes one"
_FIRST_LINE = "// pyserve kernel choices, format"
_MEANING = """\
// Written by `pyserve kernels tune`. ISA of the first variant of the list that takes the problem, operator, type,
// kernel, strides, grouping of the channels, channels, filters, output positions; the fastest variant.
"""
_HEADER = re.compile(rf"{_FIRST_LINE} (\d+)\n// cpu: (.*)\n// isa: ([a-z0-9_ ]+)\n")
_in_use = ""
_ROW = re.compile(r"^ROW\((.*)\)$", re.MULTILINE)


@dataclass(frozen=True)
class Table:
    """Measured choices of one machine."""

    cpu: str  # see `cpu_name`
    isas: tuple[str, ...]  # instruction sets that the kernels were capped at, one measurement each
    rows: tuple[str, ...]  # "avx512, conv2d, f32, 3, 3, 1, 1, dense, 64, 64, 2048, winograd_avx512"

    def text(self) -> str:
        """As a file."""
        rows = "".join(f"ROW({row})\n" for row in self.rows)
        return f"{_FIRST_LINE} {_FORMAT}\n// cpu: {self.cpu}\n// isa: {' '.join(self.isas)}\n{_MEANING}{rows}"

    def merged(self, path: Path) -> Table:
        """With the rows of classes that this one lacks from a file, if it is a table of the same processor."""
        try:
            older = read_table(path, "path")
        except InvalidArgumentError:
            return self
        if older.cpu != self.cpu:
            return self
        ours = {_class(row) for row in self.rows}
        kept = [row for row in older.rows if _class(row) not in ours]
        isas = [*older.isas, *(isa for isa in self.isas if isa not in older.isas)]
        return replace(self, isas=tuple(isas), rows=tuple(sorted([*kept, *self.rows], key=_order)))


def cpu_name() -> str:
    """This machine's processor, as tables name it: "AMD EPYC, family 26, model 2"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    first = lines[: lines.index("")] if "" in lines else lines  # of several processors
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}
    named = facts.get("model name") or platform.machine()
    numbers = {"family": facts.get("cpu family"), "model": facts.get("model")}
    return ", ".join([named, *(f"{name} {number}" for name, number in numbers.items() if number)])


def default_path() -> Path:
    """Where the tuner writes if it is told nothing else."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pyserve" / f"kernels-{C.isa_in_use()}.inc"


def read_table(path: Path, name: str) -> Table:
    """A table's file; `name` is what errors call it.

    Raises:
        InvalidArgumentError: it cannot be read, or is no table of this format.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "not text"
        raise InvalidArgumentError.field(
            name, str(path), f"a table of kernel choices ({problem.lower()})"
        ) from None
    header = _HEADER.search(text)
    if header is None or int(header[1]) != _FORMAT:
        found = f"format {header[1]}" if header else "no table of kernel choices"
        raise InvalidArgumentError.field(name, f"{path}: {found}", f"a table of format {_FORMAT}; {_TUNE}")
    return Table(header[2], tuple(header[3].split()), tuple(_ROW.findall(text)))


def use_table(path: Path | None, name: str = "path") -> None:
    """Take a machine's table ahead of the committed one; None takes the committed one alone.

    Raises:
        InvalidArgumentError: it is of another format, processor or instruction set, or names what this build
            lacks; nothing has changed then.
    """
    table = read_table(path, name) if path is not None else Table(cpu_name(), (C.isa_in_use(),), ())
    for measured, here in (((table.cpu,), cpu_name()), (table.isas, C.isa_in_use())):
        if here not in measured:
            raise InvalidArgumentError.field(
                name, f"{path}: measured on {' and '.join(measured)}", f"one for {here}; {_TUNE}"
            )
    try:
        C.load_choices(list(table.rows))
    except ValueError as error:
        raise InvalidArgumentError.field(name, f"{path}: {error}", f"a table for this version; {_TUNE}") from None
    global _in_use  # noqa: PLW0603  the compiled part has one table too
    _in_use = "" if path is None else str(path)


def table_in_use() -> str:
    """The path of the machine's table; "" where there is none."""
    return _in_use


def write_table(table: Table, path: Path) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(table.text())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _class(row: str) -> str:
    return row.rpartition(", ")[0]


def _order(row: str) -> list[tuple[bool, int, str]]:
    """Numbers by value."""
    return [(not field.isdigit(), int(field) if field.isdigit() else 0, field) for field in row.split(", ")]
