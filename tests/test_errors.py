"""The exception tree and its table."""

from __future__ import annotations

import grpc
import pytest

from pyserve import errors
from pyserve.errors import STATUS_NAMES, InvalidArgumentError, PyserveError


def subclasses(cls: type) -> set[type]:
    return {cls} | {s for c in cls.__subclasses__() for s in subclasses(c)}


def test_every_exception_has_a_row_and_is_drawn() -> None:
    ours = {cls for cls in subclasses(PyserveError) if cls.__module__ == PyserveError.__module__}
    assert set(STATUS_NAMES) == ours - {PyserveError}
    for cls in STATUS_NAMES:
        assert cls.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("cls", STATUS_NAMES)
def test_status_exists_in_grpc_and_comes_back_as_the_same_family(cls: type[PyserveError]) -> None:
    name = errors.status_name(cls("sentence"))
    assert grpc.StatusCode[name].name == name
    assert issubclass(cls, errors.error_class(name))


def test_foreign_exceptions_are_internal() -> None:
    assert errors.status_name(KeyError("x")) == "INTERNAL"
    assert errors.error_class("UNKNOWN") is errors.InternalError


def test_field_sentence() -> None:
    error = InvalidArgumentError.field("train.epochs", -1, "≥ 1")
    assert str(error) == "train.epochs: got -1, expected ≥ 1"
    assert [(v.field, v.description) for v in error.fields] == [("train.epochs", "got -1, expected ≥ 1")]


def test_wrong_values_are_not_repeated_whole() -> None:
    for value in ("x" * 10_000_000, b"x" * 10_000_000, ["x" * 1000] * 1000):
        error = InvalidArgumentError.field("name", value, "less")
        assert len(error.message) < 600
        assert "…" in error.message
    assert InvalidArgumentError.field("name", "short", "less").message == "name: got 'short', expected less"
