"""The cache of decoded pictures: one maker, many readers, and crashes in between."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyserve.data.cache import array_path, cached, forget
from tests.conftest import ROOT

SHAPE = (5, 3, 4, 4)


def picture(index: int) -> Any:
    return np.full(SHAPE[1:], index + 1, np.uint8)


def fill(put: Callable[[int, Any], None]) -> None:
    for index in reversed(range(SHAPE[0])):
        put(index, picture(index))


def never(put: Callable[[int, Any], None]) -> None:
    raise AssertionError("made again")


def ready() -> None:
    raise AssertionError("waited")


def path_in(folder: Path) -> Path:
    return array_path(folder, "d" * 64, "train", 4)


EXPECTED = np.stack([picture(i) for i in range(SHAPE[0])])


def test_it_is_made_once(tmp_path: Path) -> None:
    assert (cached(path_in(tmp_path), SHAPE, fill, ready) == EXPECTED).all()
    again = cached(path_in(tmp_path), SHAPE, never, ready)
    assert (again == EXPECTED).all()
    assert isinstance(again, np.memmap)


def test_keys_do_not_meet(tmp_path: Path) -> None:
    keys = [("a", "train", 4), ("b", "train", 4), ("a", "valid", 4), ("a", "train", 5)]
    assert len({array_path(tmp_path, *key) for key in keys}) == 4


def test_what_a_reader_changes_stays_with_it(tmp_path: Path) -> None:
    first = cached(path_in(tmp_path), SHAPE, fill, ready)
    first[:] = 0
    assert (cached(path_in(tmp_path), SHAPE, never, ready) == EXPECTED).all()


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\1\0", b"hello" * 100])
def test_a_damaged_array_is_made_again(tmp_path: Path, damage: bytes) -> None:
    cached(path_in(tmp_path), SHAPE, fill, ready)
    path_in(tmp_path).write_bytes(damage)
    assert (cached(path_in(tmp_path), SHAPE, fill, ready) == EXPECTED).all()


def test_a_truncated_array_is_made_again(tmp_path: Path) -> None:
    cached(path_in(tmp_path), SHAPE, fill, ready)
    data = path_in(tmp_path).read_bytes()
    path_in(tmp_path).write_bytes(data[:-1])
    assert (cached(path_in(tmp_path), SHAPE, fill, ready) == EXPECTED).all()


def test_an_array_of_another_shape_is_made_again(tmp_path: Path) -> None:
    cached(path_in(tmp_path), SHAPE, fill, ready)
    cached(path_in(tmp_path), (2, *SHAPE[1:]), lambda put: [put(i, picture(i)) for i in range(2)] and None, ready)
    assert (cached(path_in(tmp_path), SHAPE, fill, ready) == EXPECTED).all()


def test_nothing_is_left_where_making_fails(tmp_path: Path) -> None:
    def half(put: Callable[[int, Any], None]) -> None:
        put(0, picture(0))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(path_in(tmp_path), SHAPE, half, ready)
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".lock"}
    assert (cached(path_in(tmp_path), SHAPE, fill, ready) == EXPECTED).all()


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        cached(path_in(tmp_path), SHAPE, never, ready)
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".lock"}


def test_forgetting_leaves_what_is_mapped(tmp_path: Path) -> None:
    array = cached(path_in(tmp_path), SHAPE, fill, ready)
    forget(tmp_path, "d" * 64)
    forget(tmp_path, "d" * 64)
    assert not path_in(tmp_path).parent.exists()
    assert (array == EXPECTED).all()


def test_forgetting_while_it_is_made(tmp_path: Path) -> None:
    def forgotten(put: Callable[[int, Any], None]) -> None:
        fill(put)
        forget(tmp_path, "d" * 64)

    assert (cached(path_in(tmp_path), SHAPE, forgotten, ready) == EXPECTED).all()
    assert (cached(path_in(tmp_path), SHAPE, fill, ready) == EXPECTED).all()


def test_threads_share_the_work(tmp_path: Path) -> None:
    made, results = [], []

    def slow(put: Callable[[int, Any], None]) -> None:
        made.append(threading.get_ident())
        waits.wait(30)  # until another one has been seen waiting
        fill(put)

    waits = threading.Event()
    threads = [
        threading.Thread(target=lambda: results.append(cached(path_in(tmp_path), SHAPE, slow, waits.set)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 1
    assert len(results) == 4
    assert all((array == EXPECTED).all() for array in results)


MAKER = """
import os, sys, time
from pathlib import Path
from tests.data.test_cache import SHAPE, fill, path_in
from pyserve.data.cache import cached

def slow(put):
    print("making", flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "dies":
        os._exit(9)
    fill(put)

cached(path_in(Path(sys.argv[1])), SHAPE, slow, lambda: None)
"""


@pytest.mark.parametrize("ending", ["finishes", "dies"])
def test_another_process_makes_it(tmp_path: Path, ending: str) -> None:
    """This one waits, and takes what the other made, or makes it where the other dies."""
    other = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(tmp_path), ending],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    with other:
        assert other.stdout.readline() == "making\n"
        asked = 0

        def wait() -> None:
            nonlocal asked
            asked += 1
            if asked == 2:
                other.stdin.write("go on\n")  # type: ignore[union-attr]
                other.stdin.flush()  # type: ignore[union-attr]

        array = cached(path_in(tmp_path), SHAPE, never if ending == "finishes" else fill, wait)
        assert (array == EXPECTED).all()
        assert asked >= 2
        assert other.wait(30) == (0 if ending == "finishes" else 9)


def test_waiting_can_be_ended(tmp_path: Path) -> None:
    made, go_on = threading.Event(), threading.Event()

    def slow(put: Callable[[int, Any], None]) -> None:
        made.set()
        go_on.wait(30)
        fill(put)

    def stop() -> None:
        raise InterruptedError

    maker = threading.Thread(target=cached, args=(path_in(tmp_path), SHAPE, slow, ready))
    maker.start()
    made.wait(30)
    with pytest.raises(InterruptedError):
        cached(path_in(tmp_path), SHAPE, never, stop)
    go_on.set()
    maker.join(30)
    assert (cached(path_in(tmp_path), SHAPE, never, ready) == EXPECTED).all()
