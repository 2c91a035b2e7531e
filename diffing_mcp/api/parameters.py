"""Parameters from plain values, and the signatures of functions that take them."""

from __future__ import annotations

import inspect
import operator
import os
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from diffing_mcp.api.type_words import type_text
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import read_again
from diffing_mcp.core.validation_messages import complaints
from diffing_mcp.methods.registry import canonical_name, get_method

P = TypeVar("P", bound=BaseModel)
F = TypeVar("F", bound=Callable[..., Any])

PROGRESS_HELP = "None: a bar in a terminal or a notebook; True or False: always or never; or a callable."


def accepted(params: type[P], values: Mapping[str, Any]) -> P:
    """`params(**values)`. A single value for a parameter that takes a list stands for a list of one: `layers=0.5`; a
    path stands for its text: `corpus=Path("texts.jsonl")`.

    Raises:
        InvalidInput: an unknown parameter or a value outside of its range, all of them in one readable line, and what
            there is.
    """
    read_again()
    values = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in values.items()}
    try:
        return params.model_validate(values)
    except ValidationError as first:
        # Only what was refused as it is gets wrapped, so that a parameter that takes one value keeps its own complaint.
        listed = {
            str(error["loc"][0])
            for error in first.errors()
            if error["loc"] and error["type"] in {"list_type", "tuple_type"}
        }
        try:
            if not listed:
                raise first
            return params.model_validate({key: [value] if key in listed else value for key, value in values.items()})
        except ValidationError as error:
            fields = params.model_fields
            raise InvalidInput(f"{complaints(error, fields)}. Parameters: {', '.join(fields) or 'none'}.") from error


def texts_of(given: Any) -> Any:
    """One text as a list of one, several as a list; what is neither as it is, for `accepted` to refuse."""
    if isinstance(given, str):
        return [given]
    return given if isinstance(given, Mapping | bytes) or not isinstance(given, Iterable) else list(given)


def check_counts(**numbers: Any) -> None:
    """Raise InvalidInput for what is no whole number of at least 1, by its name."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InvalidInput(f"{name} is a whole number of at least 1, not {number!r}.")


def method_requests(names: Sequence[str], settings: Mapping[str, Any]) -> list[tuple[str, BaseModel]]:
    """Each method's name with its parameters. A plain key of `settings` goes to every method that knows it, a key
    `METHOD.parameter` to that method alone.

    Raises:
        UnknownName: there is no such method.
        InvalidInput: a parameter that none of the methods knows, or a value out of range.
    """
    chosen = {method.name: method for method in map(get_method, names)}
    given: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    unknown = []
    for key, value in settings.items():
        owner, dot, parameter = key.partition(".")
        if dot and (owner := canonical_name(owner)) in chosen:
            given[owner][parameter] = value
            continue
        # A single method's own complaint of an unknown parameter names the closest one.
        takers = [name for name in chosen if len(chosen) == 1 or key in chosen[name].Params.model_fields]
        for name in takers:
            given[name].setdefault(key, value)
        if not takers:
            unknown.append(key)
    if unknown:
        known = " ".join(f"{name}: {', '.join(method.Params.model_fields)}." for name, method in chosen.items())
        raise InvalidInput(f"No method here takes {', '.join(unknown)}. {known}")
    return [(name, accepted(method.Params, given[name])) for name, method in chosen.items()]


def takes_parameters_of(model: type[BaseModel], positional: Sequence[str] = ()) -> Callable[[F], F]:
    """Give a function `f(pair, **settings)` or `f(pair, first=..., **settings)` the signature that `model` declares,
    and say in its docstring what each parameter means.

    Args:
        positional: fields that the function takes by position, after the pair.
    """

    def declare(function: F) -> F:
        own = [each for each in inspect.signature(function).parameters.values() if each.kind is not each.VAR_KEYWORD]
        names = [each.name for each in own]
        fields = {name: field for name, field in model.model_fields.items() if name not in names}
        parameters = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty
                if field.is_required()
                else field.get_default(call_default_factory=True),
                annotation=plain_type(field.annotation),
            )
            for name, field in fields.items()
        ]
        # What must be given stands before what need not be.
        parameters.sort(key=lambda each: each.default is not inspect.Parameter.empty)
        before = [each for each in own if each.kind is not each.KEYWORD_ONLY]
        after = [each for each in own if each.kind is each.KEYWORD_ONLY]
        function.__signature__ = inspect.signature(function).replace(  # type: ignore[attr-defined]
            parameters=[*before, *parameters, *after]
        )
        lines = [_line(name, model) for name in [*positional, *fields]]
        function.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("{parameters}", "\n".join(lines))
        return function

    return declare


def plain_type(annotation: Any) -> Any:
    """A type without the ranges that its parts are annotated with, which the docstring states in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return plain_type(parts[0])
    if origin in (Union, types.UnionType):
        return reduce(operator.or_, map(plain_type, parts))
    if origin in (None, Literal):
        return annotation
    return origin[tuple(part if part is ... else plain_type(part) for part in parts)]


def _line(name: str, model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    field = schema["properties"][name]
    words = f"{name} ({type_text(field, schema.get('$defs', {}))}): {field.get('description', '')}".rstrip(": ")
    return wrapped(words, "    ", "        ")


def wrapped(text: str, first: str = "", rest: str = "") -> str:
    """A text in lines that fit below each other in `help()`."""
    return textwrap.fill(text, 100, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
