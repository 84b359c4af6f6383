"""The load that `serving.py` puts on a server, in a process of its own: gRPC v2 requests, each with one picture.

    serving_load.py '{"address": …, "model": …, "pictures": FOLDER, "mode": "closed", "level": 32, "seconds": 10}'

Closed: `level` callers, each with one request under way. Open: requests come at random (exponential pauses),
    `level` a
second, whether the ones before are answered or not. With `health` set, the health service is asked fifty times a
second over a connection of its own. Prints a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pyserve.open_inference import grpc_service_pb2 as pb

CALL = "/inference.GRPCInferenceService/ModelInfer"
_LIMIT_S = 60.0
_HEALTH_EVERY_S = 0.02


def requests(model: str, pictures: Path) -> list[bytes]:
    """One request for each picture of a folder, ready to be sent."""
    made = []
    for path in sorted(pictures.glob("*.jpg")):
        data = path.read_bytes()
        request = pb.ModelInferRequest(model_name=model, id=path.stem)
        request.inputs.add(name="encoded", datatype="BYTES", shape=[1])
        request.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
        made.append(request.SerializeToString())
    return made


class Load:
    """One measurement."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._requests = requests(order["model"], Path(order["pictures"]))
        self._latencies: list[float] = []
        self._errors: dict[str, int] = {}
        self._health: list[float] = []
        self._next = 0

    async def run(self) -> dict[str, Any]:
        """Warm up, measure, and tell."""
        channel = grpc.aio.insecure_channel(self._order["address"])
        self._call = channel.unary_unary(CALL)  # bytes in, bytes out: no time is spent on messages here
        for _ in range(3):
            await self._call(self._requests[0], timeout=_LIMIT_S)
        watching = asyncio.create_task(self._watch()) if self._order.get("health") else None
        begin, cpu = time.perf_counter(), time.process_time()
        await (self._closed() if self._order["mode"] == "closed" else self._open())
        elapsed = time.perf_counter() - begin
        told = {
            "answered": len(self._latencies),
            "errors": self._errors,
            "elapsed_s": elapsed,
            "client_cpu_s": time.process_time() - cpu,
            "latencies_ms": [round(seconds * 1e3, 3) for seconds in self._latencies],
        }
        if watching is not None:
            watching.cancel()
            told["health_ms"] = [round(seconds * 1e3, 3) for seconds in self._health]
        await channel.close()
        return told

    async def _closed(self) -> None:
        end = time.perf_counter() + self._order["seconds"]

        async def caller() -> None:
            while time.perf_counter() < end:
                await self._ask()

        await asyncio.gather(*(caller() for _ in range(self._order["level"])))

    async def _open(self) -> None:
        generator = random.Random(0)
        asked: set[asyncio.Task[None]] = set()
        now = begin = time.perf_counter()
        while now - begin < self._order["seconds"]:
            task = asyncio.create_task(self._ask())
            asked.add(task)
            task.add_done_callback(asked.discard)
            now += generator.expovariate(self._order["level"])
            await asyncio.sleep(max(now - time.perf_counter(), 0))
        await asyncio.gather(*asked)

    async def _ask(self) -> None:
        self._next = (self._next + 1) % len(self._requests)
        begin = time.perf_counter()
        try:
            await self._call(self._requests[self._next], timeout=_LIMIT_S)
        except grpc.aio.AioRpcError as error:
            name = error.code().name
            self._errors[name] = self._errors.get(name, 0) + 1
            await asyncio.sleep(0.01)
        else:
            self._latencies.append(time.perf_counter() - begin)

    async def _watch(self) -> None:
        async with grpc.aio.insecure_channel(self._order["address"]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                begin = time.perf_counter()
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
                self._health.append(time.perf_counter() - begin)
                await asyncio.sleep(_HEALTH_EVERY_S)


def answers(order: dict[str, Any]) -> list[list[float]]:
    """What the server says of each picture: probabilities."""
    import numpy as np

    found = []
    with grpc.insecure_channel(order["address"]) as channel:
        call = channel.unary_unary(CALL)
        for request in requests(order["model"], Path(order["pictures"])):
            response = pb.ModelInferResponse.FromString(call(request, timeout=_LIMIT_S))
            if response.raw_output_contents:
                values = np.frombuffer(response.raw_output_contents[0], "<f4")
            else:
                contents = response.outputs[0].contents
                values = np.array(contents.fp32_contents or contents.fp64_contents)
            found.append([float(value) for value in values])
    return found


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(answers(given) if given["mode"] == "answers" else asyncio.run(Load(given).run())))
