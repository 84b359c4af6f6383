"""The servers that `serving.py` compares: how each is installed, started, and stopped, and what it takes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

PEERS = Path(__file__).resolve().parent / "peers"
ROOT = PEERS.parent.parent
_START_S = 180.0
_COMMON = ("torch==2.13.0", "torchvision==0.28.0", "onnxruntime==1.32.0", "pillow==13.0.0", "safetensors")
REQUIREMENTS = {
    "kserve": ("kserve==0.21.0", "onnx", "onnxscript", *_COMMON),
    "mlserver": ("mlserver==1.7.1", *_COMMON),
}


def cache() -> Path:
    """Where the peers' virtual environments and the pictures are kept."""
    chosen = os.environ.get("PYSERVE_BENCHMARK_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "pyserve-benchmarks"


def python_of(peer: str) -> Path:
    """The peer's interpreter; its virtual environment is made where it is missing or asks for other versions."""
    folder = cache() / peer
    stamp, wanted = folder / "requirements.txt", "\n".join(REQUIREMENTS[peer])
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {peer} into {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "--quiet", *REQUIREMENTS[peer]], check=True)
        stamp.write_text(wanted)
    return folder / "bin" / "python"


@dataclass(frozen=True)
class Competitor:
    """One server with one way of running the model.

    Attributes:
        name: in the table.
        start: starts it, given the folder with the model, a port and the number of threads.
    """

    name: str
    start: Callable[[Path, int, int], subprocess.Popen[bytes]]


def competitors() -> list[Competitor]:
    """All of them."""
    ours = [Competitor(f"pyserve {dtype}", _pyserve(dtype)) for dtype in ("float32", "bfloat16")]
    backends = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}
    kserve = [Competitor(f"KServe, {backends[b]}", _kserve(b)) for b in backends]
    return [*ours, *kserve, *(Competitor(f"MLServer, {backends[b]}", _mlserver(b)) for b in backends)]


@contextmanager
def running(competitor: Competitor, folder: Path, threads: int) -> Iterator[tuple[str, int]]:
    """The server's address and process id, once it predicts; ended with all its processes."""
    port = free_port()
    process = competitor.start(folder, port, threads)
    address = f"127.0.0.1:{port}"
    try:
        with grpc.insecure_channel(address) as channel:
            end = time.monotonic() + _START_S
            while not _answers(channel):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{competitor.name} does not start: see {folder / 'server.log'}")
                time.sleep(0.5)
        yield address, process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def cpu_s(pid: int) -> float:
    """Processor time of a process and its descendants so far, seconds."""
    ticks = sum(sum(map(int, _stat(child)[11:13])) for child in _family(pid))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    """Memory of a process and its descendants, shared pages counted once, MiB."""
    kib = 0
    for child in _family(pid):
        for line in Path(f"/proc/{child}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kib += int(line.split()[1])
    return kib / 1024


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _answers(channel: grpc.Channel) -> bool:
    from pyserve.open_inference import grpc_service_pb2 as pb

    ready = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelReady",
        request_serializer=pb.ModelReadyRequest.SerializeToString,
        response_deserializer=pb.ModelReadyResponse.FromString,
    )
    try:
        return bool(ready(pb.ModelReadyRequest(name="r18"), timeout=2).ready)
    except grpc.RpcError:
        return False


def _spawn(command: list[str | Path], folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(
            command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
        )


def _pyserve(dtype: str) -> Callable[[Path, int, int], subprocess.Popen[bytes]]:
    def start(folder: Path, port: int, threads: int) -> subprocess.Popen[bytes]:
        return _spawn(
            [sys.executable, "-m", "pyserve", "serve", "--port", str(port)],
            folder,
            PYTHONPATH=str(ROOT),
            PYSERVE_DATA_DIR=str(folder / "pyserve"),
            PYSERVE_PREDICT_THREADS=str(threads),
            PYSERVE_PREDICT_DTYPE=dtype,
            PYSERVE_JOB_THREADS=str(threads),
        )

    return start


def _kserve(backend: str) -> Callable[[Path, int, int], subprocess.Popen[bytes]]:
    def start(folder: Path, port: int, threads: int) -> subprocess.Popen[bytes]:
        script = PEERS / "kserve_server.py"
        arguments = [backend, str(folder), str(port), str(free_port()), str(threads)]
        return _spawn([python_of("kserve"), script, *arguments], folder)

    return start


def _mlserver(backend: str) -> Callable[[Path, int, int], subprocess.Popen[bytes]]:
    def start(folder: Path, port: int, threads: int) -> subprocess.Popen[bytes]:
        settings = folder / "mlserver"
        settings.mkdir(exist_ok=True)
        # as installed today it loads no model with a worker process of its own
        ports = {"grpc_port": port, "http_port": free_port(), "metrics_port": free_port(), "parallel_workers": 0}
        (settings / "settings.json").write_text(json.dumps({"debug": False, **ports}))
        model = {"name": "r18", "implementation": "mlserver_runtime.ResNet"}
        batching = {"max_batch_size": 8, "max_batch_time": 0.005}
        (settings / "model-settings.json").write_text(json.dumps(model | batching))
        return _spawn(
            [python_of("mlserver").with_name("mlserver"), "start", settings],
            folder,
            PYTHONPATH=str(PEERS),
            PEER_BACKEND=backend,
            PEER_FOLDER=str(folder),
            PEER_THREADS=str(threads),
        )

    return start


def _family(pid: int) -> list[int]:
    """A process and its living descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    family, waiting = [], [pid]
    while waiting:
        member = waiting.pop()
        family.append(member)
        waiting += parents.get(member, [])
    return family


def _stat(pid: int) -> list[str]:
    """The fields of /proc/pid/stat after the name: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
