from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from pyserve.errors import DataLossError
from pyserve.training.checkpoint import NEWEST, PREVIOUS, Checkpoint, CheckpointStore, load, save, select
from tests.training.support import same


def example(value: float = 1.0) -> Checkpoint:
    tensors = {
        "model.weight": torch.full((2, 3, 4, 4), value).to(memory_format=torch.channels_last),
        "model.count": torch.tensor(7),
        "optimizer.0.empty": torch.empty(0),
        "best.half": torch.tensor([1.5, math.nan], dtype=torch.bfloat16),
    }
    return Checkpoint(tensors, {"value": value, "third": 1 / 3, "none": math.inf})


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path / "c", example())
    back = load(tmp_path / "c")
    assert same(
        {k: v.view(torch.int16) if v.dtype == torch.bfloat16 else v for k, v in back.tensors.items()},
        {k: v.view(torch.int16) if v.dtype == torch.bfloat16 else v for k, v in example().tensors.items()},
    )
    assert back.state == {"value": 1.0, "third": 1 / 3, "none": math.inf}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert select(back.tensors, "model.").keys() == {"weight", "count"}


def test_shared_memory_and_gradients_are_no_obstacle(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(4, 4))
    save(tmp_path / "c", Checkpoint({"a": weight, "b": weight, "c": weight[1:].t()}))
    back = load(tmp_path / "c")
    assert torch.equal(back.tensors["a"], weight)
    assert torch.equal(back.tensors["c"], weight[1:].t())


@pytest.mark.parametrize("damage", ["cut", "flip_tensor", "flip_state", "empty", "foreign", "garbage"])
def test_any_damage_is_found_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(example(1.0))
    store.save(example(2.0))
    path = tmp_path / NEWEST
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip_tensor":
        data[-3] ^= 1
    elif damage == "flip_state":
        data[data.index(b"0.3333") + 3] ^= 1
    elif damage == "foreign":
        from safetensors.torch import save as to_bytes

        data = bytearray(to_bytes({"x": torch.zeros(1)}))
    else:
        data = bytearray(b"" if damage == "empty" else os.urandom(200))
    path.write_bytes(data)
    with pytest.raises(DataLossError, match=r"checkpoint checkpoint\.safetensors"):
        load(path)
    checkpoint, problem = store.load()
    assert checkpoint is not None
    assert checkpoint.state["value"] == 1.0
    assert problem is not None
    assert NEWEST in problem


def test_all_damaged_is_an_error_and_none_is_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "new")
    assert store.load() == (None, None)
    store.save(example(1.0))
    store.save(example(2.0))
    (store.folder / NEWEST).write_bytes(b"x")
    (store.folder / PREVIOUS).write_bytes(b"y")
    with pytest.raises(DataLossError, match=r"no whole checkpoint in new: .*previous"):
        store.load()


def test_two_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for value in (1.0, 2.0, 3.0):
        store.save(example(value))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([NEWEST, PREVIOUS])
    assert load(tmp_path / NEWEST).state["value"] == 3.0
    assert load(tmp_path / PREVIOUS).state["value"] == 2.0


@pytest.mark.parametrize("calls_before", range(8))
def test_a_writer_killed_at_any_call_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls_before: int
) -> None:
    """Every rename and sync is a place to die; the first checkpoint or the second must be there afterwards."""
    store = CheckpointStore(tmp_path)
    store.save(example(1.0))
    calls = 0

    def dying(real):  # type: ignore[no-untyped-def]
        def call(*arguments):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls > calls_before:
                raise KeyboardInterrupt
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying(Path.replace))
        patch.setattr(os, "fsync", dying(os.fsync))
        try:
            store.save(example(2.0))
            survived = True
        except KeyboardInterrupt:
            survived = False
    assert survived == (calls_before >= 6)
    checkpoint, problem = store.load()
    assert problem is None
    assert checkpoint is not None
    assert checkpoint.state["value"] in ((2.0,) if survived else (1.0, 2.0))
    store.save(example(3.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([NEWEST, PREVIOUS])
