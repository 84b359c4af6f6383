"""Where a server may listen: beyond loopback only with TLS and a token, or where it is told to be insecure."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyserve.config import Settings
from pyserve.errors import DataLossError, InvalidArgumentError
from pyserve.security.tokens import TokenFile
from pyserve.server.app import Server
from tests.security.certificates import Authority

ELSEWHERE = ("0.0.0.0", "::", "192.168.1.5", "example.org", "", "localhost.example.org")  # noqa: S104


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("kind", [None, "usable", "expired"])
@pytest.mark.parametrize("host", ELSEWHERE)
def test_listening_elsewhere_takes_tls_and_a_token(tmp_path: Path, host: str, kind: str | None, tls: bool) -> None:
    settings = Settings(data_dir=tmp_path / "data", host=host)
    if tls:
        pair = Authority(tmp_path).issue("server")
        settings = settings.model_copy(update={"tls_cert": pair.cert, "tls_key": pair.key})
    if kind is not None:
        lifetime_s = {"usable": 60.0, "expired": 1e-9}[kind]
        TokenFile(settings.tokens_path).create("alice", ["predict"], lifetime_s)
    if tls and kind == "usable":
        Server(settings)._store.close()
        return
    with pytest.raises(InvalidArgumentError) as caught:
        Server(settings)
    message = caught.value.message
    assert message.startswith(f"host: got {host!r}, expected a loopback address, or also ")
    assert ("tls_cert and tls_key" in message) == (not tls)
    assert ("pyserve tokens create" in message) == (kind != "usable")


@pytest.mark.parametrize("host", ELSEWHERE)
def test_metrics_are_told_elsewhere_only_where_that_is_said_to_be_insecure(tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"metrics_host: got .*, expected a loopback address"):
        Server(Settings(data_dir=tmp_path, metrics_host=host))
    Server(Settings(data_dir=tmp_path, metrics_host=host, insecure=True))._store.close()


async def test_insecure_listens_anywhere(tmp_path: Path) -> None:
    server = Server(Settings(data_dir=tmp_path, host=ELSEWHERE[0], port=0, insecure=True))
    assert await server.start() > 0
    await server.stop(1)


def test_a_damaged_file_of_tokens_is_told_at_the_start(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, require_tokens=True)
    settings.tokens_path.write_text("{")
    with pytest.raises(DataLossError, match="tokens_file"):
        Server(settings)
