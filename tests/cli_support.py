"""The command line, run inside the test's process."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from pyserve.cli import main


class Done(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `pyserve` with arguments."""

    def call(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        code = caught.value.code
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    return call
