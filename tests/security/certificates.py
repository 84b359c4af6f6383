"""Authorities and certificates for tests, as PEM files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Pair:
    """A certificate chain and its key."""

    cert: Path
    key: Path


class Authority:
    """A certificate authority whose files lie in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.cert = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.cert))

    def issue(self, name: str, *hosts: str, common_name: str = "") -> Pair:
        """A certificate for a server's hosts, or for a client; an existing one of that name is replaced."""
        issued = self._ca.issue_cert(*(hosts or ("localhost", "127.0.0.1")), common_name=common_name or None)
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        pair.key.write_bytes(issued.private_key_pem.bytes())
        pair.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return pair
