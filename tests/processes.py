"""Child processes of tests."""

from __future__ import annotations

import signal


def heed_ctrl_c() -> None:
    """For `Popen(preexec_fn=…)`: SIGINT counts, also where these tests run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
