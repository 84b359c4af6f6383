from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyserve.errors import UnavailableError
from pyserve.models.download import download

CONTENT = b"weights" * 1000
GOOD = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        if self.path == "/silent/net-00000000.pth":
            threading.Event().wait(1.5)
        self.send_response(404 if "gone" in self.path else 200)
        self.send_header("Content-Length", str(len(CONTENT) + ("cut" in self.path)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_file_is_downloaded_once(address: str, tmp_path: Path) -> None:
    before = Handler.requests
    for _ in range(2):
        path = download(f"{address}/models/{GOOD}", tmp_path / "new")
        assert path == tmp_path / "new" / GOOD
        assert path.read_bytes() == CONTENT
    assert Handler.requests == before + 1
    assert list((tmp_path / "new").iterdir()) == [path]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/net-00000000.pth", "its SHA-256 begins with .* instead of 00000000"),
        (f"/gone/{GOOD}", "404"),
        ("/silent/net-00000000.pth", "timed out"),
    ],
)
def test_what_goes_wrong_leaves_nothing_behind(address: str, tmp_path: Path, path: str, reason: str) -> None:
    with pytest.raises(UnavailableError, match=rf"{path}.*{reason}.*put the file under one of the weights_roots"):
        download(address + path, tmp_path, timeout_s=0.3)
    assert list(tmp_path.iterdir()) == []


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="could not be downloaded"):
        download(f"http://127.0.0.1:1/{GOOD}", tmp_path)


def test_a_name_without_a_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the first digits of its SHA-256"):
        download("https://localhost/net.pth", tmp_path)
