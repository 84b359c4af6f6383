"""The commands that look at models: tables for people, JSON for machines, figures in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyserve.v1 import datasets_pb2, insight_pb2
from tests.client.fake import FakeServer
from tests.test_cli import Run, fake, run  # noqa: F401  # fixtures

COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "top-losses": (("models/m", "--label", "a"), ("a/1.png", "87.50%")),
    "confusion-matrix": (("models/m",), ("41", "91.00%", "taken for")),
    "compare-models": (("models/a", "models/b"), ("80.00%", "90.00%", "became right", "0.625", "a/1.png")),
    "calibration": (("models/m",), ("90.0%", "70.0%", "20.00%")),
    "label-issues": (("models/m",), ("a/1.png", "valid", "0% to 100%", "suspected")),
    "duplicates": (("models/m",), ("a/1.png", "b/1.png", "0.95")),
    "filters": (("models/m",), ("stem", "4 × 3 × 3 × 3")),
    "feature-maps": (("models/m", "PICTURE", "--layer", "stem"), ("8 × 6", "3, 1")),
    "top-patches": (("models/m", "stem"), ("2.5", "row 1, column 2")),
    "evolution": (("jobs/j", "stem"), ("5", "a/1.png")),
    "explain": (("models/m", "--path", "a/1.png"), ("asked about", "stem")),
    "image-kernel": (("PICTURE", "blur"), ("5 × 4 pixels",)),
    "approximate": (("sine",), ("0.25", "61")),
}


def typed(command: str, folder: Path) -> list[str]:
    """The command with a picture that exists."""
    picture = folder / "a.png"
    picture.write_bytes(b"picture")
    return [command, *(str(picture) if word == "PICTURE" else word for word in COMMANDS[command][0])]


@pytest.mark.parametrize("command", COMMANDS)
def test_tables_and_figures(fake: FakeServer, run: Run, tmp_path: Path, command: str) -> None:  # noqa: F811
    done = run(*typed(command, tmp_path), "--output", str(tmp_path / "out"))
    assert done.code == 0, done.err
    assert [word for word in COMMANDS[command][1] if word not in done.out] == []
    saved = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert saved.pop("drawn.png") == b"png"
    assert saved.pop("drawn.svg") == b"svg"
    assert saved == ({"filtered.png": b"filtered"} if command == "image-kernel" else {})


@pytest.mark.parametrize("command", COMMANDS)
def test_json(fake: FakeServer, run: Run, tmp_path: Path, command: str) -> None:  # noqa: F811
    done = run(*typed(command, tmp_path), "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["figures"] == []


def test_a_hint_where_figures_are_not_saved(fake: FakeServer, run: Run) -> None:  # noqa: F811
    assert "--output FOLDER" in run("confusion-matrix", "models/m").err


def test_layers_and_calibrate_print_tables_or_json(fake: FakeServer, run: Run) -> None:  # noqa: F811
    done = run("layers", "models/m")
    assert "3 × 5" in done.out
    assert "guided" in done.err
    assert json.loads(run("layers", "models/m", "--json").out)["rule"] == "guided"
    assert "models/m/versions/2" in run("calibrate", "models/m").out
    assert json.loads(run("calibrate", "models/m", "--json").out)["temperature"] == 3


def test_report_writes_a_file(fake: FakeServer, run: Run, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "new" / "page.html"
    done = run("report", "jobs/j", "--output", str(path))
    assert (done.code, done.out) == (0, f"{path}\n")
    assert path.read_bytes() == b"<!DOCTYPE html>"
    told = json.loads(run("report", "models/m", "--output", str(path), "--json").out)
    assert told == {"model": "models/m/versions/1", "path": str(path), "size_bytes": 15}


def test_own_and_learned_kernels(fake: FakeServer, run: Run, tmp_path: Path) -> None:  # noqa: F811
    picture = tmp_path / "a.png"
    picture.write_bytes(b"x")
    assert run("image-kernel", str(picture), "--matrix", "0 1; -2 3.5").code == 0
    assert run("image-kernel", str(picture), "--model", "models/m", "--channel", "4").code == 0
    own, learned = fake.requests
    assert list(own.matrix.values) == [0, 1, -2, 3.5]
    assert learned.learned == insight_pb2.LearnedKernel(model="models/m", channel=4)
    for wrong in ((), ("blur", "--model", "models/m"), ("--matrix", "one two")):
        done = run("image-kernel", str(picture), *wrong)
        assert done.code == 2
        assert "NAME: got" in done.err or "--matrix: got 'one two'" in done.err


def test_a_picture_of_a_dataset_is_saved(fake: FakeServer, run: Run, tmp_path: Path) -> None:  # noqa: F811
    done = run(
        "datasets", "picture", "datasets/d", "a/1.png", "--max-side", "64", "--output", str(tmp_path / "new")
    )
    assert (done.code, done.out) == (0, f"{tmp_path / 'new' / 'p.jpg'}\n")
    assert (tmp_path / "new" / "p.jpg").read_bytes() == b"a/1.png"
    assert fake.requests == [datasets_pb2.GetPictureRequest(name="datasets/d", path="a/1.png", max_side=64)]


def test_relabel_from_options_and_from_a_file(fake: FakeServer, run: Run, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "right.json"
    file.write_text(json.dumps({"a/1.png": "b", "a/2.png": None}))
    done = run(
        *("datasets", "relabel", "datasets/d", "--corrections", str(file)),
        *("--label", "a/x=y.png=b", "--remove", "a/3.png", "--id", "clean"),
    )
    assert done.code == 0, done.err
    request = fake.requests[0]
    assert [(c.path, c.label) for c in request.corrections] == [("a/1.png", "b"), ("a/x=y.png", "b")]
    assert list(request.removed) == ["a/2.png", "a/3.png"]
    assert request.dataset_id == "clean"
    assert "datasets/d, 2 corrections" in done.out
    for wrong in (("--label", "nonsense"), ("--corrections", str(tmp_path / "none.json"))):
        assert run("datasets", "relabel", "datasets/d", *wrong).code == 2
