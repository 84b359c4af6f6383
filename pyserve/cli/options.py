"""Options made from a spec's fields, and the other way round: the pydantic model is the one list of them.

Values go to `pyserve.spec.parse` as they are, so that a wrong one gets the same sentence here as from the server.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pyserve.spec import TrainSpec
from pyserve.v1 import jobs_pb2


def spec_options(*models: type[BaseModel], leave_out: Collection[str]) -> Callable[[Callable[..., None]], Any]:
    """Give a command one option for each field of the models; its `**fields` gets those that were given.

    Args:
        models: the specs, in the order in which --help shows them.
        leave_out: fields that the command has in another form.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        plain = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
        made = [
            _option(name, field)
            for model in models
            for name, field in model.model_fields.items()
            if name not in leave_out
        ]
        names = {parameter.name for parameter in made}

        def call(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            command(**values, **{name: value for name, value in given.items() if value is not None})

        call.__doc__ = command.__doc__
        call.__name__ = command.__name__
        call.__signature__ = inspect.Signature([*plain, *made])  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in [*plain, *made]}
        return call

    return decorate


def options_of(training: jobs_pb2.TrainSpec) -> list[str]:
    """The options of `pyserve train` that ask for this training: what differs from its network's defaults."""
    fields = {field.name: value for field, value in training.ListFields()}
    given = {name: fields[name] for name in TrainSpec.model_fields if name in fields and name != "dataset"}
    asked = {name: given[name] for name in ("architecture", "weights") if given.get(name)}
    usual = TrainSpec(dataset="datasets/any", **asked)
    words: list[str] = []
    for name, value in given.items():
        default = TrainSpec.model_fields[name].default if name in asked else getattr(usual, name)
        if value == default:
            continue
        flag = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return words


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    kind = _kind(field.annotation)
    flag = f"--{name.replace('_', '-')}"
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    info = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=_help(field, choices),
        show_default=False,
    )
    value_type = str if choices else kind
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[value_type | None, info]
    )


def _kind(annotation: Any) -> Any:
    """The type without None and without pydantic's constraints."""
    if get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _help(field: FieldInfo, choices: tuple[str, ...]) -> str:
    text = field.description or ""
    if choices:
        text = f"{text.removesuffix('.')}: {', '.join(choices)}."
    if field.default in (None, "", PydanticUndefined) or field.default is False:
        return text
    default = f"{field.default:g}" if isinstance(field.default, float) else field.default
    return f"{text} (default: {default})"
