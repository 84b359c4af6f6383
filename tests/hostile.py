"""Hostile calls against a server process: wrong, huge, cut off, random, idle, slow.

    .venv/bin/python -m tests.hostile --calls 10000 --connections 2000      (scripts/hostile)

Whatever is sent, the server goes on answering, no handler meets an error it did not expect, and memory and file
descriptors come back. The tests run it with fewer calls.
"""

from __future__ import annotations

import argparse
import itertools
import random
import resource
import socket
import ssl
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pyserve.v1 import datasets_pb2, insight_pb2, jobs_pb2, models_pb2, predict_pb2
from tests.server.support import ServerProcess, pictures, png, upload_messages, zipped

FILES = (datasets_pb2, insight_pb2, jobs_pb2, models_pb2, predict_pb2)
OURS = "internal error; see the server's log"  # a handler met what it did not expect
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = struct.pack(">IBBI", 0, 4, 0, 0)[1:]  # an empty frame of type 4
MIB = 1024 * 1024


@dataclass(frozen=True)
class Method:
    """A call of one of our services."""

    path: str
    request: type[Message]
    client_streams: bool
    server_streams: bool


def methods() -> list[Method]:
    """All calls of pyserve.v1, from the descriptors."""
    return [
        Method(
            f"/{service.full_name}/{method.name}",
            message_factory.GetMessageClass(method.input_type),
            method.client_streaming,
            method.server_streaming,
        )
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


TEXTS = (
    "", "x", "datasets/colours", "models/colours", "models/colours/versions/1", "jobs/" + "0" * 36,
    "../../etc/passwd", "datasets/../../x", "models/colours@champion", "\0", "\n", "é" * 1000, "a" * 100_000,
    "%s%n{0}", "'; DROP TABLE jobs;--", "00000000-0000-0000-0000-000000000000", "WyJhIl0", "smallnet", "imagenet",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 1000, 65536)


def scramble(message: Message, rng: random.Random, depth: int = 0) -> Message:
    """Fill fields at random with values that are odd for any field."""
    for descriptor in message.DESCRIPTOR.fields:
        if rng.random() < 0.4:
            continue
        if descriptor.message_type is not None:
            if descriptor.message_type.GetOptions().map_entry or depth > 3:
                continue
            target = getattr(message, descriptor.name)
            for inner in [target.add() for _ in range(2)] if descriptor.is_repeated else [target]:
                inner.SetInParent() if not descriptor.is_repeated else None
                scramble(inner, rng, depth + 1)
            continue
        with suppress(TypeError, ValueError):
            if descriptor.is_repeated:
                getattr(message, descriptor.name).extend(_value(descriptor, rng) for _ in range(rng.randrange(4)))
            else:
                setattr(message, descriptor.name, _value(descriptor, rng))
    return message


def _value(descriptor: FieldDescriptor, rng: random.Random) -> Any:
    kind = descriptor.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if descriptor.type == FieldDescriptor.TYPE_BYTES:
            return rng.choice((b"", b"\xff" * 1000, rng.randbytes(200), png(0, 1), png(0, 1)[:50]))
        return rng.choice(TEXTS)
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e308, float("nan"), float("inf"), 0.5))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    return rng.choice((*NUMBERS, 2**63 - 1, -(2**63)))


class Attacker:
    """Sends hostile calls of every kind, in turn, and counts what came back."""

    def __init__(self, address: str, seed: int = 0) -> None:
        self.address = address
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.rng = random.Random(seed)
        self.methods = methods()
        self.outcomes: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.kinds: tuple[Callable[[], None], ...] = (
            self.random_bytes,
            self.random_frames,
            self.http1,
            self.tls_hello,
            self.scrambled,
            self.scrambled,
            self.random_message,
            self.truncated_message,
            self.foreign_message,
            self.length_that_lies,
            self.too_large,
            self.no_message,
            self.cancelled_upload,
            self.no_time,
            self.large_metadata,
            self.unknown_method,
            self.reader_that_stops,
        )
        self._channel = self._fresh()
        self._held: list[Any] = []

    def run(self, calls: int) -> None:
        """This many calls, each kind in turn."""
        for kind in itertools.islice(itertools.cycle(self.kinds), calls):
            kind()
            self.outcomes[f"kind {kind.__name__}"] += 1
            if len(self._held) > 40:
                self.let_go()
        self.let_go()

    def let_go(self) -> None:
        """End the calls that nobody reads."""
        for call in self._held:
            call.cancel()
        self._held.clear()
        self._channel.close()
        self._channel = self._fresh()

    def close(self) -> None:
        self.let_go()
        self._channel.close()

    # On the wire

    def random_bytes(self) -> None:
        self._raw(self.rng.randbytes(self.rng.randrange(1, 4096)))

    def random_frames(self) -> None:
        """A connection that begins properly and goes on with frames of any type, length and flags."""
        frames = b"".join(
            struct.pack(">I", length)[1:] + self.rng.randbytes(6) + self.rng.randbytes(length)
            for length in (self.rng.randrange(100) for _ in range(5))
        )
        self._raw(PREFACE + SETTINGS + frames)

    def http1(self) -> None:
        self._raw(b"POST /pyserve.v1.Predict/Predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n{}")

    def tls_hello(self) -> None:
        context = ssl.create_default_context()
        with suppress(OSError), socket.create_connection((self.host, self.port), 10) as plain:
            plain.settimeout(10)
            with context.wrap_socket(plain, server_hostname="localhost"):
                pass

    def _raw(self, data: bytes) -> None:
        with suppress(OSError), socket.create_connection((self.host, self.port), 10) as connection:
            connection.settimeout(0.2)
            connection.sendall(data)
            while connection.recv(4096):
                pass

    # As calls

    def scrambled(self) -> None:
        method = self.rng.choice(self.methods)
        self._call(method, scramble(method.request(), self.rng).SerializeToString())

    def random_message(self) -> None:
        self._call(self.rng.choice(self.methods), self.rng.randbytes(self.rng.randrange(1, 2000)))

    def truncated_message(self) -> None:
        method = self.rng.choice(self.methods)
        whole = scramble(method.request(), self.rng).SerializeToString()
        self._call(method, whole[: self.rng.randrange(len(whole) + 1)])

    def foreign_message(self) -> None:
        method, other = self.rng.sample(self.methods, 2)
        self._call(method, scramble(other.request(), self.rng).SerializeToString())

    def length_that_lies(self) -> None:
        """Repeated length prefixes within a message that promise gigabytes."""
        self._call(self.rng.choice(self.methods), b"\x0a\xff\xff\xff\xff\x0f" * 20 + b"\x0a\xff\xff\xff\x7f")

    def too_large(self) -> None:
        if self.rng.random() < 0.1:  # they take long to send
            self._call(self.rng.choice(self.methods), b"\0" * (65 * MIB))

    def no_message(self) -> None:
        """gRPC for Python leaves a call without its message unanswered, so that each takes its deadline."""
        method = self.rng.choice(self.methods)
        self._note(self._channel.stream_stream(method.path)(iter(()), timeout=0.5))

    def cancelled_upload(self) -> None:
        archive = zipped(pictures(2))
        messages = list(upload_messages(archive, f"hostile-{self.rng.randrange(1000)}"))
        upload = self._channel.stream_unary(
            "/pyserve.v1.Datasets/Upload", datasets_pb2.UploadRequest.SerializeToString
        )
        call = upload.future(iter(messages[: self.rng.randrange(len(messages))]), timeout=10)
        time.sleep(0.01)
        call.cancel()

    def no_time(self) -> None:
        method = self.rng.choice(self.methods)
        request = scramble(method.request(), self.rng).SerializeToString()
        self._call(method, request, timeout=self.rng.choice((1e-9, 1e-3)))

    def large_metadata(self) -> None:
        metadata = tuple((f"x-{i}", "v" * self.rng.randrange(2000)) for i in range(self.rng.randrange(100)))
        self._call(self.rng.choice(self.methods), b"", metadata=metadata)

    def unknown_method(self) -> None:
        path = self.rng.choice(("/x", "//", "/pyserve.v1.Jobs/Nothing", "/" + "a" * 5000, "/pyserve.v1.Predict/"))
        self._note(self._channel.stream_stream(path)(iter((b"x",)), timeout=10))

    def reader_that_stops(self) -> None:
        """Asks for a stream and does not read it."""
        request = jobs_pb2.WatchRequest(name=self.rng.choice(self.jobs) if self.jobs else "jobs/none")
        watch = self._channel.unary_stream("/pyserve.v1.Jobs/Watch", jobs_pb2.WatchRequest.SerializeToString)
        self._held.append(watch(request, timeout=60))

    jobs: tuple[str, ...] = ()

    def _call(self, method: Method, data: bytes, timeout: float = 30, metadata: Any = None) -> None:
        messages = iter((data, data) if method.client_streams else (data,))
        self._note(self._channel.stream_stream(method.path)(messages, timeout=timeout, metadata=metadata))

    def _note(self, call: Any) -> None:
        with suppress(grpc.RpcError):
            for _ in itertools.islice(call, 100):
                pass
            call.cancel()
        code, details = call.code(), call.details() or ""
        self.outcomes[code.name] += 1
        if OURS in details:
            self.unexpected.append(details)

    def _fresh(self) -> grpc.Channel:
        options = (
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", MIB),
            ("grpc.use_local_subchannel_pool", 1),
        )
        return grpc.insecure_channel(self.address, options)


@dataclass
class Idle:
    """Connections on which nothing is ever said, or only the beginning of something."""

    address: tuple[str, int]
    sockets: list[socket.socket] = field(default_factory=list)

    def open(self, count: int) -> None:
        for i in range(count):
            connection = socket.create_connection(self.address, 20)
            with suppress(OSError):
                connection.sendall((b"", PREFACE[:10], PREFACE + SETTINGS)[i % 3])
            self.sockets.append(connection)

    def close(self) -> None:
        for connection in self.sockets:
            connection.close()
        self.sockets.clear()


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def answers(channel: grpc.Channel) -> None:
    """The server takes calls; raises where it does not."""
    status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30).status
    assert status == health_pb2.HealthCheckResponse.SERVING


def settle(pid: int, files: int, timeout_s: float = 60) -> int:
    """Wait until a process has given back its files; how many it has."""
    end = time.monotonic() + timeout_s
    while (now := open_files(pid)) > files and time.monotonic() < end:
        time.sleep(0.2)
    return now


@dataclass(frozen=True)
class Result:
    """What an attack left."""

    outcomes: Counter[str]
    unexpected: list[str]
    rss_before: int
    rss_after: int
    rss_most: int
    files_before: int
    files_after: int


def attack(
    server: ServerProcess, calls: int, connections: int, *, seed: int = 0, rounds: int = 10, attackers: int = 1
) -> Result:
    """Attack a server, asking after its health in between.

    Args:
        calls: hostile calls in all.
        connections: idle ones, held for the whole time.
        rounds: how often its health is asked after.
        attackers: how many call at once; they wait most of the time.
    """
    pid = server.process.pid
    team = [Attacker(server.stubs.address, seed + i) for i in range(attackers)]
    jobs = tuple(job.name for job in server.stubs.jobs.List(jobs_pb2.ListJobsRequest(), timeout=20).jobs)
    for attacker in team:
        attacker.jobs = jobs
    team[0].run(10 * len(team[0].kinds))  # what is allocated once is
    files_before, before = settle(pid, 0, 2), rss_bytes(pid)
    idle = Idle((team[0].host, team[0].port))
    idle.open(connections)
    most = before
    with ThreadPoolExecutor(attackers) as threads:
        for _ in range(rounds):
            list(threads.map(lambda attacker: attacker.run(calls // rounds // attackers), team))
            answers(server.stubs.channel)
            most = max(most, rss_bytes(pid))
    idle.close()
    outcomes: Counter[str] = Counter()
    for attacker in team:
        attacker.close()
        outcomes += attacker.outcomes
    unexpected = [sentence for attacker in team for sentence in attacker.unexpected]
    assert server.process.poll() is None, f"the server ended: {server.log()[-2000:]}"
    files_after = settle(pid, files_before + 8)
    return Result(outcomes, unexpected, before, rss_bytes(pid), most, files_before, files_after)


def prepared(data_dir: Path) -> ServerProcess:
    """A server with a dataset, a finished training and its model."""
    server = ServerProcess(data_dir)
    server.stubs.upload(zipped(pictures()), "colours")
    server.stubs.wait(server.stubs.train(model_id="colours"))
    return server


def _lines(result: Result) -> Iterator[str]:
    yield from (f"{count:7} {name}" for name, count in sorted(result.outcomes.items()))
    for name in ("rss_before", "rss_most", "rss_after"):
        yield f"{getattr(result, name) / MIB:7.0f} MiB {name}"
    yield f"{result.files_before:7} open files before, {result.files_after} after"
    yield f"{len(result.unexpected):7} unexpected errors {result.unexpected[:3]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--attackers", type=int, default=8, help="how many call at once")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder:
        server = prepared(Path(folder) / "data")
        try:
            settings = {"seed": options.seed, "rounds": 25, "attackers": options.attackers}
            result = attack(server, options.calls, options.connections, **settings)
        finally:
            status = server.terminate()
    print("\n".join(_lines(result)))
    assert status == 0, f"the server ended with {status}"
    assert not result.unexpected
    assert result.rss_after - result.rss_before < 200 * MIB
    assert result.files_after <= result.files_before + 8


if __name__ == "__main__":
    main()
