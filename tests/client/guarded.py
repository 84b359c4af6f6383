"""A server that asks for everything: a client's certificate and a token."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from pyserve.config import Settings
from pyserve.security.tokens import TokenFile
from pyserve.server.app import Server
from tests.security.certificates import Authority, Pair


class Guarded:
    """A server with mutual TLS and tokens, and everything that a client needs."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder)
        pair = authority.issue("server")
        self.ca = authority.cert
        self.other_ca = Authority(folder, "other").cert
        self.client: Pair = authority.issue("client", "client.example")
        settings = Settings(
            data_dir=folder / "data",
            port=0,
            require_tokens=True,
            tls_cert=pair.cert,
            tls_key=pair.key,
            tls_client_ca=authority.cert,
        )
        file = TokenFile(settings.tokens_path)
        self.token = file.create("trainer", ["train"])[0]
        self.weak_token = file.create("reader", ["predict"])[0]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = Server(settings)
        self.address = f"localhost:{self._run(self._server.start())}"

    def all(self, **changes: Any) -> dict[str, Any]:
        """The arguments of a client that is let in, with changes."""
        given = {"token": self.token, "ca": self.ca, "cert": self.client.cert, "key": self.client.key}
        return given | {"retry_s": 0.0} | changes

    def stop(self) -> None:
        self._run(self._server.stop(5))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)
