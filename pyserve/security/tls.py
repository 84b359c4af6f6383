"""The server's certificates: read again when their files change, for every handshake that begins afterwards."""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path

import grpc

from pyserve.errors import FailedPreconditionError

log = logging.getLogger(__name__)


class Certificates:
    """A certificate chain with its key, and the authority of clients' certificates where those are asked for.

    Args:
        cert: PEM file of the chain, the server's own certificate first.
        key: PEM file of its private key, without a passphrase.
        client_ca: PEM file of the authorities whose clients may connect (mutual TLS); None asks clients for none.

    Raises:
        FailedPreconditionError: a file cannot be read, is not PEM, or the key is another certificate's.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._lock = threading.Lock()
        self._seen = self._state()
        self._configuration = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`, of grpc or grpc.aio."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration, self._fetch, require_client_authentication=self._client_ca is not None
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration:
        """What the next handshake uses; called by gRPC, in a thread of its own, whenever a client connects."""
        with self._lock:
            state = self._state()
            if state != self._seen:
                self._seen = state
                try:
                    self._configuration = self._read()
                    log.info("the certificate is read again from %s", self._cert)
                except FailedPreconditionError as error:  # perhaps only one of the files is new so far
                    log.error("%s; the certificate read before stays in force", error)
            return self._configuration

    def _read(self) -> grpc.ServerCertificateConfiguration:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_passphrase)
        except OSError as error:  # SSLError is one
            problem = getattr(error, "reason", None) or error.strerror or str(error)
            raise FailedPreconditionError(
                f"tls_cert {self._cert} and tls_key {self._key} cannot be used: {str(problem).lower()}"
            ) from None
        authorities = None
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
                authorities = self._client_ca.read_bytes()
            except OSError as error:
                problem = getattr(error, "reason", None) or error.strerror or str(error)
                raise FailedPreconditionError(
                    f"tls_client_ca {self._client_ca} cannot be used: {str(problem).lower()}"
                ) from None
        pair = (self._key.read_bytes(), self._cert.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authorities)

    def _state(self) -> list[tuple[int, int, int] | None]:
        """Changes whenever one of the files does; a link, as mounted secrets have, is followed."""
        states: list[tuple[int, int, int] | None] = []
        for path in filter(None, (self._cert, self._key, self._client_ca)):
            try:
                state = path.stat()
                states.append((state.st_mtime_ns, state.st_ino, state.st_size))
            except OSError:
                states.append(None)
        return states


def _no_passphrase() -> bytes:
    """Instead of a prompt on the terminal, which nobody would answer."""
    return b""
