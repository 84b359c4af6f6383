"""Models over gRPC by both clients: loaded, unloaded, named, moved, removed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from pyserve.client import Client
from pyserve.errors import CancelledError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from pyserve.v1 import jobs_pb2, models_pb2
from tests.client.fake import Driven
from tests.server.conftest import ServerThread
from tests.server.support import CLASSES, SIZE, Stubs, eventually, failure, png, train_request

PICTURES = [png(i % 3, 900 + i) for i in range(6)]


@pytest.fixture(params=["blocking", "asyncio"])
def client(request: pytest.FixtureRequest, server: ServerThread, trained: jobs_pb2.Job) -> Iterator[Any]:
    made = (Client if request.param == "blocking" else Driven)(server.stubs.address)
    yield made
    made.close()


@pytest.fixture
def model(client: Any, tmp_path: Path) -> Iterator[str]:
    """A copy of "models/colours" that a test may spoil: the name of the model."""
    client.export_model("models/colours", tmp_path / "colours.tar")
    name = f"copy-{uuid.uuid4().hex[:8]}"
    client.import_model(tmp_path / "colours.tar", name)
    yield f"models/{name}"
    with suppress(NotFoundError):
        client.delete_model(f"models/{name}")


def probabilities(client: Any, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    answer = client.predict(name, PICTURES)
    return np.array([[s.probability for s in sorted(p.scores, key=lambda s: s.index)] for p in answer.predictions])


def files(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def tar_of(entries: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_load_and_unload_tell_of_memory(client: Any, model: str) -> None:
    assert not client.get_model(model).loaded
    loaded = client.load_model(model)
    assert (loaded.model.name, loaded.model.loaded) == (f"{model}/versions/1", True)
    assert loaded.model_bytes > 10_000
    assert loaded.memory.before_bytes > 1_000_000
    assert client.get_model(model).loaded
    unloaded = client.unload_model(model)
    assert (unloaded.model.name, unloaded.model.loaded) == (f"{model}/versions/1", False)
    assert unloaded.memory.before_bytes > 1_000_000
    assert unloaded.memory.after_bytes > 1_000_000
    with pytest.raises(FailedPreconditionError, match=f"{model}/versions/1 is unloaded: load it first"):
        client.predict(model, PICTURES)
    client.load_model(model)
    assert probabilities(client, model).shape == (6, 3)


def test_a_model_is_loaded_when_it_is_asked(client: Any, model: str) -> None:
    assert not client.get_model(model).loaded
    assert (probabilities(client, model) == probabilities(client, "models/colours")).all()
    assert client.get_model(model).loaded


def test_an_alias_moves_from_version_to_version(client: Any, model: str, tmp_path: Path) -> None:
    client.import_model(tmp_path / "colours.tar", model.removeprefix("models/"))
    alias = f"{model}@champion"
    with pytest.raises(NotFoundError, match=f"{model} has no alias champion; it has none"):
        client.predict(alias, PICTURES)
    assert list(client.set_alias(alias, f"{model}/versions/1").aliases) == ["champion"]
    assert client.predict(alias, PICTURES).model == f"{model}/versions/1"
    assert not client.get_model(f"{model}/versions/2").loaded
    assert client.set_alias(alias, model).name == f"{model}/versions/2"
    assert client.get_model(f"{model}/versions/2").loaded  # before the alias moved: nobody waited for it
    assert client.predict(alias, PICTURES).model == f"{model}/versions/2"
    assert list(client.get_model(f"{model}/versions/1").aliases) == []
    assert client.get_model(alias).name == f"{model}/versions/2"
    assert client.set_alias(alias, "").name == f"{model}/versions/2"
    with pytest.raises(NotFoundError):
        client.get_model(alias)


def test_bad_aliases(client: Any, model: str) -> None:
    for alias, version, field in (
        (model, model, "alias"),
        (f"{model}@A b", model, "alias"),
        (f"{model}@x", "models/colours", "version"),
        (f"{model}@x", "nonsense", "version"),
    ):
        with pytest.raises(InvalidArgumentError) as info:
            client.set_alias(alias, version)
        assert [v.field for v in info.value.fields] == [field]
    with pytest.raises(NotFoundError):
        client.set_alias(f"{model}@x", f"{model}/versions/7")
    with pytest.raises(NotFoundError, match="has no alias x"):
        client.set_alias(f"{model}@x", "")


def test_deleted_versions_are_gone_and_their_numbers_too(client: Any, model: str, tmp_path: Path) -> None:
    name = model.removeprefix("models/")
    client.import_model(tmp_path / "colours.tar", name)
    client.set_alias(f"{model}@old", f"{model}/versions/1")
    probabilities(client, model)
    with pytest.raises(FailedPreconditionError, match=f"{model}@old points to version 1: move or remove"):
        client.delete_model(f"{model}/versions/1")
    client.delete_model(f"{model}/versions/2")
    with pytest.raises(NotFoundError, match="has no version 2"):
        client.predict(f"{model}/versions/2", PICTURES)
    assert client.predict(model, PICTURES).model == f"{model}/versions/1"
    assert client.import_model(tmp_path / "colours.tar", name).name == f"{model}/versions/3"
    client.delete_model(model)
    with pytest.raises(NotFoundError, match=f"{model} does not exist"):
        client.get_model(model)
    with pytest.raises(NotFoundError, match=f"{model} does not exist"):
        client.delete_model(model)
    assert not [m for m in client.list_models() if m.name.startswith(f"{model}/")]
    assert client.import_model(tmp_path / "colours.tar", name).name == f"{model}/versions/4"


def test_a_model_that_a_job_needs_stays(client: Any, model: str, stubs: Stubs) -> None:
    job = stubs.jobs.Train(train_request(epochs=500, weights=model), timeout=20)
    stubs.wait_for_step(job, 1)
    for name in (model, f"{model}/versions/1"):
        with pytest.raises(FailedPreconditionError, match=f"is in use: wait for {job.name} to end"):
            client.delete_model(name)
    stubs.jobs.Cancel(jobs_pb2.CancelJobRequest(name=job.name), timeout=20)
    stubs.wait(job)
    client.delete_model(model)


def test_what_is_exported_is_imported_with_the_same_answers(client: Any, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    path = tmp_path / "a" / "model.tar"
    path.parent.mkdir()
    exported = client.export_model("models/colours", path, progress=lambda done, all_: told.append((done, all_)))
    assert told[-1] == (path.stat().st_size, path.stat().st_size)
    assert [p.name for p in path.parent.iterdir()] == ["model.tar"]
    assert set(files(path)) == {"bundle.json", "model.safetensors", "golden.safetensors"}
    request_id = str(uuid.uuid4())
    imported = client.import_model(path, "moved", request_id=request_id)
    assert imported.name.startswith("models/moved/versions/")
    assert (imported.architecture, list(imported.labels)) == (exported.architecture, list(CLASSES))
    assert imported.provenance == exported.provenance
    assert (probabilities(client, imported.name) == probabilities(client, exported.name)).all()
    assert client.import_model(path, "moved", request_id=request_id).name == imported.name
    with pytest.raises(InvalidArgumentError, match="used for another request"):
        client.import_model(path, "elsewhere", request_id=request_id)
    again = tmp_path / "again.tar"
    client.export_model("models/colours", again)
    assert again.read_bytes() == path.read_bytes()


def test_an_onnx_file_answers_as_predict(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    exported = client.export_model("models/colours", path, format="onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert (told["name"], json.loads(told["labels"])) == (exported.name, list(CLASSES))
    images = np.random.default_rng(0).random((5, SIZE, SIZE, 3), np.float32)
    answer = client.predict("models/colours", images)
    expected = [[s.probability for s in sorted(p.scores, key=lambda s: s.index)] for p in answer.predictions]
    [found] = session.run(None, {"images": images.transpose(0, 3, 1, 2)})
    assert (np.abs(found - np.array(expected)) <= 1e-4).all()


def test_an_export_holds_up_nobody_and_ends_with_its_caller(
    client: Any, server: ServerThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended = threading.Event(), threading.Event()

    def slow(folder: Path, target: Path, *, name: str, should_stop: Callable[[], bool]) -> None:
        began.set()
        while not should_stop():
            time.sleep(0.01)
        ended.set()
        raise CancelledError("nobody waits")

    monkeypatch.setattr("pyserve.server.services.models.export_onnx", slow)
    request = models_pb2.ExportModelRequest(name="models/colours", format=models_pb2.EXPORT_FORMAT_ONNX)
    stream = server.stubs.models.Export(request, timeout=60)
    assert began.wait(20)
    assert probabilities(client, "models/colours").shape == (6, 3)
    assert not ended.is_set()
    stream.cancel()
    assert ended.wait(20)
    eventually(lambda: not list((server.settings.data_dir / "models").glob(".new-*")))


def test_exports_that_cannot_be(
    client: Any, stubs: Stubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidArgumentError, match="format: got 'tflite', expected one of bundle, onnx"):
        client.export_model("models/colours", tmp_path / "x", format="tflite")
    request = models_pb2.ExportModelRequest(name="models/colours", format=7)  # type: ignore[arg-type]
    assert list(failure(lambda: list(stubs.models.Export(request, timeout=20)))[2]) == ["format"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        FailedPreconditionError, match=r"takes onnx, onnxscript, onnxruntime, which the server lacks"
    ):
        client.export_model("models/colours", tmp_path / "x", format="onnx")
    assert not list(tmp_path.iterdir())


def test_archives_that_are_no_model_leave_nothing(client: Any, tmp_path: Path) -> None:
    good = tmp_path / "good.tar"
    client.export_model("models/colours", good)
    parts = files(good)
    weights = parts["model.safetensors"]
    flipped = weights[:-1] + bytes([weights[-1] ^ 1])
    link = tarfile.TarInfo("bundle.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    damaged = tar_of([*{**parts, "model.safetensors": flipped}.items()])
    cases = {
        "no tar": (b"x" * 5000, "no tar of a model bundle"),
        "empty": (tar_of([]), "lacks bundle.json"),
        "more": (tar_of([*parts.items(), ("x.py", b"")]), "entry 'x.py': expected nothing but files"),
        "outside": (tar_of([("../bundle.json", b"{}")]), "expected nothing but files"),
        "twice": (tar_of([*parts.items(), *parts.items()]), "bundle.json twice"),
        "link": (link.tobuf() + bytes(1024), "expected nothing but files"),
        "cut": (good.read_bytes()[: len(weights) // 2], "no tar of|ends within|lacks"),
        "damaged": (damaged, "the archive: model.safetensors is damaged"),
        "json": (tar_of([*{**parts, "bundle.json": b"{"}.items()]), "the archive: bundle.json is damaged"),
    }
    for name, (data, words) in cases.items():
        path = tmp_path / "bad.tar"
        path.write_bytes(data)
        with pytest.raises(InvalidArgumentError, match=words):
            client.import_model(path, f"bad-{name.replace(' ', '-')}")
    assert not [m for m in client.list_models() if m.name.startswith("models/bad-")]
    with pytest.raises(InvalidArgumentError, match=r"path: got .*, expected an archive file that exists"):
        client.import_model(tmp_path / "none.tar", "x")
    with pytest.raises(InvalidArgumentError, match=r"path: got .*, expected a file that can be written"):
        client.export_model("models/colours", tmp_path / "no" / "such" / "folder.tar")


def test_imports_that_are_not_what_they_say(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    def send(*messages: models_pb2.ImportModelRequest) -> Any:
        return failure(lambda: stubs.models.Import(iter(messages), timeout=20))

    header = {"model_id": "x", "size_bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    chunk = models_pb2.ImportModelRequest(chunk=b"abc")

    def begin(**changes: Any) -> models_pb2.ImportModelRequest:
        return models_pb2.ImportModelRequest(header=models_pb2.ImportHeader(**(header | changes)))

    assert list(send(chunk)[2]) == ["header"]
    assert list(send()[2]) == ["header"]
    assert list(send(begin(), begin())[2]) == ["header"]
    assert list(send(begin(model_id="A b"), chunk)[2]) == ["header.model_id"]
    assert list(send(begin(size_bytes=4), chunk)[2]) == ["header.size_bytes"]
    assert list(send(begin(sha256="0" * 64), chunk)[2]) == ["header.sha256"]
    assert list(send(begin(request_id="mine"), chunk)[2]) == ["header.request_id"]
    assert list(send(begin(size_bytes=10**12), chunk)[2]) == ["header.size_bytes"]


@pytest.mark.parametrize("call", ["get_model", "load_model", "unload_model", "delete_model"])
def test_names_that_are_none(client: Any, call: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"name: got 'models/\.\./x', expected models/\{model_id\}, "):
        getattr(client, call)("models/../x")
    with pytest.raises(NotFoundError, match="models/nobody does not exist"):
        getattr(client, call)("models/nobody")


def test_an_alias_cannot_be_deleted_as_a_model(client: Any, model: str) -> None:
    client.set_alias(f"{model}@x", model)
    with pytest.raises(InvalidArgumentError, match="expected models/"):
        client.delete_model(f"{model}@x")
