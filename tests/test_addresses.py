from __future__ import annotations

import pytest

from pyserve.addresses import address_of, host_of, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LocalHost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "192.168.0.7", "example.org", "localhost.example.org", "127.evil.example"],  # noqa: S104
)
def test_beyond_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("gpu-box:50051", "gpu-box"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]:8080", "::1"),
        ("[::1]", "::1"),
        ("a", "a"),
    ],
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host


def test_an_address_has_a_host_and_a_port() -> None:
    assert address_of("gpu-box", 1) == "gpu-box:1"
    assert address_of("::1", 50051) == "[::1]:50051"
    assert host_of(address_of("::1", 50051)) == "::1"
