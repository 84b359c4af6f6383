"""Recipe auto: measure this machine for a moment, then choose what a time budget allows.

What is chosen is another recipe with everything set, told line by line and kept in the job's folder: a resumed job
goes on with it, and whoever wants the same training again asks for just that.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.nn import functional

from pyserve import models
from pyserve.data.cache import array_path
from pyserve.data.images import read_square
from pyserve.data.resampling import resize_with_torch
from pyserve.data.transforms import presize_for
from pyserve.spec import TrainSpec, architecture_defaults
from pyserve.training.budget import MOST_PICTURES, Choice, Speed, Work, batch_size_for, choose
from pyserve.training.callbacks import Callbacks, raise_if_stopped
from pyserve.training.evaluation import logits_of
from pyserve.training.network import Network
from pyserve.training.optim import make_optimizer, parameter_groups
from pyserve.training.prepare import TrainDirs, build_network, choose_device

if TYPE_CHECKING:
    from pyserve.data.manifest import Item, Manifest

PLAN_FILE = "plan.json"
_SMALL = 64  # pixels: networks made for such pictures see no others
_STEP = 32  # between the sizes that come into question
_LEAST_SIZE = 96
_ENLARGED = 1.25  # pictures are blown up by so much at most
_BF16_GAIN = 1.1  # bfloat16 is taken where it is so much faster
_TTA_VIEWS = 5
_SAMPLE = 16
_TIMED_STEPS = 3

Clock = Callable[[], float]


def decide(
    spec: TrainSpec,
    manifest: Manifest,
    dirs: TrainDirs,
    callbacks: Callbacks,
    *,
    elapsed_s: float,
    resume: bool,
    clock: Clock = time.perf_counter,
) -> tuple[TrainSpec, float]:
    """Turn a spec with recipe auto into one that says everything.

    Args:
        spec: what is asked; what it sets beside the budget stays.
        manifest: the data.
        dirs: where to read and write.
        callbacks: hears what was chosen and why; may stop it.
        elapsed_s: of the budget, gone already.
        resume: take what an earlier worker of the job chose, if it came to that.
        clock: seconds.

    Returns:
        The spec, and the seconds planned for its epochs.
    """
    path = dirs.job_dir / PLAN_FILE
    if resume and path.exists():
        return _load(path)
    begun = clock()
    device = choose_device(spec.device)
    native = models.get_architecture(spec.architecture).image_size
    train, valid = manifest.part_items("train"), manifest.part_items("valid")
    side = typical_side(train, Path(manifest.root))
    sizes = (spec.image_size,) if spec.image_size else sizes_for(native, side)
    own = architecture_defaults(spec.architecture)
    batch_size = batch_size_for(len(train), own.get("batch_size", MOST_PICTURES))
    augment = own.get("augment", "crop" if native <= _SMALL else "standard")
    callbacks.on_log(
        f"auto: {len(train)} training and {len(valid)} validation pictures, typically {side} pixels: "
        f"batches of {batch_size}, augmentation {augment}"
    )
    network = build_network(spec, len(manifest.classes), dirs, lambda line: None, device)
    stopwatch = _Stopwatch(network, batch_size, device, clock, callbacks)
    precision = stopwatch.choose_precision(sizes[0])
    speeds = {}
    for size in {sizes[0], sizes[-1]}:
        presize = presize_for(size, augment)
        decoded = array_path(dirs.cache_dir, manifest.digest, "train", presize).exists()
        decode_s = 0.0 if decoded else _decode_s(train, Path(manifest.root), presize, clock)
        speeds[size] = Speed(*stopwatch.measure(size, precision), decode_s)
        callbacks.on_log(
            f"auto: at {size} pixels {1 / speeds[size].train_s:.0f} pictures/s are learnt from, "
            f"{1 / speeds[size].forward_s:.0f} measured ({device.type}, {torch.get_num_threads()} threads)"
        )
    work = Work(len(train), len(valid), bool(spec.weights), _TTA_VIEWS if spec.tta else 0, speeds)
    assert spec.time_budget_minutes is not None  # noqa: S101  the spec's own check
    budget_s = 60 * spec.time_budget_minutes - elapsed_s - (clock() - begun)
    choice = choose(work, sizes, budget_s, batch_size, has_rate=spec.has_own_rate)
    chosen = _spec_of(spec, choice, batch_size=batch_size, augment=augment, precision=precision)
    _tell(chosen, choice, callbacks)
    _save(path, chosen, choice.epochs_s)
    return chosen, choice.epochs_s


def sizes_for(native: int, side: int) -> tuple[int, ...]:
    """Image sizes that come into question, ascending.

    Args:
        native: the network's own size, pixels.
        side: typical short side of the pictures, pixels.
    """
    if native <= _SMALL:
        return (native,)
    largest = min(native, max(_ENLARGED * side, _LEAST_SIZE))
    return tuple(range(_LEAST_SIZE, int(largest) + 1, _STEP))


def typical_side(items: tuple[Item, ...], root: Path) -> int:
    """Median short side of a few pictures, pixels, from their headers."""
    sides = []
    for item in items[:: max(len(items) // _SAMPLE, 1)]:
        with Image.open(root / item.path) as image:
            sides.append(min(image.size))
    return int(statistics.median(sides))


class _Stopwatch:
    """Times steps of a network on noise; its weights are of no further use."""

    def __init__(
        self, network: Network, batch_size: int, device: torch.device, clock: Clock, callbacks: Callbacks
    ) -> None:
        self._network, self._batch_size, self._device = network, batch_size, device
        self._clock, self._callbacks = clock, callbacks
        factors = (1.0,) * len(network.layer_groups)
        groups = parameter_groups(network.model, network.layer_groups, factors, 0.0)
        self._optimizer = make_optimizer("sgd", groups, momentum=0.9)

    def choose_precision(self, size: int) -> str:
        """bfloat16 where a training step is a tenth faster with it."""
        plain, mixed = (self.measure(size, precision)[0] for precision in ("float32", "bfloat16"))
        precision = "bfloat16" if plain / mixed >= _BF16_GAIN else "float32"
        self._callbacks.on_log(f"auto: bfloat16 has {plain / mixed:.2f} × the speed of float32: {precision}")
        return precision

    def measure(self, size: int, precision: str) -> tuple[float, float]:
        """Seconds a picture takes in a training step and in evaluation; least of a few."""
        x = torch.randn(self._batch_size, 3, size, size, device=self._device)
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.zeros(self._batch_size, dtype=torch.int64, device=self._device)

        def train() -> None:
            self._optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(logits_of(self._network.model, x, precision).float(), y).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()

        @torch.no_grad()
        def evaluate() -> None:
            logits_of(self._network.model, x, precision)

        self._network.model.train()
        train_s = self._least(train)
        self._network.model.eval()
        return train_s / self._batch_size, self._least(evaluate) / self._batch_size

    def _least(self, step: Callable[[], None]) -> float:
        times = []
        for _ in range(1 + _TIMED_STEPS):
            raise_if_stopped(self._callbacks)
            begun = self._clock()
            step()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            times.append(self._clock() - begun)
        return min(times[1:])


def _decode_s(items: tuple[Item, ...], root: Path, presize: int, clock: Clock) -> float:
    """Seconds a picture takes to decode, with all threads."""
    some = items[:: max(len(items) // _SAMPLE, 1)]
    begun = clock()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        read = functools.partial(read_square, max_pixels=2**62, resize=resize_with_torch)
        list(pool.map(lambda item: read(root / item.path, presize), some))
    return (clock() - begun) / len(some)


def _spec_of(spec: TrainSpec, choice: Choice, **fields: Any) -> TrainSpec:
    """The choice as a spec, with what was asked beside it."""
    asked = {name: value for name, value in spec.model_dump().items() if value is not None}
    chosen: dict[str, Any] = {
        "recipe": "schedule",
        "image_size": choice.image_size,
        "epochs": choice.epochs,
        "frozen_epochs": choice.frozen_epochs,
        "freeze_body": choice.freeze_body,
        "precompute": bool(spec.weights),
        "start_image_size": choice.start_image_size,
        "body_lr_factor": 0.01 if spec.weights else 1.0,
        "lr_from": "self" if choice.finds_rate else "",
        **fields,
    }
    asked.pop("time_budget_minutes")
    return TrainSpec(**{**asked, **chosen})


def _tell(chosen: TrainSpec, choice: Choice, callbacks: Callbacks) -> None:
    callbacks.on_log(f"auto: {choice.why}")
    defaults = TrainSpec.model_fields
    told = [
        f"{name}={value}"
        for name, value in chosen.model_dump().items()
        if name not in ("dataset", "model_id") and value is not None and value != defaults[name].default
    ]
    callbacks.on_log(f"auto: the same again: {' '.join(told)}")


def _save(path: Path, chosen: TrainSpec, epochs_s: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"spec": chosen.model_dump(), "epochs_s": epochs_s}))
    temporary.replace(path)


def _load(path: Path) -> tuple[TrainSpec, float]:
    kept = json.loads(path.read_text())
    return TrainSpec(**kept["spec"]), float(kept["epochs_s"])
