"""Where the server listens, and what it asks of callers there."""

from __future__ import annotations

from pyserve.addresses import is_loopback
from pyserve.config import Settings
from pyserve.errors import InvalidArgumentError
from pyserve.security.tls import Certificates
from pyserve.security.tokens import TokenFile, Tokens


def tokens_in_force(settings: Settings) -> Tokens | None:
    """What recognises callers; None where everybody may call.

    Raises:
        DataLossError, FailedPreconditionError: the file of tokens cannot be used.
    """
    if not settings.require_tokens and (settings.insecure or is_loopback(settings.host)):
        return None
    file = TokenFile(settings.tokens_path)
    file.read()  # a damaged file is told now
    return Tokens(file)


def certificates(settings: Settings) -> Certificates | None:
    """The server's certificates; None where it speaks in the clear.

    Raises:
        InvalidArgumentError: one of the files is named without the one it needs.
        FailedPreconditionError: a file cannot be used.
    """
    cert, key = settings.tls_cert, settings.tls_key
    for name, value, other, needed in (
        ("tls_key", key, "tls_cert", cert),
        ("tls_cert", cert, "tls_key", key),
        ("tls_cert", cert, "tls_client_ca", settings.tls_client_ca),
    ):
        if needed is not None and value is None:
            raise InvalidArgumentError.field(name, "nothing", f"a PEM file, as {other} is given")
    return Certificates(cert, key, settings.tls_client_ca) if cert is not None and key is not None else None


def check_listening(settings: Settings, tokens: Tokens | None, certificates: Certificates | None) -> None:
    """Refuse to listen where others reach a server that does not know them, or whose words they could read.

    Raises:
        InvalidArgumentError: `host` is beyond loopback and TLS or tokens are missing, or `metrics_host` is, and
            `insecure` is not set.
    """
    if settings.insecure:
        return
    if not is_loopback(settings.metrics_host):
        expected = "a loopback address, as metrics are told in the clear to anybody; --insecure allows any"
        raise InvalidArgumentError.field("metrics_host", settings.metrics_host, expected)
    if is_loopback(settings.host):
        return
    lacks = [] if certificates else ["tls_cert and tls_key"]
    if tokens is None or not tokens.usable():
        lacks.append("a token (`pyserve tokens create`)")
    if lacks:
        expected = f"a loopback address, or also {' and '.join(lacks)}; --insecure allows any"
        raise InvalidArgumentError.field("host", settings.host, expected)
