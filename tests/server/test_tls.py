"""TLS and mutual TLS: who is believed, what is refused, and certificates that change while the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pyserve.config import Settings
from pyserve.errors import FailedPreconditionError, InvalidArgumentError
from pyserve.security.tls import Certificates
from pyserve.server.app import Server
from tests.security.certificates import Authority, Pair

Serve = Callable[..., Any]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def channel_credentials(ca: Path, pair: Pair | None = None) -> grpc.ChannelCredentials:
    certificates = (pair.key.read_bytes(), pair.cert.read_bytes()) if pair else (None, None)
    return grpc.ssl_channel_credentials(ca.read_bytes(), *certificates)


async def check(port: int, ca: Path, pair: Pair | None = None, host: str = "localhost") -> str:
    """What the health check says to a client: "SERVING", or why there is no answer."""
    credentials = channel_credentials(ca, pair)
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(f"{host}:{port}", credentials, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def test_tls(tmp_path: Path, authority: Authority) -> None:
    pair = authority.issue("server")
    stranger = Authority(tmp_path, "stranger")
    server = Server(Settings(data_dir=tmp_path / "data", port=0, tls_cert=pair.cert, tls_key=pair.key))
    port = await server.start()
    assert await check(port, authority.cert) == "SERVING"
    assert "CERTIFICATE_VERIFY_FAILED" in await check(port, stranger.cert)
    assert "UNAVAILABLE" in await check(port, authority.cert, host="127.1.2.3")  # not in the certificate
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop(1)


async def test_mutual_tls(tmp_path: Path, authority: Authority) -> None:
    pair = authority.issue("server")
    clients, strangers = Authority(tmp_path, "clients"), Authority(tmp_path, "strangers")
    audit = tmp_path / "audit.jsonl"
    settings = Settings(
        data_dir=tmp_path / "data",
        port=0,
        tls_cert=pair.cert,
        tls_key=pair.key,
        tls_client_ca=clients.cert,
        audit_log=audit,
    )
    server = Server(settings)
    port = await server.start()
    alice = clients.issue("alice", "alice.example", common_name="alice")
    assert await check(port, authority.cert, alice) == "SERVING"
    assert "UNAVAILABLE" in await check(port, authority.cert)
    assert "UNAVAILABLE" in await check(port, authority.cert, strangers.issue("mallory", "mallory.example"))
    credentials = channel_credentials(authority.cert, alice)
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        await channel.unary_unary("/pyserve.v1.Jobs/List")(b"", timeout=20)
    await server.stop(1)
    assert '"certificate": "alice"' in audit.read_text()


async def test_a_new_certificate_counts_without_a_restart(tmp_path: Path, authority: Authority) -> None:
    """Open connections stay; handshakes after the change use the new files; half a change is waited out."""
    pair = authority.issue("server")
    server = Server(Settings(data_dir=tmp_path / "data", port=0, tls_cert=pair.cert, tls_key=pair.key))
    port = await server.start()
    credentials = channel_credentials(authority.cert)
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        later = Authority(tmp_path, "later")
        old_cert, old_key = pair.cert.read_bytes(), pair.key.read_bytes()
        new = later.issue("new")
        pair.cert.write_bytes(new.cert.read_bytes())  # without its key so far
        assert await check(port, authority.cert) == "SERVING"
        pair.key.write_bytes(new.key.read_bytes())
        assert await check(port, later.cert) == "SERVING"
        assert "CERTIFICATE_VERIFY_FAILED" in await check(port, authority.cert)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)  # the open connection
        pair.cert.unlink()
        assert await check(port, later.cert) == "SERVING"
        pair.cert.write_bytes(old_cert)
        pair.key.write_bytes(old_key)
        assert await check(port, authority.cert) == "SERVING"
    await server.stop(1)


async def test_links_are_followed_as_mounted_secrets_change_them(tmp_path: Path, authority: Authority) -> None:
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
    other = Authority(tmp_path, "other")
    for folder, issuer in (("one", authority), ("two", other)):
        made = issuer.issue("made")
        made.cert.rename(tmp_path / folder / "tls.crt")
        made.key.rename(tmp_path / folder / "tls.key")
    link = tmp_path / "current"
    link.symlink_to("one")
    settings = Settings(data_dir=tmp_path / "d", port=0, tls_cert=link / "tls.crt", tls_key=link / "tls.key")
    server = Server(settings)
    port = await server.start()
    assert await check(port, authority.cert) == "SERVING"
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(link)
    assert await check(port, other.cert) == "SERVING"
    await server.stop(1)


async def test_handshakes_while_the_certificate_changes(tmp_path: Path, authority: Authority) -> None:
    """Many clients connect while the files are rewritten again and again: each gets a whole pair."""
    pair = authority.issue("server")
    server = Server(Settings(data_dir=tmp_path / "data", port=0, tls_cert=pair.cert, tls_key=pair.key))
    port = await server.start()

    async def rotate() -> None:
        for _ in range(20):
            authority.issue("server")
            await asyncio.sleep(0.01)

    rotating = asyncio.create_task(rotate())
    answers = [await check(port, authority.cert) for _ in range(40)]
    await rotating
    assert answers == ["SERVING"] * 40
    await server.stop(1)


@pytest.mark.parametrize("broken", ["no cert", "no key", "other key", "no PEM", "no client ca", "bad client ca"])
def test_unusable_files_are_told_at_the_start(tmp_path: Path, authority: Authority, broken: str) -> None:
    pair = authority.issue("server")
    client_ca = authority.cert if "client" in broken else None
    if broken == "no cert":
        pair.cert.unlink()
    elif broken == "no key":
        pair.key.unlink()
    elif broken == "other key":
        pair.key.write_bytes(authority.issue("other").key.read_bytes())
    elif broken == "no PEM":
        pair.cert.write_text("hello")
    elif broken == "no client ca":
        authority.cert.unlink()
    else:
        authority.cert.write_text("hello")
    with pytest.raises(FailedPreconditionError, match="tls_client_ca" if client_ca else "tls_cert") as caught:
        Certificates(pair.cert, pair.key, client_ca)
    assert "PRIVATE KEY" not in caught.value.message


def test_a_key_with_a_passphrase_does_not_wait_for_one(tmp_path: Path, authority: Authority) -> None:
    pair = authority.issue("server")
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    pair.key.write_bytes(pem)
    with pytest.raises(FailedPreconditionError, match=r"tls_key .* cannot be used"):
        Certificates(pair.cert, pair.key)


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"tls_cert": Path("a")}, "tls_key"),
        ({"tls_key": Path("a")}, "tls_cert"),
        ({"tls_client_ca": Path("a")}, "tls_cert"),
    ],
)
def test_files_that_lack_their_counterpart(tmp_path: Path, fields: dict[str, Path], missing: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{missing}: got 'nothing', expected a PEM file"):
        Server(Settings(data_dir=tmp_path, **fields))  # type: ignore[arg-type]
