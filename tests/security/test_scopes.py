"""The table of scopes covers every call there is, and no call is open by accident."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from pyserve.config import Settings
from pyserve.security.scopes import HEALTH, NEEDS, REFLECTION, need_of
from pyserve.server.app import Server


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every method that a server answers."""
    found: list[str] = []

    class Registrar:
        """Takes handlers as grpc.aio.Server does."""

        def add_generic_rpc_handlers(self, handlers: object) -> None:
            pass

        def add_registered_method_handlers(self, service: str, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
            found.extend(f"/{service}/{method}" for method in handlers)

    server = Server(Settings(data_dir=Path(tmp_path_factory.mktemp("scopes"))))
    server._add_services(Registrar())  # type: ignore[arg-type]
    server._pools.close()
    server._store.close()
    return found


def test_every_call_has_a_row(methods: list[str]) -> None:
    assert len(methods) > 20
    assert [m for m in methods if not any(m.startswith(prefix) for prefix in NEEDS)] == []


def test_what_is_open(methods: list[str]) -> None:
    probes = {f"/inference.GRPCInferenceService/{name}" for name in ("ServerLive", "ServerReady")}
    assert {m for m in methods if need_of(m) == "open"} - probes == {f"{HEALTH}Check", f"{HEALTH}Watch"} | {
        m for m in methods if m == f"{HEALTH}List"
    }


def test_what_is_not_in_the_table_is_an_admins() -> None:
    assert need_of("/pyserve.v1.Tokens/Create") == "admin"
    assert need_of("/pyserve.v1.DatasetsX/Get") == "admin"
    assert need_of("") == "admin"


def test_the_longest_row_counts() -> None:
    assert need_of("/pyserve.v1.Models/Get") == "any"
    assert need_of("/pyserve.v1.Models/Delete") == "admin"
    assert need_of("/inference.GRPCInferenceService/ModelInfer") == "predict"
    assert need_of("/inference.GRPCInferenceService/RepositoryModelLoad") == "admin"
    assert need_of(f"{REFLECTION}v1.ServerReflection/ServerReflectionInfo") == "any"
