"""Batches as a function of (seed, epoch, batch), and the thread behind them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pyserve.data.batches import TrainBatches, ValidBatches
from pyserve.data.manifest import Item
from pyserve.data.order import alternating_flips
from pyserve.data.tensors import PartTensors, load_part
from pyserve.data.transforms import evaluation_view, normalize, presize_for
from pyserve.errors import InvalidArgumentError
from tests.data.support import small_manifest

SIZE = 8
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
VIEW: dict[str, Any] = {"image_size": SIZE, "mean": MEAN, "std": STD, "device": torch.device("cpu")}


def make_part(count: int, presize: int = SIZE) -> PartTensors:
    """Picture i is of one value, which tells it, and of class i % 3."""
    values = (torch.arange(count) * 7 % 256).to(torch.uint8)
    images = values[:, None, None, None].expand(count, 3, presize, presize).contiguous()
    items = tuple(Item(f"{i}.png", i % 3, "train") for i in range(count))
    return PartTensors(images, torch.arange(count) % 3, items)


def train(count: int = 30, batch_size: int = 8, augment: str = "none", seed: int = 0) -> TrainBatches:
    part = make_part(count, presize_for(SIZE, augment))
    return TrainBatches(part, batch_size=batch_size, augment=augment, seed=seed, **VIEW)


def valid(count: int = 30, batch_size: int = 8) -> ValidBatches:
    return ValidBatches(make_part(count), batch_size=batch_size, **VIEW)


def told(batches: Iterator[Any]) -> list[int]:
    """Which pictures came, in their order (of up to 36, whose values differ)."""
    values = [(x[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255 for x, _ in batches]
    return [int(v) for v in torch.cat(values).round()] if values else []


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def test_batches_are_ready_for_the_network() -> None:
    for batches in (train(), valid()):
        for x, y in batches.epoch(0):
            assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
            assert x.shape[1:] == (3, SIZE, SIZE)
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert len(x) == len(y)


def test_every_picture_comes_once_in_an_order_of_its_own() -> None:
    batches = train()
    orders = [told(batches.epoch(epoch)) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == sorted(i * 7 % 256 for i in range(30))
    assert len({tuple(order) for order in orders}) == 3
    assert told(train(seed=1).epoch(0)) != orders[0]


def test_labels_go_with_their_pictures() -> None:
    batches = train()
    for x, y in batches.epoch(4):
        index = ((x[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255).round().long() * 183 % 256  # 183 · 7 = 1 mod 256
        assert torch.equal(y, index % 3)


def test_the_order_is_shuffled_evenly() -> None:
    """Every picture comes first now and then."""
    firsts = [told(train(count=8).epoch(epoch))[0] // 7 for epoch in range(400)]
    assert all(25 < firsts.count(i) < 80 for i in range(8))  # 50 expected, 6.6 the standard deviation


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (30, 8, [8, 8, 8, 6]),
        (32, 8, [8, 8, 8, 8]),
        (33, 8, [8, 8, 8, 8]),  # a single picture left over is left out
        (3, 8, [3]),
        (2, 8, [2]),
        (1, 8, []),
        (0, 8, []),
        (3, 1, [1, 1, 1]),
        (1, 1, []),
    ],
)
def test_sizes_of_training_batches(count: int, batch_size: int, sizes: list[int]) -> None:
    batches = train(count, batch_size)
    assert [len(y) for _, y in batches.epoch(0)] == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize(("count", "sizes"), [(9, [8, 1]), (16, [8, 8]), (1, [1]), (0, [])])
def test_sizes_of_validation_batches(count: int, sizes: list[int]) -> None:
    batches = valid(count)
    assert [len(y) for _, y in batches.epoch(0)] == sizes
    assert len(batches) == len(sizes)


def test_a_picture_left_out_is_another_one_each_time() -> None:
    everything = {i * 7 for i in range(9)}
    missing = [everything - set(told(train(9).epoch(epoch))) for epoch in range(40)]
    assert all(len(one) == 1 for one in missing)
    assert len({next(iter(one)) for one in missing}) > 5


@pytest.mark.parametrize("augment", ["flip", "crop", "standard", "strong"])
@pytest.mark.parametrize("start", [0, 1, 3, 4, 9])
def test_entering_an_epoch_anywhere_gives_the_same_batches(tmp_path: Path, augment: str, start: int) -> None:
    manifest = small_manifest(tmp_path, {"train": 15})
    part = load_part(manifest, "train", presize_for(SIZE, augment), tmp_path / "cache")

    def make(seed: int = 3) -> TrainBatches:
        return TrainBatches(part, batch_size=8, augment=augment, seed=seed, **VIEW)

    whole = list(make().epoch(2))
    assert same(list(make().epoch(2, start)), whole[start:])
    assert not same(list(make().epoch(3)), whole)
    assert not same(list(make(seed=4).epoch(2)), whole)
    assert same(list(make().epoch(2)), whole)


def test_flips_alternate_between_epochs_and_follow_the_picture() -> None:
    count = 30
    ramp = torch.arange(SIZE, dtype=torch.uint8).expand(count, 1, SIZE, SIZE)
    tells = (torch.arange(count) * 7).to(torch.uint8)[:, None, None, None].expand(count, 2, SIZE, SIZE)
    part = PartTensors(torch.cat([tells, ramp], 1), torch.zeros(count).long(), make_part(count).items)
    batches = TrainBatches(part, batch_size=8, augment="flip", seed=0, alternate_flips=True, **VIEW)
    for epoch in (0, 1, 2, 7):
        x = torch.cat([x for x, _ in batches.epoch(epoch)])
        index = (((x[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255).round() / 7).long()
        mirrored = x[:, 2, 0, 0] > x[:, 2, 0, -1]
        assert torch.equal(mirrored, alternating_flips(count, seed=0, epoch=epoch)[index])
    whole = list(batches.epoch(1))
    assert same(list(batches.epoch(1, 2)), whole[2:])


def test_validation_is_the_evaluation_view_in_order() -> None:
    part = make_part(20, 10)
    batches = ValidBatches(part, batch_size=8, **VIEW)
    expected = normalize(evaluation_view(part.images, SIZE), MEAN, STD)
    for epoch in (0, 7):
        got = list(batches.epoch(epoch))
        assert torch.equal(torch.cat([x for x, _ in got]), expected)
        assert torch.equal(torch.cat([y for _, y in got]), part.labels)
    assert same(list(batches.epoch(0, 1)), got[1:])


@pytest.mark.parametrize("batches", [train(300), valid(300)], ids=["train", "valid"])
def test_closing_ends_the_thread(batches: Any) -> None:
    before = threading.active_count()
    stream = batches.epoch(0)
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before
    assert len(list(batches.epoch(0))) == 38
    assert threading.active_count() == before


def test_the_next_batches_are_read_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    taken, take = [], np.take
    monkeypatch.setattr(np, "take", lambda *a, **k: (taken.append(1), take(*a, **k))[1])
    stream = train(300).epoch(0)
    next(stream)
    end = time.monotonic() + 30
    while len(taken) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(taken) == 3  # the one that was given and two ahead, no more
    stream.close()


def test_an_error_of_the_reader_reaches_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    def fail(*args: Any, **options: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(np, "take", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        next(train().epoch(0))


def test_global_generators_are_left_alone() -> None:
    state = torch.get_rng_state()
    list(train(augment="strong").epoch(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_augmentations_are_told() -> None:
    batches = TrainBatches(make_part(9), batch_size=4, augment="flips", seed=0, **VIEW)
    with pytest.raises(InvalidArgumentError, match="augment: got 'flips'"):
        next(batches.epoch(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_of_the_cpu() -> None:
    for augment in ("none", "flip", "crop", "standard", "strong"):
        part = make_part(30, presize_for(SIZE, augment))
        view = {**VIEW, "device": torch.device("cuda")}
        ours = TrainBatches(part, batch_size=8, augment=augment, seed=0, **view)
        cpu = TrainBatches(part, batch_size=8, augment=augment, seed=0, **VIEW)
        for (x, y), (u, v) in zip(ours.epoch(0), cpu.epoch(0), strict=True):
            assert x.device.type == y.device.type == "cuda"
            assert (abs(x.cpu() - u) <= 1e-4).all()
            assert torch.equal(y.cpu(), v)
