"""`python -m pyserve` is the command `pyserve`."""

from __future__ import annotations

from pyserve.cli import main

if __name__ == "__main__":
    main()
