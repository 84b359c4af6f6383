"""The pages under docs/ keep their promises: settings, metrics, commands and reasons that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pyserve.config import Settings
from pyserve.inference.backlog import Reason

ROOT = Path(__file__).resolve().parent.parent
SERVING = (ROOT / "docs" / "serving.md").read_text()


def rows(heading: str) -> list[str]:
    """First cells of the table under a heading."""
    section = SERVING.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]
    return cells[1:]  # without the head


def quoted(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([a-z_@/.0-9]+)`", cell)}


def test_settings_exist_with_the_defaults_that_are_told() -> None:
    told = quoted(rows("Settings"))
    assert told <= set(Settings.model_fields)
    assert told >= {name for name in Settings.model_fields if name.startswith(("predict_", "metrics_"))}
    defaults = Settings()
    assert (defaults.max_queue_delay_s, defaults.max_waiting_calls) == (0.002, 256)
    assert (defaults.max_queued_bytes, defaults.max_predict_images) == (2**30, 256)
    assert (defaults.job_nice, defaults.drain_s, defaults.predict_dtype) == (19, 30, "float32")


def test_every_reason_is_explained() -> None:
    assert quoted(rows("How batches are made")) == {reason.value for reason in Reason}


def test_every_metric_is_listed() -> None:
    source = (ROOT / "pyserve" / "server" / "metrics.py").read_text()
    families = re.findall(r'(Histogram|\w+MetricFamily)\(\s*"(pyserve_\w+)"', source)
    made = {f"{name}_total" if kind.startswith("Counter") else name for kind, name in families}
    assert made
    assert quoted(rows("Metrics")) == made


def test_commands_exist() -> None:
    commands = set(re.findall(r"pyserve (models \w+)", SERVING))
    assert commands
    for command in commands:
        line = [sys.executable, "-m", "pyserve", *command.split(), "--help"]
        subprocess.run(line, capture_output=True, check=True)
