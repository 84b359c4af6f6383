"""From plain values to a description, or to an error that names each wrong field."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from pyserve.errors import FieldViolation, InvalidArgumentError
from pyserve.spec.base import Spec

_LIMIT_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def parse(model: type[Spec], values: dict[str, Any], prefix: str) -> Any:
    """Build a spec from plain values, or say which fields are wrong.

    Args:
        model: `TrainSpec` or `FindLearningRateSpec`.
        values: field → value; absent fields take their defaults.
        prefix: the request field that holds the spec, such as "train".

    Raises:
        InvalidArgumentError: with one violation per wrong field, `train.epochs: got -1, expected ≥ 1`.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        violations = tuple(_violation(e, prefix) for e in error.errors())
        message = "; ".join(f"{v.field}: {v.description}" for v in violations)
        raise InvalidArgumentError(message, fields=violations) from None


def _violation(error: Any, prefix: str) -> FieldViolation:
    field = ".".join([prefix, *(str(part) for part in error["loc"])])
    got = error["input"]
    if error["type"] == "located":
        field, got = f"{field}.{error['ctx']['field']}", error["ctx"]["got"]
    told = "nothing" if error["type"] == "missing" or got is None else _short(got)
    return FieldViolation(field, f"got {told}, expected {_expectation(error)}")


def _expectation(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "located":
        return str(context["expected"])
    for key, sign in _LIMIT_SIGNS.items():
        if key in context:
            return f"{sign} {context[key]}"
    if kind == "missing":
        return "a value"
    if kind == "literal_error":
        return f"one of {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"text matching {context['pattern']}"
    if kind == "finite_number":
        return "a finite number"
    if kind == "extra_forbidden":
        return "no such field"
    if kind == "value_error":
        return str(context["error"])
    return str(error["msg"][0].lower() + error["msg"][1:])


def _short(value: object, limit: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
