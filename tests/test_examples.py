"""The examples run, and the demo keeps its promises: exit codes, no orphans, twice in a row."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.processes import heed_ctrl_c

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture
def demo_pictures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    import demo_pictures

    return demo_pictures


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Forty small pictures of two colours, in two folders."""
    root = tmp_path / "Two Colours"
    rng = np.random.default_rng(0)
    for label, name in enumerate(("blue", "red")):
        (root / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[..., 2 - 2 * label] += 100
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def demo(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / "demo.py", *map(str, arguments)]
    wide = {**os.environ, "COLUMNS": "250"}  # no path is folded
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, env=wide, **options)


def running_in(folder: Path) -> list[str]:
    """Command lines of the processes that were given this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def test_digits_are_written_as_class_folders(demo_pictures: Any, tmp_path: Path) -> None:
    pictures = demo_pictures.digits(tmp_path)
    assert sorted(path.name for path in pictures.folder.iterdir()) == [str(i) for i in range(10)]
    files = list(pictures.folder.rglob("*.png"))
    assert len(files) == 1697
    with Image.open(files[0]) as picture:
        assert picture.size == (32, 32)
    assert len(pictures.unseen) == 100
    assert {path.name for path, _ in pictures.unseen}.isdisjoint(path.name for path in files)
    assert {label for _, label in pictures.unseen} == {str(i) for i in range(10)}


def test_own_pictures_are_linked_and_some_held_out(demo_pictures: Any, tmp_path: Path, colours: Path) -> None:
    pictures = demo_pictures.own_pictures(colours, tmp_path / "out", 2)
    held = {path for path, _ in pictures.unseen}
    links = {path.resolve() for path in pictures.folder.rglob("*.png")}
    assert len(held) == 4
    assert held.isdisjoint(links)
    assert held | links == set(colours.rglob("*.png"))
    assert (pictures.name, pictures.side) == ("two-colours", 16)
    assert all(path.parent.name == label for path, label in pictures.unseen)


def test_own_split_is_kept(demo_pictures: Any, tmp_path: Path, colours: Path) -> None:
    root = tmp_path / "split"
    for part, names in (("train", range(30)), ("valid", range(30, 40))):
        for label in ("blue", "red"):
            (root / part / label).mkdir(parents=True)
            for i in names:
                (colours / label / f"{i}.png").rename(root / part / label / f"{i}.png")
    pictures = demo_pictures.own_pictures(root, tmp_path / "out", 2)
    assert {path.parent.parent for path, _ in pictures.unseen} == {root / "valid"}
    assert pictures.train_count == len(list((pictures.folder / "train").rglob("*.png"))) == 60


@pytest.mark.parametrize("cores", [1, 2, 64])
@pytest.mark.parametrize(("count", "side"), [(10, 8), (1_500, 32), (60_000, 28), (1_300, 300), (100, 4000)])
def test_plans_fit_the_time(demo_pictures: Any, cores: int, count: int, side: int) -> None:
    pictures = demo_pictures.Pictures("x", Path(), [], count, side, "none", "")
    plan = pictures.plan(cores, gpu=False)
    assert plan.architecture == ("smallnet" if side <= 64 else "resnet18")
    needed_s = plan.epochs * count / demo_pictures.capacity(plan.architecture, cores)
    assert plan.epochs == 1 or needed_s <= demo_pictures.TRAIN_S
    assert 1 <= plan.epochs <= 20
    assert plan.batch_size >= 8


def test_many_pictures_are_taken_from_all_classes_in_turn(demo_pictures: Any) -> None:
    items = [demo_pictures.Item("", "ab"[i % 3 == 0], Path(str(i))) for i in range(300)]
    kept = demo_pictures._limit(items, 100)
    labels = [item.label for item in kept]
    assert (labels.count("a"), labels.count("b")) == (50, 50)


def test_wrong_data_is_one_sentence_and_exit_code_2(tmp_path: Path, colours: Path) -> None:
    (tmp_path / "one" / "only").mkdir(parents=True)
    (colours / "red").rename(tmp_path / "one" / "only" / "red")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("precious")
    cases = (
        (tmp_path / "nowhere", tmp_path / "out", "expected a folder with one sub-folder per class"),
        (tmp_path / "one", tmp_path / "out", "with pictures of only, expected at least two folders of pictures"),
        (colours, full, "expected an empty folder or that of an earlier demo"),
    )
    for data, output, words in cases:
        done = demo("--data", data, "--output", output)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    assert (full / "thesis.txt").read_text() == "precious"


def test_demo_leaves_figures_and_no_process_twice_in_a_row(tmp_path: Path, colours: Path) -> None:
    output = tmp_path / "out"
    for _ in range(2):
        done = demo("--data", colours, "--output", output)
        assert done.returncode == 0, done.stdout + done.stderr
        names = {path.name for path in output.glob("*.png")}
        assert {
            "lr_curve.png",
            "training_curves.png",
            "confusion_matrix.png",
            "most_incorrect.png",
            "filters.png",
        } <= names
        assert "4 of 4 right" in done.stdout
        assert all(name in done.stdout.replace("\n", "") for name in names)
        assert running_in(tmp_path) == []


def test_ctrl_c_stops_everything(tmp_path: Path, colours: Path) -> None:
    output = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / "demo.py", "--data", colours, "--output", output],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509  # no other thread of this process holds a lock that it needs
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Find the learning rate" in line:
            break
    time.sleep(1.0)  # somewhere inside the job
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "demo: stopped\n"
    assert running_in(tmp_path) == []


def test_short_examples_explain_themselves() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "upload_train_predict.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Needs a running `pyserve serve`" in done.stdout
