"""Command-line options made from the settings, so that defaults, help and validation exist once."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from segpipe.kinds import OneOf

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = TypeVar("Settings", bound=BaseModel)


class _Text(click.ParamType):
    """Text of at least one character: what is empty is a variable that was not set."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip():
            self.fail("it is empty: give a value, or leave it out", param, ctx)
        return str(value)


TEXT = _Text()


def options_of(kind: type[BaseModel], *names: str) -> Callable[[Command], Command]:
    """A decorator that gives a command one option per field of the settings, or of those named."""

    def decorate(command: Command) -> Command:
        for name in reversed(names or tuple(kind.model_fields)):
            command = _option(name, kind.model_fields[name])(command)
        return command

    return decorate


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    details: dict[str, Any] = {"help": field.description, "required": field.is_required()}
    if not field.is_required():
        details |= {"default": field.default, "show_default": field.default not in (None, ())}
    if field.annotation is bool:
        return click.option(_flag(name), is_flag=True, **details)
    if get_origin(field.annotation) is tuple:
        details["multiple"] = True
    tables = [one.table for one in field.metadata if isinstance(one, OneOf)]
    kind = click.Choice(list(tables[0])) if tables else _click_type(field.annotation)
    return click.option(_flag(name), type=kind, **details)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _click_type(annotation: Any) -> click.ParamType:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _click_type(next(part for part in parts if part is not type(None)))
    if origin is tuple and Ellipsis not in parts:
        return click.Tuple([_click_type(part) for part in parts])
    if origin in (Annotated, tuple):
        return _click_type(parts[0])
    if origin is Literal:
        return click.Choice(parts)
    return TEXT if annotation is str else click.types.convert_type(annotation)


def build(kind: type[Settings], values: Mapping[str, object]) -> Settings:
    """The settings with these values; raises click.UsageError that names the option at fault."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # the settings contradict each other
            raise click.UsageError(reason) from None
        raise click.BadParameter(reason, param_hint=_flag(str(first["loc"][0]))) from None
