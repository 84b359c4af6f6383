"""The pages under docs/ keep their promises: settings, metrics, commands and reasons that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

from pyserve.cli import app
from pyserve.config import Settings
from pyserve.inference.backlog import Reason
from pyserve.spec.names import Recipe, Rule
from pyserve.v1 import insight_pb2

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


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_what_the_pages_link_to_exists(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_insight_commands_exist_and_every_call_is_told() -> None:
    page = (ROOT / "docs" / "insight.md").read_text()
    calls = set(insight_pb2.DESCRIPTOR.services_by_name["Insight"].methods_by_name)
    told = set(re.findall(r"`([A-Z]\w+)`", page))
    assert calls - {"Kernels", "Layers", "Report"} <= told
    commands = set(re.findall(r"\| `([a-z-]+)`", page))
    assert commands
    assert commands <= set(get_command(app).commands)


def test_every_lr_rule_and_recipe_is_told() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    for name in (*get_args(Rule), *get_args(Recipe)):
        assert f"`{name}`" in page
