"""Virtual environments for rivals that this project does not depend on."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def enter(name: str, requirements: Sequence[str]) -> None:
    """Start the calling script again in an environment that has these packages beside all that this one has.

    It is made on first use, in PYSERVE_BENCHMARK_CACHE or ~/.cache/pyserve-benchmarks. What is installed here,
    torch above all, is not installed again.
    """
    cache = os.environ.get("PYSERVE_BENCHMARK_CACHE") or Path.home() / ".cache" / "pyserve-benchmarks"
    folder = Path(cache) / name
    if Path(sys.prefix) == folder:
        return
    python = str(folder / "bin" / "python")
    stamp, wanted = folder / "requirements.txt", "\n".join([sys.version, sys.prefix, *requirements])
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {', '.join(requirements)} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        purelib = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        here = sysconfig.get_path("purelib")
        (Path(purelib) / "outer.pth").write_text(f"import site; site.addsitedir({here!r})\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        stamp.write_text(wanted)
    os.execv(python, [python, *sys.argv])  # noqa: S606
