"""What `pyserve doctor` tells: what this machine has, what is missing, and what to do about it.

One function for each check, which finds out about one thing and raises nothing that its own subject may raise: a
machine on which torch cannot be loaded has a disk all the same. Nothing heavy is imported before it is looked for.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pyserve.addresses import is_loopback
from pyserve.config import GIB, MIB, Settings
from pyserve.errors import PyserveError
from pyserve.inference.machine import container_limit_bytes, machine_bytes
from pyserve.jobs.data_lock import check_data_dir, owner_of
from pyserve.server import listening

_LITTLE_DISK_BYTES = 5 * GIB
_LITTLE_MEMORY_BYTES = 2 * GIB
_SPARE_DESCRIPTORS = 512  # of the server itself: libraries, store, workers, files being read
OPTIONAL = {
    "scikit-learn": "the pictures of `make demo`: pip install 'pyserve[demo]'",
}


class State(str, Enum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"  # works, but less well than it could
    PROBLEM = "problem"  # a server cannot start, or cannot do its work


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    state: State
    found: str
    advice: str = ""  # what to do; "" where there is nothing to do


def examine(settings: Settings) -> Sequence[Finding]:
    """All checks, in the order in which things depend on each other."""
    return [check(settings) for check in CHECKS]


def python(settings: Settings) -> Finding:
    """The interpreter and the system."""
    found = f"Python {platform.python_version()} on {platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform != "linux":
        return Finding("python", State.PROBLEM, found, "the server runs on Linux; pyserve-client runs anywhere")
    return Finding("python", State.OK, found)


def cpu(settings: Settings) -> Finding:
    """The processor, its instruction sets, and how many cores this process may use."""
    flags = _cpu_flags()
    sets = [name for name, flag in (("AVX-512", "avx512f"), ("AVX2", "avx2"), ("FMA", "fma")) if flag in flags]
    bfloat16 = ["bfloat16"] if {"avx512_bf16", "amx_bf16"} & flags else []
    cores = f"{_cores()} of {os.cpu_count()} cores"
    found = f"{_cpu_name()}, {cores}, {', '.join(sets + bfloat16) or 'no AVX2'}"
    if not {"avx2", "fma"} <= flags:
        advice = "the kernels run plain C++ here; a processor with AVX2 is several times as fast"
        return Finding("cpu", State.NOTE, found, advice)
    if settings.predict_dtype == "bfloat16" and not bfloat16:
        advice = 'predict_dtype = "bfloat16" is slow without the instructions: take "float32"'
        return Finding("cpu", State.NOTE, found, advice)
    return Finding("cpu", State.OK, found)


def threads(settings: Settings) -> Finding:
    """How many threads prediction and jobs take, beside the cores that there are."""
    cores = _cores()
    predict, job = settings.predict_threads or cores, settings.job_threads or cores
    found = f"prediction {predict}, each of {settings.max_running_jobs} jobs {job}"
    if os.environ.get("OMP_NUM_THREADS"):
        found += f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"
    too_many = [name for name in ("predict_threads", "job_threads") if getattr(settings, name) > cores]
    if too_many:
        advice = f"{' and '.join(too_many)}: more than the {cores} cores only wait for each other"
        return Finding("threads", State.NOTE, found, advice)
    return Finding("threads", State.OK, found)


def memory(settings: Settings) -> Finding:
    """Memory of the machine, or of the container."""
    free, limit = _meminfo("MemAvailable"), container_limit_bytes()
    found = f"{_size(machine_bytes())}, {_size(free)} of it free"
    if limit is not None:
        found += f"; this container may have {_size(limit)}"
        free = min(free, limit)
    if free < _LITTLE_MEMORY_BYTES:
        advice = (
            f"less than {_size(_LITTLE_MEMORY_BYTES)}: lower max_models_bytes and max_queued_bytes, or give more"
        )
        return Finding("memory", State.NOTE, found, advice)
    return Finding("memory", State.OK, found)


def torch_library(settings: Settings) -> Finding:
    """torch, torchvision, and the CUDA that torch was made for."""
    try:
        import torch

        torchvision = importlib.metadata.version("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        return Finding("torch", State.PROBLEM, f"cannot be loaded: {_said(error)}", "pip install pyserve")
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return Finding("torch", State.OK, f"torch {torch.__version__}, torchvision {torchvision}, {cuda}")


def kernels(settings: Settings) -> Finding:
    """Our compiled libraries, and the instruction set that they use."""
    try:
        from pyserve.kernels import info
    except (ImportError, OSError) as error:
        return Finding(
            "kernels", State.PROBLEM, f"cannot be loaded: {_said(error)}", "run scripts/setup once more"
        )
    facts = info()
    found = f"compiled by GCC {facts.build['compiler']}, {facts.isa_in_use} in use"
    found += f", CUDA {'loaded' if facts.cuda_loaded else 'not loaded'}"
    if facts.isa_in_use != facts.isa_found:
        advice = f"PYSERVE_CPU_ISA holds the kernels back: this machine has {facts.isa_found}"
        return Finding("kernels", State.NOTE, found, advice)
    return Finding("kernels", State.OK, found)


def gpu(settings: Settings) -> Finding:
    """GPUs that torch can use, and whether our kernels were compiled for them."""
    try:
        import torch

        from pyserve.kernels import info
    except (ImportError, OSError, RuntimeError):
        return Finding("gpu", State.NOTE, "not looked for", "see torch and kernels above")
    if not torch.cuda.is_available():
        if not Path("/dev/nvidiactl").exists():
            return Finding("gpu", State.OK, "none")
        if torch.version.cuda is None:
            advice = "install torch for CUDA and run scripts/setup once more"
            return Finding("gpu", State.NOTE, "there, but this torch is for the CPU", advice)
        return Finding("gpu", State.NOTE, "there, but torch cannot use it", "see nvidia-smi: driver too old?")
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found = "; ".join(f"{d.name}, {d.major}.{d.minor}, {_size(d.total_memory)}" for d in devices)
    if not info().cuda_loaded:
        return Finding(
            "gpu", State.NOTE, found, "our CUDA kernels are not compiled: install nvcc, run scripts/setup"
        )
    return Finding("gpu", State.OK, found)


def decoder(settings: Settings) -> Finding:
    """The native decoders of pictures in this build of Pillow."""
    try:
        import PIL
        from PIL import features
    except ImportError as error:
        return Finding("decoder", State.PROBLEM, f"Pillow cannot be loaded: {_said(error)}", "pip install pillow")
    turbo = features.version("libjpeg_turbo")
    names = (("JPEG", "jpg"), ("PNG", "zlib"), ("WebP", "webp"), ("AVIF", "avif"))
    missing = [name for name, feature in names if not features.check(feature)]
    jpeg = f"libjpeg-turbo {turbo}" if turbo else "JPEG without libjpeg-turbo"
    found = f"Pillow {PIL.__version__}, {jpeg}{_lacking('no', missing)}"
    if {"JPEG", "PNG"} & set(missing):
        return Finding("decoder", State.PROBLEM, found, "install Pillow from PyPI: its wheels have all decoders")
    if missing or not turbo:
        advice = "install Pillow from PyPI: its wheels have libjpeg-turbo and all decoders"
        return Finding("decoder", State.NOTE, found, advice)
    return Finding("decoder", State.OK, found)


def data_folder(settings: Settings) -> Finding:
    """Whether the data folder can be used, and who does."""
    folder = settings.data_dir.resolve()
    try:
        check_data_dir(folder)
    except PyserveError as error:
        return Finding("data folder", State.PROBLEM, error.message, "choose another data_dir, or mend its rights")
    owner = owner_of(folder)
    if owner:
        return Finding("data folder", State.NOTE, f"{folder}, in use by process {owner}", "one server at a time")
    return Finding("data folder", State.OK, f"{folder}{'' if folder.exists() else ', to be made'}")


def disk(settings: Settings) -> Finding:
    """Room on the data folder's disk."""
    folder = settings.data_dir.resolve()
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    found = f"{_size(usage.free)} of {_size(usage.total)} free"
    if usage.free < _LITTLE_DISK_BYTES:
        advice = "make room, or let fewer jobs and checkpoints be kept: keep_jobs, keep_checkpoints"
        return Finding("disk", State.NOTE, found, advice)
    return Finding("disk", State.OK, found)


def descriptors(settings: Settings) -> Finding:
    """Whether as many connections as the settings allow can be open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} file descriptors, {settings.max_connections} connections at most"
    if soft < settings.max_connections + _SPARE_DESCRIPTORS:
        advice = f"ulimit -n {min(hard, settings.max_connections + _SPARE_DESCRIPTORS)}, or lower max_connections"
        return Finding("descriptors", State.NOTE, found, advice)
    return Finding("descriptors", State.OK, found)


def port(settings: Settings) -> Finding:
    """Whether the address can be listened on."""
    host, number = settings.host.strip("[]"), settings.port
    found = f"{host}:{number}"
    try:
        family = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as listener:
            listener.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as a server that has just ended left it
            listener.bind((host, number))
    except OSError as error:
        advice = "choose another port, or stop who listens there (`pyserve health --local` asks whether it is us)"
        return Finding("port", State.PROBLEM, f"{found} cannot be listened on: {_said(error)}", advice)
    return Finding("port", State.OK, f"{found} is free")


def security(settings: Settings) -> Finding:
    """Whether what the settings say of TLS and tokens is enough for where they listen."""
    try:
        tokens = listening.tokens_in_force(settings)
        certificates = listening.certificates(settings)
        listening.check_listening(settings, tokens, certificates)
    except PyserveError as error:
        return Finding("security", State.PROBLEM, error.message, "see docs/operations.md")
    found = f"{'TLS' if certificates else 'no TLS'}, {'tokens' if tokens else 'no tokens'}"
    if settings.insecure and not is_loopback(settings.host):
        return Finding(
            "security", State.NOTE, f"{found}, beyond loopback", "something else must keep strangers out"
        )
    return Finding("security", State.OK, found)


def packages(settings: Settings) -> Finding:
    """Optional packages, and what each is for."""
    missing = {}
    there = []
    for name, use in OPTIONAL.items():
        try:
            there.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing[name] = use
    found = f"{', '.join(there) or 'none'}{_lacking('missing:', missing)}"
    if missing:
        return Finding("packages", State.NOTE, found, "; ".join(dict.fromkeys(missing.values())))
    return Finding("packages", State.OK, found)


CHECKS: tuple[Callable[[Settings], Finding], ...] = (
    python,
    cpu,
    threads,
    memory,
    torch_library,
    kernels,
    gpu,
    decoder,
    data_folder,
    disk,
    descriptors,
    port,
    security,
    packages,
)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _cpuinfo(key: str) -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def _cpu_flags() -> set[str]:
    return set(_cpuinfo("flags").split())


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _meminfo(key: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _lacking(word: str, names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"; {word} {listed}" if listed else ""


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"


def _said(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
