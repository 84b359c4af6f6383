"""Fuzz one target with atheris, guided by the coverage of what it runs through.

    .venv/bin/python -m tests.fuzz image --seconds 600 --corpus FOLDER        (scripts/fuzz runs all of them)
    .venv/bin/python -m tests.fuzz image crash-…                              one input once more

An input that makes the target raise is written beside the corpus as crash-…, and the exit status is not 0.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pyserve", "PIL", "tarfile", "zipfile", "gzip", "safetensors"]):
    from tests.fuzz.targets import TARGETS

MEMORY_MIB = 4096
LONGEST_S = 20  # for one input
LONGEST_BYTES = 1 << 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("inputs", nargs="*", type=Path, help="files to run instead of fuzzing")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--corpus", type=Path, help="folder of inputs worth keeping; default: one that is thrown away"
    )
    options = parser.parse_args()
    target = TARGETS[options.target]
    for path in options.inputs:
        target.run(path.read_bytes())
    if options.inputs:
        return
    corpus: Path = options.corpus or Path(tempfile.mkdtemp(prefix="pyserve-corpus-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    longest = max(LONGEST_BYTES, *(2 * len(seed) for seed in target.seeds()))
    flags = (
        f"-max_total_time={options.seconds}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-timeout={LONGEST_S}",
        f"-max_len={longest}",
        f"-artifact_prefix={corpus}/",
        "-print_final_stats=1",
    )
    atheris.Setup([sys.argv[0], *flags, str(corpus)], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
