"""What all descriptions have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Finite = Annotated[float, Field(allow_inf_nan=False)]


def located(field: str, got: object, expected: str) -> PydanticCustomError:
    """The error of a check that sees several fields, for the one to blame."""
    return PydanticCustomError("located", "{expected}", {"field": field, "got": got, "expected": expected})


class Spec(BaseModel):
    """A description of a job: frozen, and without fields that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)
