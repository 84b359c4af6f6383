"""The command line: what it prints where, its exit codes, and that it asks the server for what was typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from pyserve.cli.output import format_time
from pyserve.spec import FindLearningRateSpec, TrainSpec
from pyserve.v1 import jobs_pb2, models_pb2
from tests.cli_support import Run, runner
from tests.client.fake import FakeServer, details, failing
from tests.processes import heed_ctrl_c


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    server = FakeServer()
    server.start()
    monkeypatch.setenv("PYSERVE_ADDRESS", server.address)
    yield server
    server.stop()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line; without an address of the test's own it finds no server."""
    monkeypatch.setenv("PYSERVE_ADDRESS", os.environ.get("PYSERVE_ADDRESS", "127.0.0.1:1"))
    return runner(capsys)


COMMANDS = (
    *("serve", "config", "doctor", "health", "ui", "lr-find", "train", "predict"),
    *("top-losses", "confusion-matrix", "compare-models", "calibration", "calibrate", "label-issues"),
    *("duplicates", "layers", "filters", "feature-maps", "top-patches", "evolution", "explain"),
    *("image-kernel", "approximate", "report", "kernels", "kernels tune"),
    *(f"datasets {name}" for name in ("upload", "register", "list", "show", "picture", "relabel", "delete")),
    *(f"jobs {name}" for name in ("list", "show", "watch", "cancel", "resume", "delete", "artifacts")),
    *(f"models {name}" for name in ("list", "show", "load", "unload", "alias", "delete", "export", "import")),
    *(f"tokens {name}" for name in ("create", "list", "revoke")),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, run: Run) -> None:
    done = run(*command.split(), "--help")
    assert done.code == 0
    assert f"pyserve {command}" in done.out
    remote = (
        command.split(maxsplit=1)[0] not in ("serve", "config", "doctor", "tokens") and command != "kernels tune"
    )
    assert ("--address" in done.out) == remote


def test_help_names_every_command_and_exit_code(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    assert all(command.split()[0] in done.out for command in COMMANDS)
    assert "130 Ctrl-C" in " ".join(done.out.split())
    assert "..." not in done.out.removeprefix("Usage: pyserve [OPTIONS] COMMAND [ARGS]...")


def test_the_command_line_loads_no_torch() -> None:
    code = "import sys, pyserve.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_train_has_an_option_for_every_field(run: Run) -> None:
    wanted = {name.replace("_", "-") for name in TrainSpec.model_fields} - {"dataset"}
    text = run("train", "--help").out
    assert [name for name in wanted if f"--{name}" not in text] == []
    assert "(default: 64)" in text
    own = {name.replace("_", "-") for name in FindLearningRateSpec.model_fields} - {"training"}
    text = run("lr-find", "--help").out
    assert [name for name in own if f"--{name}" not in text] == []


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.NOT_FOUND, 3),
        (grpc.StatusCode.FAILED_PRECONDITION, 4),
        (grpc.StatusCode.ALREADY_EXISTS, 4),
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
    ],
)
def test_exit_codes(fake: FakeServer, run: Run, status: grpc.StatusCode, code: int) -> None:
    fake.failures = [failing(status, "the sentence", *details())] * 2
    assert run("jobs", "show", "jobs/x") == (code, "", "pyserve: the sentence\n")
    done = run("jobs", "show", "jobs/x", "--json")
    told = json.loads(done.err)["error"]
    assert (told["code"], told["message"], told["metadata"]) == (status.name, "the sentence", {"limit": "3"})
    assert told["fields"] == [{"field": "train.epochs", "description": "got -1"}]


def test_no_server_is_exit_code_5(run: Run) -> None:
    done = run("models", "list", "--address", "127.0.0.1:1")
    assert done.code == 5
    assert done.err == (
        "pyserve: no pyserve server answers at 127.0.0.1:1; start one with `pyserve serve`, "
        "or name another address (--address, PYSERVE_ADDRESS)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "datasets/x", "--epochs", "-1"), "train.epochs: got -1, expected ≥ 1"),
        (("lr-find", "datasets/x", "--mode", "odd"), "find_learning_rate.mode: got 'odd', expected one of"),
        (("lr-find", "datasets/x", "--batch-size", "0"), "find_learning_rate.training.batch_size: got 0"),
        (("train", "datasets/x", "--epochs", "many"), "--epochs"),
        (("train", "no/such/folder"), "DATASET: got 'no/such/folder', expected datasets/{id}, or a local folder"),
        (("jobs", "list", "--state", "odd"), "--state: got 'odd', expected one of queued, running"),
        (("predict", "models/m", "no-such.png"), "images[0]: got 'no-such.png', expected a readable picture file"),
        (("predict", "models/m", "."), "PICTURES: got '.', expected a folder that holds pictures"),
        (("nonsense",), "nonsense"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    fake: FakeServer,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err
    assert not fake.requests


def test_train_sends_only_what_was_typed_and_shows_the_job(fake: FakeServer, run: Run) -> None:
    done = run("train", "datasets/x", "--epochs", "3", "--schedule", "cosine", "--no-freeze-batch-norm")
    assert done.code == 0
    spec = fake.requests[0].train
    assert {field.name for field, _ in spec.ListFields()} == {
        "dataset",
        "epochs",
        "schedule",
        "freeze_batch_norm",
    }
    assert (spec.epochs, spec.schedule, spec.freeze_batch_norm) == (3, "cosine", False)
    assert "SUCCEEDED" in done.out
    assert "jobs/0 started" in done.err


def test_lr_find_sends_fields_of_both_specs(fake: FakeServer, run: Run) -> None:
    done = run("lr-find", "datasets/x", "--steps", "20", "--batch-size", "8", "--detach")
    assert (done.code, done.out) == (0, "jobs/0\n")
    spec = fake.requests[0].find_learning_rate
    assert (spec.steps, spec.training.batch_size) == (20, 8)


def test_training_a_folder_uploads_it_once(fake: FakeServer, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "My Pets"
    for name in ("cat/1.png", "dog/1.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"x")
    fake.failures = [failing(grpc.StatusCode.NOT_FOUND, "none such")]
    assert run("train", str(folder), "--detach").code == 0
    request = fake.requests[-1].train
    assert request.dataset.startswith("datasets/my-pets-")
    assert request.model_id == "my-pets"
    assert [header.dataset_id for header in fake.requests if hasattr(header, "sha256")] == [request.dataset[9:]]
    fake.requests.clear()
    assert run("train", str(folder), "--detach", "--model-id", "mine").code == 0
    assert not [header for header in fake.requests if hasattr(header, "sha256")]
    assert (fake.requests[-1].train.dataset, fake.requests[-1].train.model_id) == (request.dataset, "mine")


def test_watch_prints_one_json_event_per_line(fake: FakeServer, run: Run) -> None:
    fake.watch_breaks = [4]
    done = run("jobs", "watch", "jobs/x", "--json")
    assert done.code == 0
    assert [json.loads(line)["seq"] for line in done.out.splitlines()] == [str(i) for i in range(1, 11)]


def test_watch_shows_phases(fake: FakeServer, run: Run) -> None:
    phase = jobs_pb2.PhaseStarted(
        name="whole network", phase=3, total_phases=3, epochs=7, learning_rate=0.002, schedule="sgdr"
    )
    fake.events = [
        jobs_pb2.Event(seq=1, phase=phase),
        jobs_pb2.Event(seq=2, state=jobs_pb2.StateChange(state=jobs_pb2.SUCCEEDED)),
    ]
    done = run("jobs", "watch", "jobs/x")
    assert "phase 3/3: whole network, 7 epochs of sgdr, lr 2.00e-03, all layers learning" in done.err


def test_watch_shows_epochs_warnings_and_the_end(fake: FakeServer, run: Run) -> None:
    epoch = jobs_pb2.EpochDone(epoch=1, total_epochs=2, metrics={"accuracy": 0.5}, best=True)
    step = jobs_pb2.StepDone(step=5, total_steps=10, loss=0.3, learning_rates=[0.1], images_per_s=9)
    fake.events = [
        jobs_pb2.Event(seq=1, state=jobs_pb2.StateChange(state=jobs_pb2.RUNNING)),
        jobs_pb2.Event(seq=2, step=step),
        jobs_pb2.Event(seq=3, epoch=epoch),
        jobs_pb2.Event(seq=4, curve_point=jobs_pb2.CurvePoint(learning_rate=0.1, smoothed_loss=2)),
        jobs_pb2.Event(seq=5, warning=jobs_pb2.Warning(code="loss_rising", message="mind the [loss]")),
        jobs_pb2.Event(seq=6, state=jobs_pb2.StateChange(state=jobs_pb2.FAILED, reason="disk full")),
    ]
    fake.end = jobs_pb2.Job(name="jobs/x", state=jobs_pb2.FAILED, reason="disk full")
    done = run("jobs", "watch", "jobs/x")
    assert done.code == 1
    assert "epoch 1/2  accuracy 0.5000" in done.err
    assert "warning (loss_rising): mind the [loss]" in done.err
    assert "FAILED: disk full" in done.err
    assert "disk full" in done.out


def test_lr_find_shows_every_suggestion(fake: FakeServer, run: Run) -> None:
    result = jobs_pb2.LearningRateResult(
        learning_rate=1e-2,
        rule="valley",
        suggestions=[
            jobs_pb2.Suggestion(rule="valley", learning_rate=1e-2, lowest=1e-3, highest=2e-2),
            jobs_pb2.Suggestion(rule="slide", problem="the curve has no slide"),
        ],
        diverged=True,
    )
    training = jobs_pb2.TrainSpec(
        dataset="datasets/x",
        architecture="whitenednet",
        batch_size=512,
        alternate_flips=False,
        image_size=40,
        schedule="constant",
        epochs=5,
        seed=0,
        max_shift=0.0625,
    )
    spec = jobs_pb2.FindLearningRateSpec(training=training)
    fake.end = jobs_pb2.Job(
        name="jobs/x", state=jobs_pb2.SUCCEEDED, find_learning_rate=spec, learning_rate_result=result
    )
    done = run("lr-find", "datasets/x")
    assert done.code == 0
    assert "1.00e-02" in done.out
    assert "← recommended" in done.out
    assert "the curve has no slide" in done.out
    options = done.err.split("pyserve train datasets/x ")[1].split()
    assert options[-2:] == ["--lr-from", "jobs/x"]
    differing = {"--architecture whitenednet", "--no-alternate-flips", "--image-size 40", "--schedule constant"}
    told = " ".join(options[:-2])
    assert all(option in told for option in differing)
    assert len(options[:-2]) == sum(len(option.split()) for option in differing)


def test_artifacts_are_saved_under_their_own_names_only(fake: FakeServer, run: Run, tmp_path: Path) -> None:
    names = ("curves.png", "../../escape.png")
    fake.end = jobs_pb2.Job(name="jobs/x", artifacts=[jobs_pb2.Artifact(name=name) for name in names])
    done = run("jobs", "artifacts", "jobs/x", "--output", str(tmp_path / "out"))
    assert done.code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["curves.png", "escape.png"]
    assert not (tmp_path / "escape.png").exists()
    assert "curves.png" in run("jobs", "artifacts", "jobs/x", "--list").out


def test_tensorboard_files_lie_in_a_folder_for_each_job(fake: FakeServer, run: Run, tmp_path: Path) -> None:
    for _ in range(2):  # the second call writes it anew
        done = run("jobs", "tensorboard", "jobs/x", "--output", str(tmp_path), "--follow")
        assert done.code == 0
        path = Path(done.out.strip())
        assert path.parent == tmp_path / "x"
        assert "tfevents" in path.name  # what TensorBoard looks for
        assert path.read_bytes() == b"header,events"
    (tmp_path / "file").touch()
    done = run("jobs", "tensorboard", "jobs/x", "--output", str(tmp_path / "file"))
    assert done.code == 2
    assert "expected a folder that can be written" in done.err


def test_predict_prints_a_line_per_picture(fake: FakeServer, run: Run, tmp_path: Path) -> None:
    for name in ("a.png", "b.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    done = run("predict", "models/m", str(tmp_path), "--json")
    assert done.code == 0
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["a.png", "b.JPG"]
    assert {line["model"] for line in lines} == {"models/m/versions/1"}


def test_times_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Etc/GMT-3")  # three hours ahead of UTC
    time.tzset()
    assert format_time(Timestamp(seconds=1_700_000_000)) == "2023-11-15 01:13:20"
    monkeypatch.undo()
    time.tzset()
    assert format_time(Timestamp()) == ""


def test_lists_are_tables_or_json(fake: FakeServer, run: Run) -> None:
    done = run("datasets", "list")
    assert done.out.split()[0] == "dataset"
    assert "datasets/5" in done.out
    assert len(json.loads(run("datasets", "list", "--json").out)) == 6


def test_config_tells_value_and_origin(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSERVE_PORT", "6000")
    told = json.loads(run("config", "--json").out)
    assert told["port"] == {"value": 6000, "origin": "environment PYSERVE_PORT"}
    assert told["drain_s"]["origin"] == "default"
    assert "environment PYSERVE_PORT" in run("config").out


@pytest.mark.parametrize("flags", [[], ["--cancel-on-interrupt"]])
def test_ctrl_c_leaves_the_job_or_cancels_it(fake: FakeServer, flags: list[str]) -> None:
    fake.endless = True
    process = subprocess.Popen(
        [sys.executable, "-m", "pyserve", "train", "datasets/x", *flags],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509  # no other thread of this process holds a lock that it needs
    )
    end = time.monotonic() + 30
    while not any(isinstance(r, jobs_pb2.WatchRequest) for r in fake.requests) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    cancelled = [r.name for r in fake.requests if isinstance(r, jobs_pb2.CancelJobRequest)]
    assert cancelled == (["jobs/0"] if flags else [])
    assert ("was asked to stop" in err) if flags else ("pyserve jobs cancel jobs/0" in err)
    assert "Traceback" not in err


def test_commands_on_models(run: Run, fake: FakeServer, tmp_path: Path) -> None:
    assert run("models", "load", "models/m").err == (
        "loaded models/m/versions/1: 2.0 MiB; the server's memory went from 1.0 MiB to 3.0 MiB\n"
    )
    assert run("models", "unload", "models/m").err == (
        "unloaded models/m/versions/1; the server's memory went from 3.0 MiB to 1.0 MiB\n"
    )
    assert json.loads(run("models", "load", "models/m", "--json").out)["model"]["loaded"] is True
    assert "models/m@x is models/m/versions/2" in run("models", "alias", "models/m@x", "models/m/versions/2").err
    assert "removed models/m@x; it was models/m/versions/1" in run("models", "alias", "models/m@x").err
    assert run("models", "delete", "models/m").err == "removed models/m\n"
    path = tmp_path / "m.tar"
    assert run("models", "export", "models/m", str(path)).err.endswith(f"wrote models/m/versions/1 to {path}\n")
    assert path.stat().st_size == 25_600
    assert run("models", "export", "models/m", str(tmp_path / "m.onnx"), "--format", "onnx").code == 0
    assert fake.requests[-1].format == models_pb2.EXPORT_FORMAT_ONNX
    assert "models/other/versions/1" in run("models", "import", "other", str(path)).out
    assert run("models", "import", "other", str(tmp_path / "none")).code == 2


def test_delete_of_a_job(run: Run, fake: FakeServer) -> None:
    name = "jobs/01890000-0000-7000-8000-000000000000"
    done = run("jobs", "delete", name)
    assert (done.code, done.out, done.err) == (0, "", f"{name} is gone\n")
    assert fake.requests == [jobs_pb2.DeleteJobRequest(name=name)]
