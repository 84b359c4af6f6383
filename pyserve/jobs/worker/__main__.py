"""Run one worker."""

from __future__ import annotations

import os
import sys

from pyserve.jobs.worker.process import main

if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # everything is written: threads of libraries cannot hold the end up
