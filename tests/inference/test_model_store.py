"""Versions appear whole or not at all, in order, whoever adds them; errors name what exists."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyserve.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from pyserve.inference.description import DESCRIPTION_FILE
from pyserve.inference.model_store import ModelStore
from tests.inference.support import write_description


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path)


def leftovers(data_dir: Path) -> list[Path]:
    return list((data_dir / "models").glob(".*"))


def test_versions_count_up_and_the_newest_answers(store: ModelStore, tmp_path: Path) -> None:
    assert store.add("pets", write_description) == "models/pets/versions/1"
    assert store.add("pets", lambda folder: write_description(folder, metrics={"accuracy": 0.9})) == (
        "models/pets/versions/2"
    )
    newest = store.get("models/pets")
    assert (newest.name, newest.version, newest.metrics) == ("models/pets/versions/2", 2, {"accuracy": 0.9})
    first = store.get("models/pets/versions/1")
    assert (first.architecture, first.labels, first.dataset) == ("smallnet", ("cat", "dog"), "datasets/pets")
    assert (first.size_bytes, first.parameter_count, first.create_time) == (6, 10, 1000.0)
    assert first.weights_path == tmp_path / "models" / "pets" / "1" / "model.safetensors"
    assert first.preprocessing.image_size == 16
    assert leftovers(tmp_path) == []


def test_version_ten_is_newer_than_nine(store: ModelStore) -> None:
    for _ in range(10):
        store.add("pets", write_description)
    assert store.get("models/pets").version == 10


@pytest.mark.parametrize(
    "name",
    [
        "",
        "pets",
        "models/",
        "models/../etc",
        "models/pets/versions/0",
        "models/Pets",
        "models/pets/1",
        "models/a\n",
    ],
)
def test_bad_names(store: ModelStore, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^name: got .*, expected models/\{model_id\}"):
        store.get(name)


@pytest.mark.parametrize("model_id", ["", "..", "a/b", "-a", "A", "a" * 64])
def test_bad_ids(store: ModelStore, tmp_path: Path, model_id: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^model_id: got "):
        store.add(model_id, write_description)
    assert list((tmp_path / "models").iterdir()) == []


def test_not_found_names_what_exists(store: ModelStore) -> None:
    with pytest.raises(NotFoundError, match="models/x does not exist; no model exists yet"):
        store.get("models/x")
    for i in range(12):
        store.add(f"m{i:02}", write_description)
    with pytest.raises(
        NotFoundError, match=r"models/x does not exist; existing: models/m00, .*, models/m09 and 2 more$"
    ):
        store.get("models/x")
    with pytest.raises(NotFoundError, match=r"models/m03 has no version 7; newest first it has: 1$"):
        store.get("models/m03/versions/7")


def test_a_writer_that_fails_leaves_nothing(store: ModelStore, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.add("pets", fail)
    with pytest.raises(DataLossError, match=r"models/pets: bundle\.json cannot be read"):
        store.add("pets", lambda folder: None)
    assert list((tmp_path / "models").iterdir()) == []


def test_many_writers_at_once_get_different_versions(store: ModelStore, tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def write(folder: Path) -> None:
        write_description(folder)
        barrier.wait(10)

    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(lambda _: store.add("pets", write), range(8)))
    assert names == {f"models/pets/versions/{n}" for n in range(1, 9)}
    assert leftovers(tmp_path) == []


CRASHING_WRITER = """
import os, sys
from pathlib import Path
from pyserve.inference.model_store import ModelStore

def write(folder):
    (folder / "model.safetensors").write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.readline()
    os._exit(9)

ModelStore(Path(sys.argv[1])).add("pets", write)
"""


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CRASHING_WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        ModelStore(tmp_path)
        assert len(leftovers(tmp_path)) == 1
        writer.communicate("\n", timeout=30)
    assert len(leftovers(tmp_path)) == 1
    store = ModelStore(tmp_path)
    assert leftovers(tmp_path) == []
    assert list(store.list()[0]) == []


def test_pages_are_newest_first_and_complete(store: ModelStore) -> None:
    for i, model_id in enumerate(["a", "b", "a", "c", "b"]):
        store.add(model_id, lambda folder, i=i: write_description(folder, create_time=float(i // 2)))  # type: ignore[misc]
    everything = [info.name for info in store.list()[0]]
    times = [info.create_time for info in store.list()[0]]
    assert times == sorted(times, reverse=True)
    assert len(set(everything)) == 5
    paged, token = [], ""
    for _ in range(3):
        page, token = store.list(2, token)
        paged += [info.name for info in page]
    assert paged == everything
    assert token == ""


def test_a_page_token_outlives_new_models(store: ModelStore) -> None:
    for i in range(4):
        store.add("a", lambda folder, i=i: write_description(folder, create_time=float(i)))  # type: ignore[misc]
    _, token = store.list(2)
    store.add("b", lambda folder: write_description(folder, create_time=99.0))
    page, _ = store.list(2, token)
    assert [info.version for info in page] == [2, 1]


@pytest.mark.parametrize("token", ["?", "AAAA", "e30=", "WzFd"])
def test_bad_page_tokens(store: ModelStore, token: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^page_token: got "):
        store.list(10, token)


def test_bad_page_size(store: ModelStore) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^page_size: got -1, expected ≥ 0"):
        store.list(-1)


def test_one_damaged_model_does_not_hide_the_others(store: ModelStore, tmp_path: Path) -> None:
    store.add("good", write_description)
    store.add("bad", write_description)
    (tmp_path / "models" / "bad" / "1" / DESCRIPTION_FILE).write_text("{")
    assert [info.model_id for info in store.list()[0]] == ["good"]
    with pytest.raises(DataLossError, match=r"models/bad/versions/1: bundle\.json is damaged"):
        store.get("models/bad")


def test_reading_models_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pyserve.inference.model_store import ModelStore;"
        f"ModelStore(Path({os.fspath(tmp_path)!r})).list(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_aliases(store: ModelStore, tmp_path: Path) -> None:
    for _ in range(3):
        store.add("pets", write_description)
    store.set_alias("models/pets@best", "models/pets/versions/2")
    store.set_alias("models/pets@newest", "models/pets")
    assert store.resolve("models/pets@best") == "models/pets/versions/2"
    assert store.get("models/pets@newest").version == 3
    assert store.get("models/pets/versions/2").aliases == ("best",)
    store.set_alias("models/pets@best", "models/pets@newest")
    assert store.aliases("models/pets") == {"best": 3, "newest": 3}
    assert ModelStore(tmp_path).get("models/pets").aliases == ("best", "newest")
    store.set_alias("models/pets@best", "")
    with pytest.raises(NotFoundError, match="models/pets has no alias best; it has: newest"):
        store.resolve("models/pets@best")
    assert [info.version for info in store.list()[0]] == [3, 2, 1]


def test_names_follow_what_other_processes_do(store: ModelStore, tmp_path: Path) -> None:
    store.add("pets", write_description)
    assert store.resolve("models/pets") == "models/pets/versions/1"
    other = ModelStore(tmp_path)
    for number in range(2, 6):  # at once, within the grain of the file system's clock
        other.add("pets", write_description)
        assert store.resolve("models/pets") == f"models/pets/versions/{number}"
    past = time.time() - 10
    os.utime(tmp_path / "models" / "pets", (past, past))
    assert store.resolve("models/pets") == "models/pets/versions/5"  # from here on it is remembered
    other.add("pets", write_description)
    assert store.resolve("models/pets") == "models/pets/versions/6"
    other.set_alias("models/pets@x", "models/pets/versions/1")
    assert store.resolve("models/pets@x") == "models/pets/versions/1"


def test_resolving_reads_nothing_where_nothing_changed(store: ModelStore, tmp_path: Path) -> None:
    store.add("pets", write_description)
    past = time.time() - 10
    os.utime(tmp_path / "models" / "pets", (past, past))
    store.resolve("models/pets")
    (tmp_path / "models" / "pets" / "7").mkdir()
    os.utime(tmp_path / "models" / "pets", (past, past))
    assert store.resolve("models/pets") == "models/pets/versions/1"


def test_numbers_of_deleted_versions_are_not_given_again(store: ModelStore, tmp_path: Path) -> None:
    for _ in range(3):
        store.add("pets", write_description)
    assert store.delete("models/pets/versions/3") == ["models/pets/versions/3"]
    assert store.get("models/pets").version == 2
    assert store.add("pets", write_description) == "models/pets/versions/4"
    store.set_alias("models/pets@x", "models/pets/versions/1")
    with pytest.raises(FailedPreconditionError, match="models/pets@x points to version 1"):
        store.delete("models/pets/versions/1")
    assert store.delete("models/pets") == [f"models/pets/versions/{n}" for n in (1, 2, 4)]
    with pytest.raises(NotFoundError, match="models/pets does not exist; no model exists yet"):
        store.get("models/pets")
    with pytest.raises(NotFoundError):
        store.delete("models/pets")
    assert store.add("pets", write_description) == "models/pets/versions/5"
    assert store.aliases("models/pets") == {}
    assert leftovers(tmp_path) == []


def test_a_damaged_record_is_told(store: ModelStore, tmp_path: Path) -> None:
    store.add("pets", write_description)
    (tmp_path / "models" / "pets" / "model.json").write_text('{"aliases": {"../x": 1}}')
    with pytest.raises(DataLossError, match=r"models/pets: model\.json is damaged"):
        store.resolve("models/pets")
    assert list(store.list()[0]) == []
