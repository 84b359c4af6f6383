"""`python -m pyserve` is the command `pyserve`, and says what is missing where only the client is installed."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from pyserve.cli import main as run
    except ModuleNotFoundError as error:
        print(f"pyserve: the command line needs {error.name}: pip install 'pyserve-client[cli]'", file=sys.stderr)
        sys.exit(1)
    run()


if __name__ == "__main__":
    main()
