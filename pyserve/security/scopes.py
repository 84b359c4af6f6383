"""Which scope a call asks for: one table, and a call that is not in it is nobody's but an admin's."""

from __future__ import annotations

from typing import Literal, get_args

Scope = Literal["predict", "train", "admin"]
Need = Literal["open", "any", "predict", "train", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection."

# A method's full name or the beginning of it; the longest that fits counts. "open": no token is asked for; "any":
# a token is, whatever its scopes; otherwise the token has that scope, or "admin", which may do anything.
NEEDS: dict[str, Need] = {
    HEALTH: "open",
    REFLECTION: "any",
    "/pyserve.v1.Datasets/": "train",
    "/pyserve.v1.Jobs/": "train",
    "/pyserve.v1.Insight/": "train",
    "/pyserve.v1.Insight/Kernels": "any",
    "/pyserve.v1.Predict/": "predict",
    "/pyserve.v1.Models/Get": "any",
    "/pyserve.v1.Models/List": "any",
    "/pyserve.v1.Models/": "admin",  # Load, Unload, SetAlias, Delete, Export, Import
    "/inference.GRPCInferenceService/ServerLive": "open",  # what probes ask, as they ask Health
    "/inference.GRPCInferenceService/ServerReady": "open",
    "/inference.GRPCInferenceService/": "predict",
    "/inference.GRPCInferenceService/RepositoryModelLoad": "admin",
    "/inference.GRPCInferenceService/RepositoryModelUnload": "admin",
    # Everything else that NVIDIA's clients know changes the whole server (tracing, logging, shared memory).
    "/inference.GRPCInferenceService/TraceSetting": "admin",
    "/inference.GRPCInferenceService/LogSettings": "admin",
    "/inference.GRPCInferenceService/SystemSharedMemory": "admin",
    "/inference.GRPCInferenceService/CudaSharedMemory": "admin",
}
_LONGEST_FIRST = sorted(NEEDS, key=len, reverse=True)


def need_of(method: str) -> Need:
    """What a call asks for.

    Args:
        method: its full name, "/package.Service/Method".
    """
    return next((NEEDS[prefix] for prefix in _LONGEST_FIRST if method.startswith(prefix)), "admin")
