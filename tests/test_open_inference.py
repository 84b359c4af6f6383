"""The open inference protocol's messages are those of NVIDIA's own client, and live beside them in one process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import tritonclient.grpc.model_config_pb2 as their_config
import tritonclient.grpc.service_pb2 as theirs
from google.protobuf.descriptor import FieldDescriptor

from pyserve.open_inference import grpc_service_pb2 as ours

# Messages of which only what pyserve tells is declared here.
PARTIAL = {
    f"inference.{name}"
    for name in ("ModelConfig", "ModelInput", "ModelOutput", "ModelInstanceGroup", "ModelDynamicBatching")
}
KINDS = {value: name for name, value in vars(FieldDescriptor).items() if name.startswith("TYPE_")}


def messages(descriptors: Iterable[Any]) -> Iterator[Any]:
    """Messages with those declared inside them."""
    for descriptor in descriptors:
        yield descriptor
        yield from messages(descriptor.nested_types)


def fields(message: Any) -> dict[str, tuple[object, ...]]:
    """What of each field goes over the wire or into generated code."""
    return {
        field.name: (
            field.number,
            KINDS[field.type],
            field.is_repeated,
            field.message_type.full_name if field.message_type else None,
            field.enum_type.full_name if field.enum_type else None,
            field.containing_oneof.name if field.containing_oneof else None,
        )
        for field in message.fields
    }


def declared(attribute: str) -> dict[str, Any]:
    """All messages or enums of NVIDIA's client, by full name."""
    found = [d for file in (theirs, their_config) for d in getattr(file.DESCRIPTOR, attribute).values()]
    return {d.full_name: d for d in (messages(found) if attribute == "message_types_by_name" else found)}


def test_every_field_is_as_nvidias_client_has_it() -> None:
    known = declared("message_types_by_name")
    own = list(messages(ours.DESCRIPTOR.message_types_by_name.values()))
    assert len(own) > 60
    for message in own:
        mine, reference = fields(message), fields(known[message.full_name])
        assert mine == {name: reference.get(name) for name in mine}, message.full_name
        if message.full_name not in PARTIAL:
            assert set(mine) == set(reference), message.full_name


def test_every_enum_value_is_as_nvidias_client_has_it() -> None:
    known = declared("enum_types_by_name")
    for enum in ours.DESCRIPTOR.enum_types_by_name.values():
        values = {value.name: value.number for value in enum.values}
        assert values == {value.name: value.number for value in known[enum.full_name].values}


def test_every_call_is_as_nvidias_client_has_it() -> None:
    def calls(file: Any) -> dict[str, tuple[object, ...]]:
        methods = file.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
        return {
            m.name: (m.input_type.full_name, m.output_type.full_name, m.client_streaming, m.server_streaming)
            for m in methods
        }

    assert calls(ours) == calls(theirs)


def test_bytes_of_one_side_are_read_by_the_other() -> None:
    request = theirs.ModelInferRequest(model_name="pets", id="7", raw_input_contents=[b"x"])
    request.parameters["priority"].uint64_param = 1
    request.inputs.add(name="encoded", datatype="BYTES", shape=[1])
    assert ours.ModelInferRequest.FromString(request.SerializeToString()).SerializeToString(
        deterministic=True
    ) == request.SerializeToString(deterministic=True)
