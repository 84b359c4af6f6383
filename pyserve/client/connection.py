"""Where the server is and how it is talked to: address, TLS, token, channel options."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from pyserve.addresses import host_of, is_loopback
from pyserve.errors import InvalidArgumentError

DEFAULT_ADDRESS = "127.0.0.1:50051"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True)
class Connection:
    """How a server is reached; nothing is opened yet.

    Args:
        address: "host:port".
        token: sent with every call, and shown in no error and no `repr`.
        ca: PEM file of the authorities that may vouch for the server; None means the system's.
        cert: PEM file of the client's own certificate chain (mutual TLS).
        key: PEM file of its private key.
        tls: None means: where `ca` or `cert` is given.
        server_name: the name that the server's certificate must have, where it is not the address's.
        insecure: let the token travel unencrypted beyond loopback, where something else encrypts (a service mesh).
        service_config: gRPC's, such as a `retryPolicy` of your own.

    Raises:
        InvalidArgumentError: naming the argument.
    """

    address: str = DEFAULT_ADDRESS
    token: str = field(default="", repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    tls: bool | None = None
    server_name: str = ""
    insecure: bool = False
    service_config: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.address.strip():
            raise InvalidArgumentError.field("address", self.address, "host:port")
        if (self.cert is None) != (self.key is None):
            lacking, given = ("key", "cert") if self.key is None else ("cert", "key")
            raise InvalidArgumentError.field(lacking, "nothing", f"a PEM file, as {given} is given")
        if self.tls is False and (self.ca or self.cert):
            raise InvalidArgumentError.field("tls", False, "true or nothing, as ca or cert is given")
        if self.token and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise InvalidArgumentError("token: expected printable ASCII characters without spaces")
        if self.token and not (self.uses_tls or self.is_loopback or self.insecure):
            raise InvalidArgumentError(f"token: would travel to {self.address} unencrypted: use TLS (ca, or tls)")

    @classmethod
    def of(cls, address: str | None = None, **given: Any) -> Connection:
        """A connection whose arguments that are None come from the environment, where it has them.

        PYSERVE_ADDRESS, PYSERVE_TOKEN, PYSERVE_CA, PYSERVE_CERT, PYSERVE_KEY, PYSERVE_SERVER_NAME, PYSERVE_TLS
        (1 or 0).
        """
        values = {name: value for name, value in given.items() if value is not None}
        for name in ("token", "ca", "cert", "key", "server_name"):
            values.setdefault(name, os.environ.get(f"PYSERVE_{name.upper()}"))
        values.setdefault("tls", _flag("PYSERVE_TLS"))
        for name in ("ca", "cert", "key"):
            values[name] = Path(values[name]).expanduser() if values[name] else None
        values["token"] = (values["token"] or "").strip()
        values["server_name"] = values["server_name"] or ""
        address = address if address is not None else os.environ.get("PYSERVE_ADDRESS", DEFAULT_ADDRESS)
        return cls(address, **values)

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return bool(self.tls or self.ca or self.cert)

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
        return self.address.startswith("unix:") or is_loopback(host_of(self.address))

    def open(self) -> grpc.Channel:
        """A blocking channel whose calls carry the token."""
        if not self.uses_tls:
            return grpc.insecure_channel(self.address, options=self.options())
        return grpc.secure_channel(self.address, self._credentials(), options=self.options())

    def open_aio(self) -> grpc.aio.Channel:
        """An asynchronous channel, on the event loop that runs."""
        if not self.uses_tls:
            return grpc.aio.insecure_channel(self.address, options=self.options())
        return grpc.aio.secure_channel(self.address, self._credentials(), options=self.options())

    def bearing(self, channel: Any) -> Any:
        """The channel for stubs: each call made on it carries the token."""
        return _Bearing(channel, (("authorization", f"Bearer {self.token}"),)) if self.token else channel

    def options(self) -> list[tuple[str, Any]]:
        """Message limits, quick reconnects, and no HTTP proxy between a client and a server on one machine."""
        options: list[tuple[str, Any]] = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.use_local_subchannel_pool", 1),
            # A connection that died without a word is noticed; gRPC servers allow a ping every five minutes.
            ("grpc.keepalive_time_ms", 330_000),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        if self.service_config is not None:
            options.append(("grpc.service_config", json.dumps(self.service_config)))
        if self.server_name:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        if self.is_loopback:
            options.append(("grpc.enable_http_proxy", 0))
        return options

    def _credentials(self) -> grpc.ChannelCredentials:
        ca, key, cert = (_read(name, getattr(self, name)) for name in ("ca", "key", "cert"))
        return grpc.ssl_channel_credentials(ca, key, cert)


class _Bearing:
    """A channel of grpc or grpc.aio whose calls carry metadata.

    Not call credentials, which gRPC refuses to send without TLS, on loopback too; and not interceptors, which cost
    grpc.aio's streams their flow control.
    """

    def __init__(self, channel: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._metadata = metadata

    def __getattr__(self, name: str) -> Any:
        """`unary_unary` and the like, as stubs call them."""
        make = getattr(self._channel, name)
        return lambda *args, **kwargs: _BearingCall(make(*args, **kwargs), self._metadata)


class _BearingCall:
    """A method of such a channel."""

    def __init__(self, method: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._method = method
        self._metadata = metadata

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Begin a call, or make one."""
        return self._method(*args, metadata=self._metadata, **kwargs)

    def future(self, *args: Any, **kwargs: Any) -> Any:
        """Begin a call of grpc's."""
        return self._method.future(*args, metadata=self._metadata, **kwargs)


def _read(name: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise InvalidArgumentError.field(name, str(path), f"a PEM file that can be read ({problem})") from None


def _flag(name: str) -> bool | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if text.lower() not in (*_YES, *_NO):
        raise InvalidArgumentError.field(name, text, "1 or 0")
    return text.lower() in _YES or None
