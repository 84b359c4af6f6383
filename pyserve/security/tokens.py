"""Tokens: `pyserve_<id>_<secret>`, the id public and the secret 256 random bits.

The file keeps ids, names, scopes and SHA-256 digests. A plain digest is enough: nobody guesses 256 random bits, so
there is nothing for a slow password hash to slow down (OWASP, Password Storage Cheat Sheet, is about passwords).
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pyserve.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnauthenticatedError,
)
from pyserve.security.scopes import SCOPES, Scope

log = logging.getLogger(__name__)

_TOKEN = re.compile(r"pyserve_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,62}")
_NOBODY = "0" * 64
_ASK = "send one as metadata `authorization: Bearer TOKEN`; with pyserve's client set PYSERVE_TOKEN"


class Token(BaseModel):
    """A token as it is stored. Times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(max_length=63)  # of the person or program it was made for
    scopes: tuple[Scope, ...]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    create_time: float
    expire_time: float | None = None

    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expire_time is not None and time.time() >= self.expire_time


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=1, ge=1, le=1)
    tokens: tuple[Token, ...] = ()


class TokenFile:
    """The tokens on disk; changes are whole files renamed into place, one writer at a time.

    Args:
        path: the file; made, readable by its owner only, with the first token.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Sequence[Token]:
        """All tokens, oldest first; none where there is no file.

        Raises:
            DataLossError: the file is damaged.
            FailedPreconditionError: everybody may write it, or it cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise FailedPreconditionError(f"tokens_file {self.path} cannot be read: {error.strerror}") from error
        if mode & stat.S_IWOTH:
            raise FailedPreconditionError(
                f"tokens_file {self.path} can be written by everybody: chmod o-w it, and make new tokens"
            )
        try:
            return _File.model_validate_json(text).tokens
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            raise DataLossError(f"tokens_file {self.path} is damaged: {first['msg']}") from None

    def create(self, name: str, scopes: Sequence[str], lifetime_s: float | None = None) -> tuple[str, Token]:
        """Make a token; its secret is told here and never again.

        Args:
            name: who will use it, as the audit log names them.
            scopes: of `SCOPES`, at least one.
            lifetime_s: seconds until it expires; None means never.

        Raises:
            InvalidArgumentError: naming the argument.
        """
        if not _NAME.fullmatch(name):
            expected = "1 to 63 letters, digits, spaces and '._@-', starting with a letter or a digit"
            raise InvalidArgumentError.field("name", name, expected)
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise InvalidArgumentError.field(
                "scope", unknown[0] if unknown else "none", f"one of {_listed(SCOPES)}"
            )
        if lifetime_s is not None and not lifetime_s > 0:
            raise InvalidArgumentError.field("lifetime_s", lifetime_s, "> 0")
        now = time.time()
        with self._changing():
            known = self.read()
            token_id = secrets.token_hex(6)
            secret = f"pyserve_{token_id}_{secrets.token_urlsafe(32)}"
            token = Token(
                id=token_id,
                name=name,
                scopes=tuple(scope for scope in SCOPES if scope in scopes),
                sha256=_digest(secret),
                create_time=now,
                expire_time=None if lifetime_s is None else now + lifetime_s,
            )
            self._write((*known, token))
        return secret, token

    def revoke(self, token_id: str) -> Token:
        """Remove a token; the next call with it is refused.

        Raises:
            NotFoundError: names what exists.
        """
        with self._changing():
            known = self.read()
            gone = next((token for token in known if token.id == token_id), None)
            if gone is None:
                there = f"there are {_listed([t.id for t in known])}" if known else "there are none"
                raise NotFoundError(f"no token {token_id[:100]!r}; {there}")
            self._write(tuple(token for token in known if token.id != token_id))
        return gone

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _write(self, tokens: tuple[Token, ...]) -> None:
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(json.dumps(_File(tokens=tokens).model_dump(mode="json"), indent=1))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)


class Tokens:
    """Recognises tokens, by the file as it is at the moment of each call.

    Args:
        file: where they are; a damaged file is logged, and what was read before stays in force.
    """

    def __init__(self, file: TokenFile) -> None:
        self._file = file
        self._seen: object = None
        self._by_id: dict[str, Token] = {}

    def recognise(self, authorization: str | None) -> Token:
        """The token of a call.

        Args:
            authorization: the value of its metadata of that name.

        Raises:
            UnauthenticatedError: there is none, or it is not known, or expired; the sentence never repeats it.
        """
        if authorization is None:
            raise UnauthenticatedError(f"this server asks for a token: {_ASK}")
        kind, _, secret = authorization.partition(" ")
        match = _TOKEN.fullmatch(secret)
        if kind.lower() != "bearer" or match is None:
            raise UnauthenticatedError(f"that is not a token of pyserve: {_ASK}")
        self._look()
        token = self._by_id.get(match[1])
        # compared also where the id is unknown, so that time does not tell which ids there are
        if not hmac.compare_digest(_digest(secret), token.sha256 if token else _NOBODY) or token is None:
            raise UnauthenticatedError("the token is not known here: it was revoked, or made for another server")
        if token.expired():
            raise UnauthenticatedError(f"token {token.id} has expired: ask for a new one")
        return token

    def usable(self) -> Sequence[Token]:
        """Those that have not expired."""
        self._look()
        return [token for token in self._by_id.values() if not token.expired()]

    def _look(self) -> None:
        try:
            state = self._file.path.stat()
            seen: object = (state.st_mtime_ns, state.st_ino, state.st_size)
        except OSError:
            seen = None
        if seen == self._seen and seen is not None:
            return
        try:
            self._by_id = {token.id: token for token in self._file.read()}
        except (DataLossError, FailedPreconditionError) as error:
            log.error("%s; the tokens read before stay in force", error)
        self._seen = seen


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)
