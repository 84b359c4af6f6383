"""Tokens: made, kept as hashes, recognised, revoked; secrets are told once."""

from __future__ import annotations

import hmac
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyserve.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnauthenticatedError,
)
from pyserve.security import tokens as module
from pyserve.security.tokens import TokenFile, Tokens


@pytest.fixture
def file(tmp_path: Path) -> Iterator[TokenFile]:
    yield TokenFile(tmp_path / "tokens.json")
    # Whatever a test did: no secret may lie on the disk.
    assert not any(b"pyserve_" in path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


def bearer(secret: str) -> str:
    return f"Bearer {secret}"


def test_a_token_is_recognised_and_its_secret_is_not_kept(file: TokenFile) -> None:
    secret, token = file.create("alice", ["train", "predict"])
    assert token.scopes == ("predict", "train")
    assert secret.split("_")[1] == token.id
    assert secret.split("_", 2)[2] not in file.path.read_text()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert Tokens(file).recognise(bearer(secret)) == token
    assert Tokens(file).recognise(f"bearer {secret}") == token  # the scheme's case does not matter (RFC 9110)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: None, "asks for a token"),
        (lambda s: "", "not a token of pyserve"),
        (lambda s: s, "not a token of pyserve"),  # no scheme
        (lambda s: f"Basic {s}", "not a token of pyserve"),
        (lambda s: f"Bearer {s}x", "not a token of pyserve"),
        (lambda s: f"Bearer {s} ", "not a token of pyserve"),
        (lambda s: f"Bearer {s[:-1]}{'A' if s[-1] != 'A' else 'B'}", "not known here"),
        (lambda s: f"Bearer pyserve_{'0' * 12}_{s.split('_', 2)[2]}", "not known here"),
    ],
)
def test_wrong_tokens(file: TokenFile, change: Any, words: str) -> None:
    secret, _ = file.create("alice", ["admin"])
    with pytest.raises(UnauthenticatedError, match=words) as caught:
        Tokens(file).recognise(change(secret))
    assert secret[21:] not in caught.value.message


@given(st.text())
def test_no_text_is_a_token_by_chance(text: str) -> None:
    with pytest.raises(UnauthenticatedError):
        Tokens(TokenFile(Path("/nonexistent/tokens.json"))).recognise(text)


def test_digests_are_compared_in_constant_time(file: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is no such id: both ways pass through one comparison of two whole digests."""
    secret, token = file.create("alice", ["admin"])
    compared: list[tuple[str, str]] = []
    original = hmac.compare_digest

    def compare(a: str, b: str) -> bool:
        compared.append((a, b))
        return original(a, b)

    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    known = Tokens(file)
    known.recognise(bearer(secret))
    with pytest.raises(UnauthenticatedError):
        known.recognise(bearer(f"pyserve_{'0' * 12}_{'x' * 43}"))
    assert [len(a) == len(b) == 64 for a, b in compared] == [True, True]
    assert compared[0] == (token.sha256, token.sha256)


def test_revoked_and_new_tokens_count_at_once(file: TokenFile) -> None:
    first, token = file.create("alice", ["predict"])
    known = Tokens(file)
    known.recognise(bearer(first))
    second, other = file.create("bob", ["predict"])
    assert known.recognise(bearer(second)) == other
    assert file.revoke(token.id) == token
    with pytest.raises(UnauthenticatedError, match="not known here"):
        known.recognise(bearer(first))
    assert known.recognise(bearer(second)) == other
    file.revoke(other.id)
    assert known.usable() == []
    with pytest.raises(NotFoundError, match="there are none"):
        file.revoke(other.id)


def test_expired_tokens(file: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, token = file.create("alice", ["predict"], lifetime_s=60)
    known = Tokens(file)
    known.recognise(bearer(secret))
    assert token.expire_time is not None
    monkeypatch.setattr(module.time, "time", lambda: token.expire_time)
    with pytest.raises(UnauthenticatedError, match=f"token {token.id} has expired"):
        known.recognise(bearer(secret))
    assert known.usable() == []


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"name": "", "scopes": ["predict"]}, "name"),
        ({"name": "a\nb", "scopes": ["predict"]}, "name"),
        ({"name": "a" * 64, "scopes": ["predict"]}, "name"),
        ({"name": "a", "scopes": []}, "scope"),
        ({"name": "a", "scopes": ["predict", "root"]}, "scope"),
        ({"name": "a", "scopes": ["predict"], "lifetime_s": 0.0}, "lifetime_s"),
        ({"name": "a", "scopes": ["predict"], "lifetime_s": float("nan")}, "lifetime_s"),
    ],
)
def test_bad_arguments_are_named(file: TokenFile, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        file.create(**arguments)
    assert [violation.field for violation in caught.value.fields] == [field]
    assert not file.path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tokens": [{"id": "x"}]}', '{"version": 2}', '{"tokens": 1}'])
def test_a_damaged_file_is_refused_and_left_alone(file: TokenFile, text: str) -> None:
    file.path.write_text(text)
    for call in (file.read, lambda: file.create("a", ["predict"]), lambda: file.revoke("0" * 12)):
        with pytest.raises(DataLossError, match=r"tokens_file .* is damaged"):
            call()
    assert file.path.read_text() == text


def test_a_file_that_becomes_damaged_leaves_the_tokens_in_force(
    file: TokenFile, caplog: pytest.LogCaptureFixture
) -> None:
    secret, token = file.create("alice", ["predict"])
    known = Tokens(file)
    known.recognise(bearer(secret))
    file.path.write_text("{")
    assert known.recognise(bearer(secret)) == token
    assert known.recognise(bearer(secret)) == token
    assert caplog.text.count("tokens read before stay in force") == 1


def test_a_file_that_goes_takes_the_tokens_along(file: TokenFile) -> None:
    secret, _ = file.create("alice", ["predict"])
    known = Tokens(file)
    known.recognise(bearer(secret))
    file.path.unlink()
    with pytest.raises(UnauthenticatedError):
        known.recognise(bearer(secret))


def test_a_file_that_everybody_may_write_is_refused(file: TokenFile) -> None:
    file.create("alice", ["predict"])
    file.path.chmod(0o666)
    with pytest.raises(FailedPreconditionError, match="can be written by everybody"):
        file.read()


def test_a_crash_while_writing_leaves_the_old_tokens(file: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    _, token = file.create("alice", ["predict"])

    def crash(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(module.os, "fsync", crash)
    with pytest.raises(OSError, match="No space left"):
        file.create("bob", ["predict"])
    monkeypatch.undo()
    assert list(file.read()) == [token]
    file.create("bob", ["predict"])
    assert [entry["name"] for entry in json.loads(file.path.read_text())["tokens"]] == ["alice", "bob"]
