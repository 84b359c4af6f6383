"""Writing and loading model bundles: safetensors and JSON, proved by golden pictures, no pickle.

Loading replays the golden pictures through the model as it will serve (fused, BatchNorm folded, on its device) and
refuses it where the answers differ from those that the plain model gave when it was saved. The replay is the
warm-up at the same time.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pyserve import models
from pyserve.data.transforms import central, evaluation_view, normalize
from pyserve.errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from pyserve.inference.description import (
    DESCRIPTION_FILE,
    GOLDEN_FILE,
    WEIGHTS_FILE,
    Description,
    FileRecord,
    Preprocessing,
    read_description,
)
from pyserve.kernels.fuse import FusedModel, fuse
from pyserve.kernels.pixels import normalize_pixels

# Largest difference of a logit from the golden one, relative to the largest logit (or to 1 where that is smaller).
# In float32 folding BatchNorm and another order of additions stay within 1e-4, in bfloat16 rounding stays within
# 2e-2; a wrong weight or a wrong kernel does not.
GOLDEN_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
_HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A loaded model, ready to serve.

    `model` is the fused inference form in evaluation mode on `device`: normalised [N, 3, S, S] of `dtype` to
    logits [N, classes].
    """

    name: str
    model: FusedModel
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    description: Description
    device: torch.device
    dtype: torch.dtype = torch.float32

    @property
    def memory_bytes(self) -> int:
        """What the model takes on its device at present, weights packed for the kernels included, bytes."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(self.model)}
        return sum(storages.values()) + self.model.packed_bytes

    @cached_property
    def _channels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and std on the device: nothing may be copied there while a CUDA graph is recorded."""
        mean, std = (
            torch.tensor(v, device=self.device) for v in (self.preprocessing.mean, self.preprocessing.std)
        )
        return mean.view(3, 1, 1), std.view(3, 1, 1)

    @cached_property
    def _pixel_table(self) -> torch.Tensor:
        """What `normalize` makes of each value that a pixel of each channel can have, [3, 256]."""
        every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
        return self.normalize(evaluation_view(every, 16)).reshape(3, 256).contiguous()

    def prepare(self, batch: torch.Tensor) -> torch.Tensor:
        """The central squares of pictures as the network's input on its device, as validation does it.

        Args:
            batch: [N, 3, side, side], side ≥ S; uint8 0…255 or float 0…1. uint8 on the CPU takes one pass.

        Returns:
            [N, 3, S, S] of `dtype`, channels-last.
        """
        batch, size = batch.to(self.device), self.preprocessing.image_size
        if batch.dtype is torch.uint8 and batch.is_cpu:
            return normalize_pixels(central(batch, size), self._pixel_table)
        return self.normalize(evaluation_view(batch, size))

    def normalize(self, view: torch.Tensor) -> torch.Tensor:
        """float [N, 3, S, S] in 0…1 as the network's input on its device, channels-last; as training does it."""
        mean, std = self._channels
        values = (view.to(self.device) - mean) / std
        return values.to(self.dtype, memory_format=torch.channels_last)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Softmax of logits [N, classes] divided by the bundle's temperature, float32."""
        return (logits.float() / self.description.temperature).softmax(dim=1)


def save_bundle(
    folder: Path,
    model: nn.Module,
    *,
    architecture: str,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    golden_inputs: torch.Tensor,
    metrics: Mapping[str, float] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Description:
    """Write a bundle into an existing folder (see `ModelStore.add`, which makes that atomic).

    Args:
        model: the plain model as `models.create_model(architecture, len(labels))` makes it; it is not changed.
        golden_inputs: pictures, uint8 [N, 3, presize, presize], N ≥ 1; a few of the validation part do.
        metrics: of the validation part; those that are not finite are left out.
        provenance: where it comes from: "dataset", "dataset_digest", "job", "seed", versions.

    Raises:
        InvalidArgumentError: golden pictures of another form, or a model with weights that are not finite.
    """
    side = preprocessing.presize
    if golden_inputs.dtype != torch.uint8 or golden_inputs.ndim != 4 or not len(golden_inputs):
        raise InvalidArgumentError.field(
            "golden_inputs", _form(golden_inputs), f"uint8 [N, 3, {side}, {side}], N ≥ 1"
        )
    if tuple(golden_inputs.shape[1:]) != (3, side, side):
        raise InvalidArgumentError.field("golden_inputs", _form(golden_inputs), f"uint8 [N, 3, {side}, {side}]")
    inputs = golden_inputs.detach().cpu().contiguous()
    outputs = _plain_logits(model, inputs, preprocessing)
    if outputs.shape != (len(inputs), len(labels)):
        raise InvalidArgumentError.field(
            "labels", f"{len(labels)} labels", f"{outputs.shape[-1]}, as the model has"
        )
    if not bool(outputs.isfinite().all()):
        raise InvalidArgumentError("model: its answers to the golden pictures are not finite numbers")
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    save_file({"inputs": inputs, "logits": outputs.contiguous()}, folder / GOLDEN_FILE)
    description = Description(
        architecture=architecture,
        labels=tuple(labels),
        preprocessing=preprocessing,
        metrics={key: float(value) for key, value in (metrics or {}).items() if math.isfinite(value)},
        provenance=dict(provenance or {}),
        parameter_count=sum(parameter.numel() for parameter in model.parameters()),
        create_time=time.time(),
        files={name: _record(folder / name) for name in (WEIGHTS_FILE, GOLDEN_FILE)},
    )
    (folder / DESCRIPTION_FILE).write_text(description.model_dump_json(indent=1), encoding="utf-8")
    return description


def load_bundle(
    folder: Path, device: torch.device | str = "cpu", *, name: str = "", dtype: torch.dtype = torch.float32
) -> Bundle:
    """Load a bundle, check every file against its checksum, and replay the golden pictures.

    Args:
        name: what errors call the model, by default the folder's name.
        dtype: what the network computes in: float32, or bfloat16.

    Raises:
        DataLossError: a file is missing or damaged, or the model no longer gives the golden answers.
        FailedPreconditionError: a later version of pyserve wrote it, or its architecture is not registered here.
    """
    name = name or folder.name
    description = read_description(folder, name)
    for file, record in description.files.items():
        _check_file(folder / file, record, name)
    model = _build(folder, description, name)
    target = torch.device(device)
    fused = fuse(model, inference=True).to(target, dtype)
    bundle = Bundle(name, fused, description.labels, description.preprocessing, description, target, dtype)
    _replay(bundle, _load_tensors(folder / GOLDEN_FILE, name))
    return bundle


def load_plain(folder: Path, *, name: str = "") -> tuple[nn.Module, Description]:
    """The plain model of a bundle, float32 on the CPU in evaluation mode: to be looked into, not to serve.

    Raises:
        DataLossError, FailedPreconditionError: as `load_bundle`; golden pictures are not replayed.
    """
    name = name or folder.name
    description = read_description(folder, name)
    _check_file(folder / WEIGHTS_FILE, description.files[WEIGHTS_FILE], name)
    return _build(folder, description, name), description


def _build(folder: Path, description: Description, name: str) -> nn.Module:
    state = _load_tensors(folder / WEIGHTS_FILE, name)
    try:
        with torch.device("meta"):  # no first weights, which would only be written over
            model = models.create_model(description.architecture, len(description.labels))
    except InvalidArgumentError as error:
        raise FailedPreconditionError(f"{name}: {error.message}") from error
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:  # names the keys that are missing, unexpected or of another shape
        reason = " ".join(str(error).split())[:300]
        raise DataLossError(f"{name}: {WEIGHTS_FILE} does not fit {description.architecture}: {reason}") from error
    return model.eval()


@torch.inference_mode()
def _plain_logits(model: nn.Module, inputs: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """What the plain model answers on the CPU in evaluation mode; modes and device are put back."""
    modes = {module: module.training for module in model.modules()}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    model.eval()
    try:
        view = evaluation_view(inputs.to(device), preprocessing.image_size)
        logits: torch.Tensor = model(normalize(view, preprocessing.mean, preprocessing.std))
    finally:
        for module, training in modes.items():
            module.training = training
    return logits.float().cpu()


@torch.inference_mode()
def _replay(bundle: Bundle, golden: Mapping[str, torch.Tensor]) -> None:
    side = bundle.preprocessing.presize
    inputs, expected = golden.get("inputs"), golden.get("logits")
    if (
        inputs is None
        or expected is None
        or inputs.dtype != torch.uint8
        or tuple(inputs.shape[1:]) != (3, side, side)
        or tuple(expected.shape) != (len(inputs), len(bundle.labels))
        or not len(inputs)
    ):
        raise DataLossError(f"{bundle.name}: {GOLDEN_FILE} does not hold golden pictures of this model")
    logits = bundle.model(bundle.prepare(inputs)).float().cpu()
    scale = max(float(expected.abs().max()), 1.0)
    difference = float((logits - expected).abs().max()) / scale
    tolerance = GOLDEN_TOLERANCE[bundle.dtype]
    if not difference <= tolerance:  # also where it is NaN
        raise DataLossError(
            f"{bundle.name}: answers to its golden pictures differ by {difference:.2g} of the largest, expected "
            f"at most {tolerance:g}: the weights are damaged, or the kernels compute something else here"
        )


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _load_tensors(path: Path, name: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise DataLossError(f"{name}: {path.name} is damaged: {error}") from error


def _record(path: Path) -> FileRecord:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return FileRecord(size_bytes=path.stat().st_size, sha256=digest.hexdigest())


def _check_file(path: Path, expected: FileRecord, name: str) -> None:
    try:
        found = _record(path)
    except OSError as error:
        raise DataLossError(f"{name}: {path.name} cannot be read: {error.strerror}") from error
    if found.size_bytes != expected.size_bytes:
        raise DataLossError(
            f"{name}: {path.name} is damaged: got {found.size_bytes} bytes, expected {expected.size_bytes}"
        )
    if found.sha256 != expected.sha256:
        raise DataLossError(
            f"{name}: {path.name} is damaged: its checksum differs from the one in {DESCRIPTION_FILE}"
        )


def _form(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
