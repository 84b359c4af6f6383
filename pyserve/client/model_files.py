"""Archives of models on their way in and out of files."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path

from pyserve.client.archive import Archive, described
from pyserve.client.transport import Transport
from pyserve.client.upload import Progress
from pyserve.errors import DataLossError, InvalidArgumentError
from pyserve.v1 import models_pb2


async def save(
    transport: Transport,
    stream: AsyncGenerator[models_pb2.ExportModelResponse, None],
    path: Path,
    progress: Progress | None,
) -> models_pb2.Model:
    """Write what an Export sends into a file beside `path`, check it, and put it in its place.

    Raises:
        DataLossError: what came is not what the header promised.
        InvalidArgumentError: the file cannot be written.
    """
    partial = path.with_name(f"{path.name}.part")
    digest, done = hashlib.sha256(), 0
    header = models_pb2.ExportHeader()
    try:
        with partial.open("wb") as file:
            async with aclosing(stream) as messages:
                async for message in messages:
                    if message.WhichOneof("message") == "header":
                        header = message.header
                        continue
                    await transport.work(file.write, message.chunk)
                    digest.update(message.chunk)
                    done += len(message.chunk)
                    if progress is not None:
                        progress(done, header.size_bytes)
        if (done, digest.hexdigest()) != (header.size_bytes, header.sha256):
            raise DataLossError(
                f"{header.model.name}: {done} bytes came, not the {header.size_bytes} that were sent"
            )
        partial.replace(path)
    except OSError as error:
        expected = f"a file that can be written ({(error.strerror or str(error)).lower()})"
        raise InvalidArgumentError.field("path", str(path), expected) from None
    finally:
        partial.unlink(missing_ok=True)
    return header.model


def describe(path: Path) -> Archive:
    """An archive that is ready to be sent.

    Raises:
        InvalidArgumentError: there is no such file.
        DataError: it cannot be read.
    """
    if not path.is_file():
        raise InvalidArgumentError.field("path", str(path), "an archive file that exists")
    return described(path)


def import_requests(
    header: models_pb2.ImportHeader, archive: Archive, progress: Progress | None
) -> Iterator[models_pb2.ImportModelRequest]:
    """The messages of an Import."""
    yield models_pb2.ImportModelRequest(header=header)
    sent = 0
    for chunk in archive.chunks(0):
        yield models_pb2.ImportModelRequest(chunk=chunk)
        sent += len(chunk)
        if progress is not None:
            progress(sent, archive.size_bytes)
