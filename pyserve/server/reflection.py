"""The descriptors that server reflection tells of, in one pool."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import descriptor_pool as default_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from pyserve.open_inference import pool as open_inference_pool


def descriptor_pool(services: Iterable[str]) -> DescriptorPool:
    """A pool with the files of services, which come from the default pool and that of the open inference protocol.

    Args:
        services: full names, "pyserve.v1.Predict".
    """
    pool = DescriptorPool()
    added: set[str] = set()
    for service in services:
        try:
            file = open_inference_pool.Default().FindFileContainingSymbol(service)
        except KeyError:
            file = default_pool.Default().FindFileContainingSymbol(service)
        _add(pool, file, added)
    return pool


def _add(pool: DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    """Add a file after those that it imports."""
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add(pool, dependency, added)
    pool.AddSerializedFile(file.serialized_pb)
