"""Answers of a loaded model: encoded pictures or prepared tensors in, probabilities or the likeliest classes out.

A picture's answer does not depend on what else is in its batch beyond float32 rounding: probabilities agree within
`BATCH_TOLERANCE` whatever the batch (another number of pictures may be added up in another order).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pyserve.data.images import decode_image, to_square
from pyserve.data.transforms import evaluation_view, tta_views
from pyserve.errors import CancelledError, DataError, FieldViolation, InvalidArgumentError
from pyserve.inference.bundle import Bundle, load_bundle
from pyserve.inference.loading_cache import LoadingCache

if TYPE_CHECKING:
    from pyserve.config import Settings
    from pyserve.inference.model_store import ModelStore

DEFAULT_TOP_K = 5
BATCH_TOLERANCE = 1e-5
DEFAULT_MAX_IMAGE_PIXELS = 64_000_000
_CHUNK_IMAGES = 32  # pictures per forward pass; between two of them `should_stop` is asked

ShouldStop = Callable[[], bool]
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """One class of one picture."""

    label: str
    index: int  # among the model's labels
    probability: float  # 0…1


class Predictor:
    """A loaded model that answers; all methods may be called from many threads at once.

    Args:
        bundle: the model; see `load_bundle`.
        threads: pictures decoded at once; 0 means one per core that torch uses.
        max_image_pixels: larger pictures are refused before they are decoded.
    """

    def __init__(
        self, bundle: Bundle, *, threads: int = 0, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
    ) -> None:
        self._bundle = bundle
        self._max_image_pixels = max_image_pixels
        self.threads = threads or torch.get_num_threads()
        self._decoders = ThreadPoolExecutor(self.threads, thread_name_prefix="pyserve-decode")

    @property
    def bundle(self) -> Bundle:
        """The loaded model."""
        return self._bundle

    @property
    def name(self) -> str:
        """`models/{id}/versions/{n}`."""
        return self._bundle.name

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in output order."""
        return self._bundle.labels

    def predict_encoded(
        self,
        images: Sequence[bytes],
        top_k: int = DEFAULT_TOP_K,
        tta: bool = False,
        *,
        first_index: int = 0,
        should_stop: ShouldStop | None = None,
    ) -> list[list[Score]]:
        """The likeliest classes of encoded pictures (JPEG, PNG, …), most likely first.

        Args:
            images: one encoded file each.
            top_k: classes per picture, ≥ 1; more than there are means all.
            tta: the mean over five views of each picture (`data.transforms.tta_views`).
            first_index: index of the first picture in the request, for the errors' field names.
            should_stop: asked before each chunk of pictures; True ends the work.

        Raises:
            InvalidArgumentError: names `top_k`, or each picture that cannot be used, `images.data[3]: …`.
            CancelledError: `should_stop` said so.
        """
        _check_top_k(top_k)
        rows: list[list[Score]] = []
        for batch in self._decoded(images, first_index, should_stop):
            rows += self._top(self.probabilities(batch, tta=tta), top_k)
        return rows

    def predict_tensor(
        self,
        array: npt.NDArray[Any],
        top_k: int = DEFAULT_TOP_K,
        tta: bool = False,
        *,
        should_stop: ShouldStop | None = None,
    ) -> list[list[Score]]:
        """The likeliest classes of prepared RGB pictures, most likely first.

        Args:
            array: [N, 3, S, S] or [N, S, S, 3] with S the model's image size; uint8 0…255 or float32 0…1, not
                normalised.
            top_k, tta, should_stop: as for `predict_encoded`.

        Raises:
            InvalidArgumentError: names `top_k`, `tensor.shape`, `tensor.dtype` or `tensor.data`.
            CancelledError: `should_stop` said so.
        """
        _check_top_k(top_k)
        pictures = self._check_tensor(array)
        rows: list[list[Score]] = []
        for begin in range(0, len(pictures), _CHUNK_IMAGES):
            _ask(should_stop, begin, len(pictures))
            chunk = torch.from_numpy(np.array(pictures[begin : begin + _CHUNK_IMAGES], order="C"))
            rows += self._top(self._view_probabilities(chunk, tta), top_k)
        return rows

    @torch.inference_mode()
    def probabilities(self, batch: torch.Tensor, *, tta: bool = False) -> Probabilities:
        """Probabilities of a batch as training's cache holds it.

        Args:
            batch: uint8 [N, 3, presize, presize], any N; it goes through the network in one piece.

        Returns:
            float32 [N, classes], each row adding up to 1.
        """
        if not len(batch):
            return np.zeros((0, len(self.labels)), np.float32)
        size = self._bundle.preprocessing.image_size
        batch = batch.to(self._bundle.device)
        return self._mean_softmax(tta_views(batch, size) if tta else [evaluation_view(batch, size)])

    @torch.inference_mode()
    def _view_probabilities(self, pictures: torch.Tensor, tta: bool) -> Probabilities:
        """Of pictures that already have the network's size: uint8, or float32 in 0…1."""
        pictures = pictures.to(self._bundle.device)
        size = self._bundle.preprocessing.image_size
        if tta:
            return self._mean_softmax(tta_views(pictures, size))
        return self._mean_softmax([evaluation_view(pictures, size)])

    def _mean_softmax(self, views: Sequence[torch.Tensor]) -> Probabilities:
        total: torch.Tensor | None = None
        for view in views:
            probabilities = self._bundle.probabilities(self._bundle.model(self._bundle.normalize(view)))
            total = probabilities if total is None else total + probabilities
        assert total is not None  # noqa: S101  there is always one view
        mean: Probabilities = (total / len(views)).cpu().numpy()
        return mean

    def _decoded(
        self, images: Sequence[bytes], first_index: int, should_stop: ShouldStop | None
    ) -> Iterator[torch.Tensor]:
        """Chunks of decoded pictures, uint8 [n, 3, presize, presize]; the next is decoded while one is used."""
        starts = range(0, len(images), _CHUNK_IMAGES)
        pending: list[Future[npt.NDArray[np.uint8]]] = []
        try:
            for begin in starts:
                _ask(should_stop, begin, len(images))
                current = pending or self._submit(images[begin : begin + _CHUNK_IMAGES])
                following = begin + _CHUNK_IMAGES
                pending = self._submit(images[following : following + _CHUNK_IMAGES])
                yield torch.from_numpy(np.stack(_results(current, first_index + begin)))
        finally:
            for future in pending:
                future.cancel()

    def _submit(self, images: Sequence[bytes]) -> list[Future[npt.NDArray[np.uint8]]]:
        return [self._decoders.submit(self._decode, data) for data in images]

    def _decode(self, data: bytes) -> npt.NDArray[np.uint8]:
        """One picture as uint8 [3, presize, presize]."""
        image = decode_image(data, max_pixels=self._max_image_pixels)
        return to_square(image, self._bundle.preprocessing.presize)

    def _check_tensor(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The pictures as [N, 3, S, S]."""
        size = self._bundle.preprocessing.image_size
        shape = tuple(array.shape)
        if array.dtype not in (np.dtype(np.uint8), np.dtype(np.float32)):
            raise InvalidArgumentError.field("tensor.dtype", str(array.dtype), "float32 or uint8")
        if len(shape) == 4 and shape[1:] == (size, size, 3):
            array = array.transpose(0, 3, 1, 2)
        elif len(shape) != 4 or shape[1:] != (3, size, size):
            raise InvalidArgumentError.field(
                "tensor.shape", list(shape), f"[N, 3, {size}, {size}] or [N, {size}, {size}, 3]"
            )
        if array.dtype == np.float32 and array.size and not (array.min() >= 0 and array.max() <= 1):
            got = f"values from {array.min():g} to {array.max():g}"
            raise InvalidArgumentError.field("tensor.data", got, "0 to 1: not yet normalised, and 255 is 1")
        return array

    def _top(self, probabilities: Probabilities, top_k: int) -> list[list[Score]]:
        # stable, so that of equally likely classes the one with the lower index comes first
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        return [
            [Score(self.labels[i], int(i), float(row[i])) for i in best]
            for row, best in zip(probabilities, order, strict=True)
        ]


class PredictorCache:
    """Loaded models, the least recently used leaving first.

    The first calls for one model load it once and all wait for that; a load that fails leaves nothing behind.

    Args:
        store: where the models lie.
        settings: `max_loaded_models`, `predict_threads` and `max_image_pixels` are read.
        device: where models run; by default a GPU where there is one.
    """

    def __init__(self, store: ModelStore, settings: Settings, device: torch.device | str | None = None) -> None:
        self._store = store
        self._settings = settings
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._cache: LoadingCache[str, Predictor] = LoadingCache(settings.max_loaded_models)

    def get(self, name: str) -> Predictor:
        """The predictor of `models/{id}` (its newest version) or `models/{id}/versions/{n}`.

        Raises:
            What `ModelStore.get` and `load_bundle` raise.
        """
        info = self._store.get(name)

        def load() -> Predictor:
            bundle = load_bundle(info.folder, self._device, name=info.name)
            return Predictor(
                bundle,
                threads=self._settings.predict_threads,
                max_image_pixels=self._settings.max_image_pixels,
            )

        return self._cache.get(info.name, load)

    def loaded(self) -> Sequence[str]:
        """Names of the models in memory, least recently used first."""
        return self._cache.keys()


def _check_top_k(top_k: int) -> None:
    if top_k < 1:
        raise InvalidArgumentError.field("top_k", top_k, "≥ 1")


def _ask(should_stop: ShouldStop | None, done: int, total: int) -> None:
    if should_stop is not None and should_stop():
        raise CancelledError(f"the prediction was stopped after {done} of {total} pictures")


def _results(futures: Sequence[Future[npt.NDArray[np.uint8]]], first_index: int) -> list[npt.NDArray[np.uint8]]:
    """The decoded pictures.

    Raises:
        InvalidArgumentError: naming every picture that cannot be used.
    """
    pictures, faults = [], []
    for index, future in enumerate(futures, start=first_index):
        try:
            pictures.append(future.result())
        except DataError as error:
            faults.append(FieldViolation(f"images.data[{index}]", error.message))
    if faults:
        message = "; ".join(f"{fault.field}: {fault.description}" for fault in faults)
        raise InvalidArgumentError(message, fields=tuple(faults))
    return pictures
