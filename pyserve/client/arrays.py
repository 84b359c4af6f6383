"""Arrays of answers as numpy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyserve.errors import DataLossError
from pyserve.v1 import common_pb2

if TYPE_CHECKING:
    import numpy.typing as npt


def as_array(message: common_pb2.Array) -> npt.NDArray[Any]:
    """The numbers of a message, read-only.

    Raises:
        DataLossError: there are not as many as its shape says.
    """
    import numpy as np  # only those who want arrays need it

    values = np.frombuffer(message.data, np.dtype(message.dtype).newbyteorder("<"))
    try:
        return values.reshape(tuple(message.shape))
    except ValueError:
        raise DataLossError(f"an array of shape {list(message.shape)} came with {len(values)} numbers") from None
