"""How much memory the machine has, and how much of it a container may use. Loads no torch."""

from __future__ import annotations

import os
from pathlib import Path

_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def container_limit_bytes() -> int | None:
    """The container's limit; None where there is none, or one above what the machine has."""
    for path in _LIMIT_FILES:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) < machine_bytes() else None
    return None
