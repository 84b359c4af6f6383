"""Hosts and addresses, as clients, servers and the page name them."""

from __future__ import annotations

import ipaddress
from contextlib import suppress


def is_loopback(host: str) -> bool:
    """Whether a host, "127.0.0.1", "::1", "[::1]" or "localhost", is this machine as it reaches itself."""
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host.lower() == "localhost"


def host_of(address: str) -> str:
    """The host of "host:port", without the brackets of an IPv6 one; the port may be missing."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0]


def address_of(host: str, port: int) -> str:
    """ "host:port", an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
