"""Builds the extension with ninja: incremental, parallel, no network, no look at this machine's GPU or processor.

    pyserve/libpyserve_core.so   the CPU kernels, the dispatch, the counters; knows no torch
    pyserve/libpyserve_cpu.so    the operators' schemas and their CPU implementations (LibTorch stable ABI)
    pyserve/libpyserve_cuda.so   their CUDA implementations, where nvcc is found
    pyserve/_C.*.so              the pybind11 module `pyserve._C`

Environment: PYSERVE_CUDA=0|1|auto, TORCH_CUDA_ARCH_LIST ("8.0+PTX;9.0a"), CUDA_HOME, CXX, MAX_JOBS.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "kernels"
TORCH = Path(importlib.util.find_spec("torch").origin).parent
TORCH_VERSION = (TORCH / "version.py").read_text().split("__version__ = '")[1].split("'")[0]
ARCHS = os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0+PTX;9.0a"
CUDA_SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
# GCC 12 takes the undefined operands inside its own intrinsics for uninitialised variables.
FLAGS = "-std=c++17 -O3 -fPIC -Wall -Wextra -Wno-unused-parameter -Wno-maybe-uninitialized"
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mprefer-vector-width=512"
ISA_FLAGS = {"_avx2": "-mavx2 -mfma", "_avx512": AVX512}  # by the end of a kernel file's name
TORCH_FLAGS = f"-DTORCH_TARGET_VERSION=0x020A000000000000 -isystem {TORCH}/include"
TORCH_LINK = f"-lpyserve_core -L{TORCH}/lib -ltorch_cpu -lc10"


def find_nvcc():
    wish = os.environ.get("PYSERVE_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"PYSERVE_CUDA: got {wish!r}, expected 0, 1 or auto")
    nvcc = shutil.which("nvcc", path=f"{os.environ.get('CUDA_HOME', '')}/bin:{os.environ['PATH']}:/usr/local/cuda/bin")
    if wish == "1" and not nvcc:
        raise SystemExit("PYSERVE_CUDA=1: no nvcc under CUDA_HOME, on the PATH or in /usr/local/cuda/bin")
    return nvcc if wish != "0" and CUDA_SOURCES else None


def gencode():
    """nvcc's architecture options: "8.0+PTX;9.0a" means code for sm_80, its PTX, and code for sm_90a."""
    for arch in ARCHS.replace(" ", ";").split(";"):
        number = arch.removesuffix("+PTX").replace(".", "")
        codes = f"compute_{number},sm_{number}" if arch.endswith("+PTX") else f"sm_{number}"
        yield f"'-gencode=arch=compute_{number},code=[{codes}]'"


def cxx(pattern, flags=""):
    """(source, flags) of C++ files; those of another processor's ISA are left out."""
    for source in sorted((ROOT / "csrc").glob(pattern)):
        isa = next((end for end in ISA_FLAGS if source.stem.endswith(end)), None)
        if isa is None or platform.machine() in ("x86_64", "AMD64"):
            yield source, f"{FLAGS} {flags} {ISA_FLAGS.get(isa, '')}"


def libraries(nvcc):
    """(file, rule, [(source, flags)], link flags) of each shared object; core first, the others need it."""
    yield "libpyserve_core.so", "cxx", [*cxx("cpu/*_*.cpp"), *cxx("checks.cpp"), *cxx("registry.cpp")], ""
    yield "libpyserve_cpu.so", "cxx", [*cxx("ops.cpp", TORCH_FLAGS), *cxx("cpu/launch.cpp", TORCH_FLAGS)], TORCH_LINK
    facts = {"TORCH": TORCH_VERSION, "FLAGS": FLAGS, "CUDA_ARCHS": ARCHS if nvcc else "none"}
    module = "".join(f" -DPYSERVE_BUILD_{name}='\"{value}\"'" for name, value in facts.items())
    module += f" -fvisibility=hidden -isystem {sysconfig.get_path('include')} -isystem {pybind11.get_include()}"
    yield f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", "cxx", [*cxx("module.cpp", module)], "-lpyserve_core"
    if nvcc:
        flags = f"-std=c++17 -O3 -DNDEBUG -DUSE_CUDA -Xcompiler -fPIC {TORCH_FLAGS} {' '.join(gencode())}"
        sources = [(source, flags) for source in CUDA_SOURCES]
        yield "libpyserve_cuda.so", "nvcc", sources, f"{TORCH_LINK} -L{BUILD}/stub -ltorch_cuda"


def ninja_text(nvcc, libs):
    for rule, tool in {"cxx": os.environ.get("CXX", "c++"), "nvcc": nvcc}.items():
        rpath = "-Xlinker -rpath,'$$ORIGIN'" if rule == "nvcc" else "-Wl,-rpath,'$$ORIGIN'"
        yield f"rule {rule}\n command = {tool} $flags -MMD -MF $out.d -c $in -o $out\n depfile = $out.d\n deps = gcc"
        yield f"rule link_{rule}\n command = {tool} -shared $in -o $out -L{BUILD} $flags {rpath}"
    # A CPU torch has no libtorch_cuda.so to link the CUDA part against: an empty one of that name stands in.
    yield "rule stub\n command = echo | c++ -shared -x c++ - -Wl,-soname,libtorch_cuda.so -o $out"
    yield "build stub/libtorch_cuda.so: stub"
    for file, rule, sources, link in libs:
        objects = [f"{Path(file).name.split('.')[0]}/{source.stem}.o" for source, _ in sources]
        for obj, (source, flags) in zip(objects, sources, strict=True):
            yield f"build {obj}: {rule} {source}\n flags = {flags}"
        core = "" if "core" in file else " | libpyserve_core.so" + " stub/libtorch_cuda.so" * (rule == "nvcc")
        yield f"build {file}: link_{rule} {' '.join(objects)}{core}\n flags = {link}"


class NinjaBuild(build_ext):
    def build_extensions(self):
        BUILD.mkdir(parents=True, exist_ok=True)
        nvcc = find_nvcc()
        (BUILD / "build.ninja").write_text("\n".join(ninja_text(nvcc, list(libraries(nvcc)))) + "\n")
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.check_call(["ninja", "-C", str(BUILD), *jobs])
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(BUILD / target.name, target)

    def get_ext_filename(self, name):
        library = name.split(".")[-1].startswith("lib")
        return name.replace(".", "/") + ".so" if library else super().get_ext_filename(name)


NAMES = ["libpyserve_core", "libpyserve_cpu", "_C", *(["libpyserve_cuda"] if find_nvcc() else [])]
setup(ext_modules=[Extension(f"pyserve.{name}", []) for name in NAMES], cmdclass={"build_ext": NinjaBuild})
