"""The Python client: `Client` (blocking) and `AsyncClient` (asyncio), with the same methods.

    from pyserve.client import Client

    with Client("127.0.0.1:50051") as client:
        client.upload_dataset("pictures/pets", "pets")
        job = client.wait(client.train(dataset="datasets/pets", epochs=5).name)
        print(client.predict(job.train_result.model, ["photo.jpg"]).predictions[0].scores[0])

Each call is written once, as a coroutine of `calls.Calls` over a `transport.Transport`. `AsyncClient` runs it on
grpc.aio. `Client` runs the same coroutine on a transport whose methods block and therefore never suspend, so it
needs neither an event loop nor a thread, and Ctrl-C and thread safety are those of plain gRPC. That reads better
than generators that yield effects, and spares the blocking client the hop to a loop in a background thread.

Methods return the messages of `pyserve.v1` and raise the exceptions of `pyserve.errors`. Never imports torch.
"""

from __future__ import annotations

from pyserve.client.arrays import as_array
from pyserve.client.clients import AsyncClient, Client
from pyserve.client.connection import DEFAULT_ADDRESS
from pyserve.client.model_calls import StreamedAnswer
from pyserve.client.status import error_from_status

__all__ = ["DEFAULT_ADDRESS", "AsyncClient", "Client", "StreamedAnswer", "as_array", "error_from_status"]
