"""The command line's tokens, TLS options and health probe; no secret shows where it should not."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyserve.config import Settings
from pyserve.security.tokens import TokenFile
from pyserve.server.app import Server
from tests.cli_support import Run
from tests.client.fake import FakeServer
from tests.client.guarded import Guarded
from tests.security.certificates import Authority


def test_tokens(run: Run, tmp_path: Path) -> None:
    folder = ("--data-dir", str(tmp_path))
    made = run("tokens", "create", "alice", "--scope", "train", "--scope", "predict", "--days", "2", *folder)
    assert made.code == 0
    secret = made.out.strip()
    assert made.err.startswith(f"token {secret.split('_')[1]} for alice: predict, train")
    listed = run("tokens", "list", *folder)
    assert secret.split("_")[1] in listed.out
    assert "predict, train" in listed.out
    assert secret.split("_", 2)[2] not in listed.out
    as_json = json.loads(run("tokens", "create", "bob", "--scope", "admin", "--json", *folder).out)
    assert as_json["name"] == "bob"
    assert as_json["expire_time"] is None
    assert "sha256" not in as_json
    assert [t["name"] for t in json.loads(run("tokens", "list", "--json", *folder).out)["tokens"]] == [
        "alice",
        "bob",
    ]
    gone = run("tokens", "revoke", as_json["id"], *folder)
    assert (gone.code, gone.err) == (0, f"token {as_json['id']} of bob is revoked\n")
    assert [token.name for token in TokenFile(tmp_path / "tokens.json").read()] == ["alice"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ("create", "a", "--scope", "root"),
            2,
            "scope: got 'root', expected one of predict, train, admin",
        ),
        (("create", "/", "--scope", "train"), 2, "name: got '/'"),
        (("create", "a", "--scope", "train", "--days", "0"), 2, "days: got 0.0, expected > 0"),
        (("revoke", "000000000000"), 3, "no token '000000000000'; there are none"),
    ],
)
def test_wrong_tokens(run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = run("tokens", *arguments, "--data-dir", str(tmp_path))
    assert done.code == code
    assert words in done.err


def test_credentials(run: Run, guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSERVE_ADDRESS", guarded.address)
    file = tmp_path / "token"
    file.write_text(guarded.token + "\n")
    tls = ("--ca", str(guarded.ca), "--cert", str(guarded.client.cert), "--key", str(guarded.client.key))
    assert run(*tls, "--token-file", str(file), "jobs", "list").code == 0
    refused = run(*tls, "jobs", "list")
    assert (refused.code, "PYSERVE_TOKEN" in refused.err) == (6, True)
    file.write_text(guarded.weak_token)
    assert run(*tls, "--token-file", str(file), "jobs", "list").code == 6
    missing = run("--token-file", str(tmp_path / "none"), "jobs", "list")
    assert (missing.code, "token-file: got" in missing.err) == (2, True)
    assert run(*tls, "health").out == "SERVING\n"


def test_health(run: Run, fake: FakeServer) -> None:
    assert run("health", "--address", "127.0.0.1:1").code == 5
    assert run("health", "--address", fake.address).code == 1  # the fake has no such service


@pytest.mark.parametrize("tls", [False, True])
async def test_health_of_the_own_server(tmp_path: Path, tls: bool) -> None:
    """In a container: no address, no authority, no name is given, and still only that server is believed."""
    pair = Authority(tmp_path).issue("server", "pyserve.example")
    files = {"tls_cert": pair.cert, "tls_key": pair.key} if tls else {}
    server = Server(Settings(data_dir=tmp_path / "data", port=0, **files))  # type: ignore[arg-type]
    port = await server.start()
    given = {"host": "0.0.0.0", "port": port, "data_dir": tmp_path / "data", **files}  # noqa: S104
    environment = os.environ | {f"PYSERVE_{name.upper()}": str(value) for name, value in given.items()}

    async def health(*options: str) -> tuple[int | None, str]:
        command = (sys.executable, "-m", "pyserve", "health", "--local", *options)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=pipe, stderr=pipe)
        out, err = await process.communicate()
        return process.returncode, out.decode() + err.decode()

    assert await health() == (0, "SERVING\n")
    await server._health.set_serving(False)
    code, told = await health()
    assert code == 5
    assert "the server is NOT_SERVING" in told
    assert await health("--alive") == (0, "NOT_SERVING\n")
    if tls:
        environment["PYSERVE_TLS_CERT"] = str(Authority(tmp_path, "other").issue("other").cert)
        code, told = await health()
        assert (code, "no pyserve server with tls_cert" in told) == (5, True)
    await server.stop(1)
    assert (await health())[0] == 5


def test_settings_that_are_printed_hold_no_secret(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSERVE_TOKEN", "pyserve_secret")
    monkeypatch.setenv("PYSERVE_DATA_DIR", str(tmp_path))
    done = run("config")
    assert "tokens_file" in done.out
    assert "pyserve_secret" not in done.out + done.err


def test_serve_refuses_to_listen_beyond_loopback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pyserve", "serve", "--host", "0.0.0.0", "--data-dir", str(tmp_path)]  # noqa: S104
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, timeout=120)
    assert done.returncode == 2
    assert "tls_cert and tls_key and a token (`pyserve tokens create`)" in done.stderr
