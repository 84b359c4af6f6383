"""docs/operations.md: its first commands are run, its settings and links exist."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from pyserve.config import Settings
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()
WAIT = "for i in $(seq 60); do {} && break; sleep 1; done"


def test_tls_and_tokens_in_five_commands(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    block = re.split(r"```(?:bash)?\n", PAGE.split("## TLS and tokens")[1])[1]
    lines = block.replace("gpu-box", "localhost").replace("50051", str(port)).splitlines()
    assert len(lines) == 5
    assert lines[3].startswith("pyserve --ca tls.crt health")
    script = [
        *lines[:3],
        "trap 'kill $!; wait' EXIT",
        WAIT.format(f"{lines[3]} 2>/dev/null"),  # a person waits, too
        *lines[4:],
        f"! pyserve --ca tls.crt datasets list --address localhost:{port}",
    ]
    command = tmp_path / "bin" / "pyserve"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pyserve "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYSERVE_PORT": str(port), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-ec", "\n".join(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "SERVING" in done.stdout
    assert "this server asks for a token" in done.stderr


def test_settings_exist() -> None:
    named = set(
        re.findall(r"`((?:keep|max|tls|metrics|audit|log|upload|drain|require|resume|checkpoint)_\w+)`", PAGE)
    )
    assert len(named) > 12
    assert named <= set(Settings.model_fields)
    assert Settings().keep_jobs is Settings().keep_models is None
    assert Settings().keep_checkpoints == 0


def test_links_and_paths_exist() -> None:
    links = re.findall(r"\]\(([\w./]+)", PAGE)
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)
    paths = re.findall(r"`((?:docker|deploy|scripts)/[\w./]+)`", PAGE)
    assert paths
    assert all((ROOT / path).exists() for path in paths)
