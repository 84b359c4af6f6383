"""TensorBoard event files as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from pyserve.client.transport import Transport
from pyserve.errors import InvalidArgumentError
from pyserve.v1 import jobs_pb2


async def save(transport: Transport, stream: AsyncGenerator[jobs_pb2.TensorBoardChunk, None], path: Path) -> None:
    """Write a file anew, each chunk at once: TensorBoard reads it while it grows.

    Raises:
        InvalidArgumentError: it cannot be written.
    """
    mode = "wb"  # an older file of the same name is done with
    async with aclosing(stream) as chunks:
        async for chunk in chunks:
            await transport.work(_write, path, mode, chunk.data)
            mode = "ab"


def _write(path: Path, mode: str, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode) as file:
            file.write(data)
    except OSError as error:
        expected = f"a folder that can be written ({(error.strerror or str(error)).lower()})"
        raise InvalidArgumentError.field("folder", str(path), expected) from None
