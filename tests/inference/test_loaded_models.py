"""Models in memory: by need and by command, under a budget, and truly out again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pyserve.config import Settings
from pyserve.errors import DataLossError, FailedPreconditionError, NotFoundError, ResourceExhaustedError
from pyserve.inference.description import Preprocessing
from pyserve.inference.loaded_models import LoadedModels
from pyserve.inference.model_store import ModelStore
from pyserve.models import create_model
from tests.inference.test_bundle import LABELS, saved


def store_of(folder: Path, names: Sequence[str]) -> ModelStore:
    store = ModelStore(folder)
    for name in names:
        store.add(name, lambda staging: saved(staging) and None)
    return store


def size_of_one(store: ModelStore, name: str = "models/a") -> int:
    return LoadedModels(store, Settings(), "cpu").get(name).bundle.memory_bytes


def names(models: LoadedModels) -> list[str]:
    return [predictor.name for predictor in models.loaded()]


def version(model: str, number: int = 1) -> str:
    return f"models/{model}/versions/{number}"


def test_the_least_recently_used_model_leaves(tmp_path: Path) -> None:
    store = store_of(tmp_path, ["a", "b", "c"])
    models = LoadedModels(store, Settings(max_models_bytes=int(2.5 * size_of_one(store))), "cpu")
    first = models.get("models/a")
    models.get("models/b")
    assert models.get(version("a")) is first
    assert models.find("models/a") is first
    models.get("models/c")
    assert names(models) == [version("a"), version("c")]
    assert models.find("models/b") is None
    assert len(first.probabilities(torch.zeros(1, 3, 18, 18, dtype=torch.uint8))) == 1


def test_what_was_loaded_on_command_stays(tmp_path: Path) -> None:
    store = store_of(tmp_path, ["a", "b", "c"])
    size = size_of_one(store)
    models = LoadedModels(store, Settings(max_models_bytes=int(2.5 * size)), "cpu")
    predictor, change = models.load("models/a")
    assert predictor.name == version("a")
    assert change.before_bytes > 0
    assert change.after_bytes > 0
    models.load("models/b")
    for _ in range(2):
        for name in ("models/a", "models/b"):
            models.get(name)
    with pytest.raises(ResourceExhaustedError, match=r"models/a/versions/1, models/b/versions/1 stay loaded"):
        models.get("models/c")
    models.unload("models/a")
    assert models.get("models/c").name == version("c")
    assert names(models) == [version("b"), version("c")]


def test_what_was_unloaded_stays_so_until_it_is_loaded(tmp_path: Path) -> None:
    store = store_of(tmp_path, ["a"])
    models = LoadedModels(store, Settings(), "cpu")
    models.get("models/a")
    models.unload("models/a")
    assert names(models) == []
    assert models.is_unloaded(version("a"))
    with pytest.raises(FailedPreconditionError, match="models/a/versions/1 is unloaded: load it first"):
        models.get("models/a")
    store.add("a", lambda staging: saved(staging) and None)
    assert models.get("models/a").name == version("a", 2)  # another version is another model
    models.load(version("a"))
    assert not models.is_unloaded(version("a"))
    assert models.get(version("a")).name == version("a")
    with pytest.raises(NotFoundError):
        models.unload("models/nobody")


def test_the_newest_version_answers_and_the_one_before_stands_in(tmp_path: Path) -> None:
    store = store_of(tmp_path, ["a"])
    models = LoadedModels(store, Settings(), "cpu")
    assert models.stand_in("models/a") is None
    first = models.get("models/a")
    store.add("a", lambda staging: saved(staging) and None)
    assert models.find("models/a") is None
    assert models.stand_in("models/a") is first
    assert models.get("models/a").name == version("a", 2)
    assert models.stand_in("models/a") is models.find(version("a", 2))


def test_a_load_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = store_of(tmp_path, ["a"])
    weights = tmp_path / "models" / "a" / "1" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    models = LoadedModels(store, Settings(), "cpu")
    for load in (models.get, models.load):
        with pytest.raises(DataLossError, match="is damaged"):
            load("models/a")
    assert names(models) == []
    weights.write_bytes(good)
    assert models.get("models/a").name == version("a")


def test_bfloat16(tmp_path: Path) -> None:
    store = store_of(tmp_path, ["a"])
    exact = LoadedModels(store, Settings(), "cpu").get("models/a")
    rounded = LoadedModels(store, Settings(predict_dtype="bfloat16"), "cpu").get("models/a")
    assert rounded.bundle.memory_bytes < 0.9 * exact.bundle.memory_bytes
    pictures = torch.randint(0, 256, (9, 3, 18, 18), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    difference = abs(exact.probabilities(pictures) - rounded.probabilities(pictures))
    assert rounded.probabilities(pictures).dtype == "float32"
    assert (difference < 0.02).all()
    assert difference.max() > 1e-6


CYCLES = """
import gc, sys
from pathlib import Path
from pyserve.config import Settings
from pyserve.inference.loaded_models import LoadedModels
from pyserve.inference.model_store import ModelStore
import torch

torch.set_num_threads(1)
models = LoadedModels(ModelStore(Path(sys.argv[1])), Settings(), "cpu")

def cycle(name):
    predictor, loading = models.load(name)
    size = predictor.bundle.memory_bytes
    side = predictor.bundle.preprocessing.presize
    predictor.probabilities(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    del predictor
    return size, loading, models.unload(name)

for _ in range(3):
    size, loading, unloading = cycle("models/large")
assert loading.after_bytes - loading.before_bytes > 0.9 * size, (size, loading)
assert unloading.before_bytes - unloading.after_bytes > 0.9 * size, (size, unloading)
gc.freeze()  # as the server does
resident = [cycle("models/small")[2].after_bytes for _ in range(200)]
print(max(resident[:10]), max(resident[-10:]))
"""


def test_two_hundred_cycles_leave_no_trace_in_memory(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for name, architecture, side in (("large", "resnet18", 32), ("small", "resnet20", 16)):
        store.add(
            name,
            lambda folder, architecture=architecture, side=side: (
                saved(  # type: ignore[misc]
                    folder,
                    create_model(architecture, len(LABELS)),
                    architecture=architecture,
                    preprocessing=Preprocessing(image_size=side, presize=side, mean=(0.5,) * 3, std=(0.5,) * 3),
                    golden_inputs=torch.zeros(1, 3, side, side, dtype=torch.uint8),
                )
                and None
            ),
        )
    done = subprocess.run(
        [sys.executable, "-c", CYCLES, tmp_path], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    first, last = map(int, done.stdout.split())
    assert last <= 1.05 * first
