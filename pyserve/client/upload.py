"""Sending an archive: header, chunks, and going on where a broken upload stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from pyserve.client.archive import Archive, prepared
from pyserve.client.backoff import Backoff
from pyserve.client.transport import Transport
from pyserve.errors import AbortedError, UnavailableError
from pyserve.v1 import datasets_pb2

Progress = Callable[[int, int], None]
# QueryUpload answers at once, whatever the limit of the upload is.
_QUERY_TIMEOUT_S = 30.0


async def send(
    transport: Transport,
    path: Path,
    header: datasets_pb2.UploadHeader,
    *,
    backoff: Backoff,
    reconnect_s: float,
    resume: bool,
    progress: Progress | None,
    timeout_s: Callable[[], float | None],
) -> datasets_pb2.Dataset:
    """Send the archive at `path`, or the folder there as an archive.

    Args:
        header: with id, request id and options; size, checksum and offset are filled in here.
        backoff: says when to try again; its patience becomes `reconnect_s` whenever more bytes have arrived.
        resume: ask first what has arrived, as an earlier process may have begun.
        timeout_s: what is left of the call's time.
    """
    with ExitStack() as stack:
        archive = await transport.work(stack.enter_context, prepared(path))
        header.size_bytes, header.sha256 = archive.size_bytes, archive.sha256
        arrived = 0
        while True:
            try:
                if resume:
                    query = datasets_pb2.QueryUploadRequest(request_id=header.request_id)
                    state = await transport.unary(transport.stubs.datasets.QueryUpload, query, _QUERY_TIMEOUT_S)
                    if state.HasField("dataset"):
                        return state.dataset
                    if state.committed_bytes > arrived:
                        arrived = state.committed_bytes
                        backoff.restart(reconnect_s)
                    header.offset_bytes = state.committed_bytes
                requests = _requests(header, archive, progress)
                return await transport.upload(transport.stubs.datasets.Upload, requests, timeout_s())
            except (UnavailableError, AbortedError) as error:
                # ABORTED after a break: the server has not noticed yet that the first connection is gone.
                if isinstance(error, AbortedError) and not resume:
                    raise
                await backoff.pause(error)
                resume = True


def _requests(
    header: datasets_pb2.UploadHeader, archive: Archive, progress: Progress | None
) -> Iterator[datasets_pb2.UploadRequest]:
    sent = header.offset_bytes
    yield datasets_pb2.UploadRequest(header=header)
    for chunk in archive.chunks(sent):
        if progress is not None:
            progress(sent, archive.size_bytes)
        yield datasets_pb2.UploadRequest(chunk=chunk)
        sent += len(chunk)
    if progress is not None:
        progress(sent, archive.size_bytes)
