"""The descriptor pool of the open inference protocol's messages.

Clients such as tritonclient and kserve bring definitions of `inference.*` of their own, in files of other names.
Protobuf allows that in one process only where each is in a pool of its own, so the generated module beside this
uses this one instead of the default one (see scripts/protos).
"""

from __future__ import annotations

from google.protobuf.descriptor_pool import DescriptorPool

_POOL = DescriptorPool()


def Default() -> DescriptorPool:  # noqa: N802  # the name that generated code calls
    """The pool."""
    return _POOL
