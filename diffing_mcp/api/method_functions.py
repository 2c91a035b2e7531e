"""Running methods: one function for each, made from its declaration, and `run` for all of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from pydantic import BaseModel

from diffing_mcp.api.pairs import Pair, as_pair, models_of_this_process
from diffing_mcp.api.parameters import PROGRESS_HELP, accepted, takes_parameters_of, texts_of, wrapped
from diffing_mcp.api.progress import ProgressChoice, watched
from diffing_mcp.api.runs import Run
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.contract import MethodResult
from diffing_mcp.methods.registry import all_methods, canonical_name, get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import default_store

Params = BaseModel | Mapping[str, Any]


class MethodFunction(Protocol):
    """A method as a function, with the types of its parameters and of its result."""

    Params: type[BaseModel]
    Result: type[MethodResult]

    def __call__(self, pair: Pair | str, *, progress: ProgressChoice = None, **settings: Any) -> Run[Any]: ...


def run(
    pair: Pair | str, method: str | BaseModel, params: Params | None = None, *, progress: ProgressChoice = None
) -> Run[Any]:
    """Run a method on a pair. What has been run before with the same models and parameters is looked up.

    `run(pair, "kl", {"max_samples": 256})`, `run(pair, kl.Params(max_samples=256))` and `kl(pair, max_samples=256)` are
    the same.

    Args:
        pair: from `load_pair`, or a pair of the catalogue by name.
        method: the method's name, or its parameters, which name it.
        params: the parameters as a mapping or as the method's `Params`; its defaults when left out.
        progress: None: a bar in a terminal or a notebook; True or False: always or never; or a callable.

    Raises:
        UnknownName: there is no such method or pair.
        InvalidInput: an unknown parameter or a value out of range, before any model is loaded.
        NotTheSame, OutOfRoom, NotFinite: the models do not fit together, do not fit into memory, or compute no numbers.
    """
    name, given = (method, params) if isinstance(method, str) else (_method_of(method), method)
    if given is method and params is not None:
        raise InvalidInput("Parameters are given twice: as the method and as `params`.")
    [finished] = run_many(pair, {name: given or {}}, progress=progress)
    return finished


def run_many(
    pair: Pair | str, methods: Mapping[str, Params] | Sequence[str] | str, *, progress: ProgressChoice = None
) -> list[Run[Any]]:
    """Run several methods on a pair; those that read the same text share one pass over it.

    Args:
        pair: from `load_pair`, or a pair of the catalogue by name.
        methods: names (or one), or names with their parameters.
        progress: None: a bar in a terminal or a notebook; True or False: always or never; or a callable.

    Returns:
        The runs in the order asked.

    Raises:
        What `run` raises; a method that fails does not take the others with it: what was finished is stored.
    """
    given = methods if isinstance(methods, Mapping) else {name: {} for name in texts_of(methods)}
    requests = [(name, _checked(name, params)) for name, params in given.items()]
    spec = as_pair(pair).spec
    with watched(progress, "loading") as report:
        records = run_methods(models_of_this_process(), spec, requests, default_store(), report)
    return [Run(record) for record in records]


@lru_cache
def method_function(name: str) -> MethodFunction | None:
    """The function of a registered method, with the signature of its parameters; None when there is no such method."""
    method = all_methods().get(canonical_name(name))
    if method is None:
        return None

    def call(pair: Pair | str, *, progress: ProgressChoice = None, **settings: Any) -> Run[Any]:
        return run(pair, name, settings, progress=progress)

    call.__doc__ = f"""{method.title}.

{wrapped(method.description)}

What has been run before with the same models and parameters is looked up.

Args:
    pair: from `load_pair`, or a pair of the catalogue by name.
{{parameters}}
    progress: {PROGRESS_HELP}

Returns:
    The finished run; its `result` is a `{method.Result.__name__}`.

Raises:
    What `run` raises."""
    call.__name__ = call.__qualname__ = method.name
    call.__module__ = "diffing_mcp"
    function: Any = takes_parameters_of(method.Params)(call)
    function.__signature__ = inspect.signature(function).replace(return_annotation=Run[method.Result])  # type: ignore[name-defined]
    function.Params, function.Result = method.Params, method.Result
    return function


def _checked(name: str, params: Params) -> BaseModel:
    declared = get_method(name).Params
    if isinstance(params, declared):
        return params
    if isinstance(params, BaseModel):
        raise InvalidInput(f"{name} takes {declared.__name__}, not {type(params).__name__}.")
    return accepted(declared, params)


def _method_of(params: Any) -> str:
    """The name of the method that these are the parameters of."""
    for name, method in all_methods().items():
        if type(params) is method.Params:
            return name
    raise InvalidInput(
        f"{type(params).__name__} is not the parameters of a method. Give a name, or the `Params` of a method's "
        f"function. Methods: {', '.join(all_methods())}."
    )
