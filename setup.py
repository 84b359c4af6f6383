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

CSRC = Path(__file__).resolve().parent / "csrc"
BUILD = CSRC.parent / "build" / "kernels"
TORCH = Path(importlib.util.find_spec("torch").origin).parent
ARCHS = (os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0+PTX;9.0a").replace(" ", ";").replace(".", "").split(";")
# GCC 12 takes the undefined operands inside its own intrinsics for uninitialised variables.
FLAGS = "-std=c++17 -O3 -fPIC -Wall -Wextra -Wno-unused-parameter -Wno-maybe-uninitialized -Wno-uninitialized"
AVX512 = "-mavx2 -mfma -mprfchw -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512"
# By the last word of a kernel file's name.
ISA_FLAGS = {"avx2": "-mavx2 -mfma", "avx512": AVX512, "bf16": f"{AVX512} -mavx512bf16"}
X86 = platform.machine() in ("x86_64", "AMD64")
TORCH_FLAGS = f"-DTORCH_TARGET_VERSION=0x020A000000000000 -isystem {TORCH}/include"
TORCH_LINK, CUDA_LINK = f"-lpyserve_core -L{TORCH}/lib -ltorch_cpu -lc10", "--no-as-needed -ltorch_cuda -nodlink"


def find_nvcc():
    wish = os.environ.get("PYSERVE_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"PYSERVE_CUDA: got {wish!r}, expected 0, 1 or auto")
    folders = [f"{os.environ.get('CUDA_HOME', '')}/bin", os.environ["PATH"], "/usr/local/cuda/bin"]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(folders))
    if wish == "1" and not nvcc:
        raise SystemExit("PYSERVE_CUDA=1: no nvcc under CUDA_HOME, on the PATH or in /usr/local/cuda/bin")
    return nvcc if wish != "0" and any(CSRC.glob("cuda/*.cu")) else None


def files(flags, *patterns):
    """(source, flags) of each file; those of another processor's ISA are left out."""
    paths = sorted(path for pattern in patterns for path in CSRC.glob(pattern) if X86 or "_avx" not in path.stem)
    return [(path, f"{flags} {ISA_FLAGS.get(path.stem.split('_')[-1], '')}") for path in paths]


def libraries(nvcc):
    """(file, rule, (source, flags) of each, link flags) of each shared object; the others need the core."""
    yield "libpyserve_core.so", "cxx", files(FLAGS, "cpu/*_*.cpp", "c*.cpp", "registry.cpp", "workspace.cpp"), ""
    yield "libpyserve_cpu.so", "cxx", files(f"{FLAGS} {TORCH_FLAGS}", "ops.cpp", "cpu/launch.cpp"), TORCH_LINK
    flags = f"{FLAGS} -fvisibility=hidden -I{sysconfig.get_path('include')} -isystem {pybind11.get_include()}"
    for name, value in {"FLAGS": FLAGS, "CUDA_ARCHS": ";".join(ARCHS) if nvcc else "none"}.items():
        flags += f" -DPYSERVE_BUILD_{name}='\"{value}\"'"
    yield f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", "cxx", files(flags, "module.cpp"), "-lpyserve_core"
    if nvcc:  # "80+PTX" means code for sm_80 and PTX, "90a" code for sm_90a
        flags = f"-std=c++17 -O3 -DNDEBUG -DUSE_CUDA -Xcompiler -fPIC,-Wall {TORCH_FLAGS}"
        for arch, ptx in ((arch.removesuffix("+PTX"), arch.endswith("+PTX")) for arch in ARCHS):
            flags += f" '-gencode=arch=compute_{arch},code=[sm_{arch}{f',compute_{arch}' if ptx else ''}]'"
        yield "libpyserve_cuda.so", "nvcc", files(flags, "cuda/*.cu"), f"{TORCH_LINK} -Xlinker {CUDA_LINK}"


def ninja_text(nvcc):
    cxx, told = os.environ.get("CXX", "c++"), "-Xptxas -v > $out.log 2>&1 || { cat $out.log; false; }"
    for rule, cc, to_ld, log in (("cxx", cxx, "-Wl,", ""), ("nvcc", nvcc, "-Xlinker ", told)):
        compile_one = f"{cc} $flags -MMD -MF $out.d -c $in -o $out {log}"
        yield f"rule {rule}\n command = {compile_one}\n deps = gcc\n depfile = $out.d"
        yield f"rule link_{rule}\n command = {cc} -shared $in -o $out $flags -L{BUILD} {to_ld}-rpath,'$$ORIGIN'"
    # A CPU torch has no libtorch_cuda.so to link the CUDA part against: an empty one of that name stands in.
    yield "rule stub\n command = echo|c++ -shared -x c++ - -Wl,-soname,$out -o $out\nbuild libtorch_cuda.so: stub"
    for file, rule, sources, link in libraries(nvcc):
        objects = [f"{file.split('.')[0]}/{source.stem}.o" for source, _ in sources]
        for obj, (source, flags) in zip(objects, sources, strict=True):
            yield f"build {obj}: {rule} {source}\n flags = {flags}"
        needs = "" if "core" in file else "| libpyserve_core.so libtorch_cuda.so"
        yield f"build {file}: link_{rule} {' '.join(objects)} {needs}\n flags = {link}"


class NinjaBuild(build_ext):
    def build_extensions(self):
        BUILD.mkdir(parents=True, exist_ok=True)
        (BUILD / "build.ninja").write_text("\n".join(ninja_text(find_nvcc())) + "\n")
        subprocess.check_call(["ninja", "-C", str(BUILD), f"-j{os.environ.get('MAX_JOBS') or os.cpu_count()}"])
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            self.mkpath(str(target.parent))
            shutil.copy2(BUILD / target.name, target)

    def get_ext_filename(self, name):
        return name.replace(".", "/") + ".so" if "libpyserve" in name else super().get_ext_filename(name)


names = ["libpyserve_core", "libpyserve_cpu", "_C", *(["libpyserve_cuda"] if find_nvcc() else [])]
setup(ext_modules=[Extension(f"pyserve.{name}", []) for name in names], cmdclass={"build_ext": NinjaBuild})
