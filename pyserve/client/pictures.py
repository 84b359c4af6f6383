"""Pictures in every form a caller may have them, as Predict requests that fit into messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pyserve.client.connection import MAX_MESSAGE_BYTES
from pyserve.errors import FieldViolation, InvalidArgumentError
from pyserve.v1 import predict_pb2

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BATCH_IMAGES = 64
# Leaves room for the other fields; a single picture may still fill a message.
BATCH_BYTES = MAX_MESSAGE_BYTES // 2
_DTYPES = ("uint8", "float32")
_EXPECTED = "a path, bytes, or one array for all pictures"
_SERVER_FIELD = re.compile(r"images\.data\[(\d+)\]")

Picture: TypeAlias = str | Path | bytes
Pictures: TypeAlias = "Picture | Sequence[Picture] | npt.NDArray[np.uint8] | npt.NDArray[np.float32]"


def predict_requests(
    model: str, images: Pictures, top_k: int | None, tta: bool, priority: int | None = None
) -> Iterator[predict_pb2.PredictRequest]:
    """One request for each batch of at most `BATCH_IMAGES` pictures and `BATCH_BYTES`, at least one.

    Raises:
        InvalidArgumentError: for an array of another shape or type, or a file that cannot be read.
    """
    for batch in _tensors(images) if hasattr(images, "dtype") else _encoded(images):
        yield predict_pb2.PredictRequest(model=model, top_k=top_k, tta=tta, priority=priority, **batch)


def stream_requests(
    model: str, images: Iterable[Picture], top_k: int | None, tta: bool, priority: int | None
) -> Iterator[predict_pb2.PredictStreamRequest]:
    """One request for each picture, its position as its id.

    Raises:
        InvalidArgumentError: for a file that cannot be read.
    """
    for index, item in enumerate(images):
        request = predict_pb2.PredictRequest(model=model, top_k=top_k, tta=tta, priority=priority)
        request.images.data.append(picture_bytes(item, f"images[{index}]", _EXPECTED))
        yield predict_pb2.PredictStreamRequest(id=str(index), request=request)


def for_caller(error: InvalidArgumentError, images: Pictures, done: int) -> InvalidArgumentError:
    """The server's error about pictures of one request, in terms of what the caller gave.

    Args:
        images: all pictures.
        done: how many of them went out in the requests before.
    """
    items = [images] if isinstance(images, str | Path | bytes) else images

    def index(field: str) -> int | None:
        match = _SERVER_FIELD.fullmatch(field)
        return done + int(match[1]) if match else None

    def name(i: int) -> str:
        return str(items[i]) if isinstance(items[i], str | Path) else f"images[{i}]"

    told = [(index(violation.field), violation) for violation in error.fields]
    if hasattr(images, "dtype") or not told or any(i is None or i >= len(items) for i, _ in told):
        return error
    named = [(i, violation) for i, violation in told if i is not None]
    message = "; ".join(f"{name(i)}: {violation.description}" for i, violation in named)
    fields = tuple(FieldViolation(f"images[{i}]", violation.description) for i, violation in named)
    return InvalidArgumentError(message, fields=fields, metadata=error.metadata)


def _encoded(images: Any) -> Iterator[dict[str, Any]]:
    items = [images] if isinstance(images, str | Path | bytes) else images
    batch: list[bytes] = []
    size = 0
    sent = False
    for i, item in enumerate(items):
        data = picture_bytes(item, f"images[{i}]", _EXPECTED)
        if batch and (len(batch) == BATCH_IMAGES or size + len(data) > BATCH_BYTES):
            yield {"images": predict_pb2.EncodedImages(data=batch)}
            batch, size, sent = [], 0, True
        batch.append(data)
        size += len(data)
    if batch or not sent:
        yield {"images": predict_pb2.EncodedImages(data=batch)}


def picture_bytes(item: object, field: str, expected: str = "a path or bytes") -> bytes:
    """An encoded picture of one file or of bytes.

    Raises:
        InvalidArgumentError: the file cannot be read, or it is something else, or too large for a message.
    """
    if isinstance(item, str | Path):
        try:
            item = Path(item).expanduser().read_bytes()
        except OSError as error:
            problem = f"a readable picture file ({(error.strerror or str(error)).lower()})"
            raise InvalidArgumentError.field(field, str(item), problem) from None
    if not isinstance(item, bytes):
        raise InvalidArgumentError.field(field, type(item).__name__, expected)
    if len(item) >= MAX_MESSAGE_BYTES - 1024:
        raise InvalidArgumentError.field(field, f"{len(item)} bytes", f"less than {MAX_MESSAGE_BYTES} bytes")
    return item


def _tensors(images: Any) -> Iterator[dict[str, Any]]:
    import numpy as np

    array = np.asarray(images)
    if array.dtype.name not in _DTYPES:
        raise InvalidArgumentError.field("images", f"an array of {array.dtype}", "uint8 (0…255) or float32 (0…1)")
    if array.ndim != 4 or 3 not in (array.shape[1], array.shape[3]):
        raise InvalidArgumentError.field("images", list(array.shape), "an array of shape [N, H, W, 3]")
    picture_bytes = max(1, array[:1].nbytes)
    step = max(1, min(BATCH_IMAGES, BATCH_BYTES // picture_bytes))
    little_endian = array.dtype.newbyteorder("<")
    for begin in range(0, max(1, len(array)), step):
        part = np.ascontiguousarray(array[begin : begin + step], dtype=little_endian)
        tensor = predict_pb2.Tensor(shape=part.shape, dtype=array.dtype.name, data=part.tobytes())
        yield {"tensor": tensor}
