"""Archives on their way in: what calls that take a client's stream of header and chunks share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from pyserve.errors import InvalidArgumentError, PyserveError
from pyserve.server.pools import Pools
from pyserve.server.uploads import MAX_CHUNK_BYTES, Upload, UploadPlan, Uploads

# A client that is still sending when its call ends may see a broken connection instead of the answer (grpc.aio
# does), so what it has under way is read first; a client that goes on for longer than this has itself to blame.
_PATIENCE_S = 2.0


@asynccontextmanager
async def heard_out(messages: AsyncIterator[Any]) -> AsyncIterator[None]:
    """A block that may end before the client has sent all: reads on for a moment, so that the client is told."""
    try:
        yield
    except PyserveError:
        await _read_on(messages)
        raise
    await _read_on(messages)


async def header(messages: AsyncIterator[Any]) -> Any:
    """The header, which is the first message.

    Raises:
        InvalidArgumentError: it is not.
    """
    message = await anext(messages, None)
    if message is None or message.WhichOneof("message") != "header":
        raise InvalidArgumentError.field("header", "no header in the first message", "the header, then chunks")
    return message.header


async def receive(
    uploads: Uploads,
    plan: UploadPlan,
    messages: AsyncIterator[Any],
    pools: Pools,
    *,
    ensure_free: Callable[[str], None],
    make: Callable[[Path], str],
) -> str:
    """Take in the chunks and make of the archive what it is for.

    Args:
        plan: what the header said.
        messages: those after the header.
        ensure_free: see `Upload.open`.
        make: see `Upload.finish`.

    Returns:
        The name of what was made, now or by an earlier call with the same request id.
    """
    upload = uploads.begin(plan)
    try:
        name = await pools.quick.run(upload.open, ensure_free)
        if not name:
            await _write(upload, messages, pools)
            name = await pools.slow.run(upload.finish, make)
        return name
    finally:
        # Not through a pool that may refuse; shielded, since a caller that is gone cancels this coroutine.
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, upload.close))


async def _read_on(messages: AsyncIterator[Any]) -> None:
    async def discard() -> None:
        while True:
            with suppress(InvalidArgumentError):  # of a message that cannot be read
                async for _ in messages:
                    pass
                return

    with suppress(asyncio.TimeoutError, grpc.RpcError):
        await asyncio.wait_for(discard(), _PATIENCE_S)


async def _write(upload: Upload, messages: AsyncIterator[Any], pools: Pools) -> None:
    async for message in messages:
        if message.WhichOneof("message") != "chunk":
            raise InvalidArgumentError.field("header", "a second header", "only chunks after the first message")
        if len(message.chunk) > MAX_CHUNK_BYTES:
            raise InvalidArgumentError.field(
                "chunk", f"{len(message.chunk)} bytes", f"at most {MAX_CHUNK_BYTES} bytes"
            )
        await pools.quick.run(upload.write, message.chunk)
