"""What all calls share: models, their networks, datasets, pictures, and what was made of them before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pyserve.data.catalog import Catalog
from pyserve.data.images import decode_square
from pyserve.data.manifest import Manifest, Part
from pyserve.data.resampling import resize_with_torch
from pyserve.errors import (
    DataError,
    DataLossError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
)
from pyserve.inference.loaded_models import LoadedModels
from pyserve.inference.model_info import ModelInfo
from pyserve.inference.model_store import ModelStore
from pyserve.inference.predictor import Predictor
from pyserve.inference.probe import Probe
from pyserve.insight.embedding import Embedding, embed
from pyserve.insight.evaluate import EvaluationCache
from pyserve.insight.predictions import Evaluation
from pyserve.insight.shared import SharedResults, ShouldStop
from pyserve.server import validate
from pyserve.v1 import insight_pb2

_PROBES = 2
_EMBEDDINGS_BYTES = 512 * 2**20


class Question(NamedTuple):
    """Which model on which pictures; an empty dataset means the one that the model was trained on."""

    model: str
    dataset: str
    part: Part


@dataclass(frozen=True)
class Shown:
    """A picture that a call is about."""

    batch: torch.Tensor  # uint8 [1, 3, presize, presize]
    of: str = ""  # for titles: ", cats/1.jpg"


class Looker:
    """Finds what calls ask about. All methods block; all may be called from many threads at once.

    Args:
        predictors: loaded models.
        models: all models.
        catalog: the datasets.
        cache_dir: decoded pictures, shared with the jobs.
        max_image_pixels: larger pictures are refused.
    """

    def __init__(
        self,
        predictors: LoadedModels,
        models: ModelStore,
        catalog: Catalog,
        cache_dir: Path,
        max_image_pixels: int,
    ) -> None:
        self.models = models
        self.catalog = catalog
        self.cache_dir = cache_dir
        self.max_image_pixels = max_image_pixels
        self._predictors = predictors
        self._evaluations = EvaluationCache()
        self._probes: SharedResults[str, Probe] = SharedResults(_PROBES)
        self._embeddings: SharedResults[tuple[str, ...], Embedding] = SharedResults(
            _EMBEDDINGS_BYTES, lambda e: e.features.nbytes + e.thumbnails.nbytes
        )

    def predictor(self, name: str) -> Predictor:
        """A loaded model."""
        return self._predictors.get(name)

    def probe(self, name: str) -> tuple[ModelInfo, Probe]:
        """A model's network, opened up."""
        info = self.models.get(name)
        device = self._predictors.device
        return info, self._probes.get(info.name, lambda: Probe.load(info.folder, device, name=info.name))

    def manifest(self, model: str, dataset: str) -> Manifest:
        """The dataset, or else the one that the model was trained on.

        Raises:
            FailedPreconditionError: the model does not say which, or that one is gone.
        """
        if dataset:
            return self.catalog.get(dataset)
        info = self.models.get(model)
        if not info.dataset:
            raise FailedPreconditionError(
                f"{info.name} does not say on which dataset it was trained: name one in `dataset`"
            )
        try:
            return self.catalog.get(info.dataset)
        except NotFoundError:
            raise FailedPreconditionError(
                f"{info.dataset}, on which {info.name} was trained, is gone: name another one in `dataset`"
            ) from None

    def evaluate(self, question: Question, should_stop: ShouldStop) -> tuple[Evaluation, Manifest]:
        """A model's answers on a part."""
        manifest = self.manifest(question.model, question.dataset)
        predictor = self.predictor(question.model)
        evaluation = self._evaluations.get(predictor, manifest, question.part, self.cache_dir, should_stop)
        return evaluation, manifest

    def embed(self, model: str, dataset: str, parts: tuple[Part, ...], should_stop: ShouldStop) -> Embedding:
        """What a model's head sees of a dataset's pictures."""
        manifest = self.manifest(model, dataset)
        info, probe = self.probe(model)
        return self._embeddings.get(
            (info.name, manifest.digest, *parts),
            lambda: embed(probe, manifest, parts, self.cache_dir, should_stop),
            should_stop,
        )

    def picture(self, model: str, picture: insight_pb2.Picture, presize: int) -> Shown:
        """The picture of a request, decoded for a network.

        Raises:
            InvalidArgumentError: none is given, the bytes cannot be used, or the dataset has no such picture.
        """
        if picture.WhichOneof("source") == "path":
            dataset = validate.dataset_name(picture.dataset, "picture.dataset") if picture.dataset else ""
            manifest = self.manifest(model, dataset)
            item = manifest.item(picture.path, "picture.path")
            pixels = self._decode(Path(manifest.root, item.path), presize, f"{manifest.name}: {item.path}")
            return Shown(torch.from_numpy(pixels)[None], f", {item.path}")
        if not picture.image:
            raise InvalidArgumentError.field("picture", "none", "an encoded image, or a path inside the dataset")
        try:
            pixels = self._square(picture.image, presize)
        except DataError as error:
            raise unusable("picture.image", error) from error
        return Shown(torch.from_numpy(pixels)[None])

    def _square(self, source: bytes | Path, presize: int) -> npt.NDArray[np.uint8]:
        return decode_square(source, presize, max_pixels=self.max_image_pixels, resize=resize_with_torch)

    def _decode(self, path: Path, presize: int, name: str) -> npt.NDArray[np.uint8]:
        try:
            return self._square(path, presize)
        except (DataError, OSError) as error:
            raise DataLossError(f"{name} cannot be read any more: {_reason(error)}") from error


def question(model: str, dataset: str, part: int) -> Question:
    """Checked parts of a request."""
    return Question(
        validate.model_name(model, "model"),
        validate.dataset_name(dataset, "dataset") if dataset else "",
        validate.part(part),
    )


def unusable(field: str, error: DataError) -> InvalidArgumentError:
    """A picture of a request that cannot be used."""
    return InvalidArgumentError(f"{field}: {error.message}", fields=(FieldViolation(field, error.message),))


def parts(value: int) -> tuple[Part, ...]:
    """The parts of a request that means both unless it says one."""
    return ("train", "valid") if value == 0 else (validate.part(value),)


def optional(request: Any, field: str) -> int | None:
    """An optional number of a request; None where it is absent."""
    return int(getattr(request, field)) if request.HasField(field) else None


def _reason(error: DataError | OSError) -> str:
    return error.message if isinstance(error, DataError) else str(error.strerror)
