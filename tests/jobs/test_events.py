from __future__ import annotations

import typing

import pytest
from pydantic import ValidationError

from pyserve.jobs.events import JobState, LogLine, Payload, SpokenWarning, StateChange, parse_payload
from pyserve.v1 import jobs_pb2


def payload_classes() -> dict[str, type]:
    union = typing.get_args(Payload)[0]
    return {cls.model_fields["kind"].default: cls for cls in typing.get_args(union)}


def test_kinds_and_fields_are_those_of_the_protocol() -> None:
    oneof = jobs_pb2.Event.DESCRIPTOR.oneofs_by_name["event"]
    classes = payload_classes()
    assert set(classes) == {field.name for field in oneof.fields}
    for field in oneof.fields:
        ours = set(classes[field.name].model_fields) - {"kind"}
        assert ours == {f.name for f in field.message_type.fields}, field.name


def test_states_are_those_of_the_protocol() -> None:
    assert {state.value for state in JobState} == set(jobs_pb2.JobState.keys()) - {"JOB_STATE_UNSPECIFIED"}


def test_payloads_come_back() -> None:
    for payload in (StateChange(state=JobState.FAILED, reason="x"), SpokenWarning(code="a", message="ü")):
        assert parse_payload(payload.model_dump_json()) == payload


def test_fields_of_later_versions_are_left_out() -> None:
    assert parse_payload('{"kind": "log", "message": "x", "colour": 3}') == LogLine(message="x")


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValidationError, match="kind"):
        parse_payload('{"kind": "noise"}')
