"""What a batch asks for: a YAML file of pairs x methods x seeds, collections of activations and suites."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.validation_messages import complaints
from diffing_mcp.scaling.tasks import CollectionTask, EvaluationTask, MethodsTask, Request, Task


class BatchFile(BaseModel):
    """The contents of a batch's file."""

    model_config = ConfigDict(extra="forbid")

    pairs: list[str] = Field(default_factory=list, description="Of the catalogue, or BASE::FINETUNED.")
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Method -> its parameters, run on each pair. Also a list of names."
    )
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1, description="For methods that have a seed.")
    activations: list[dict[str, Any]] = Field(
        default_factory=list, description="Collections of activations of each pair, by their parameters."
    )
    suites: list[str] = Field(default_factory=list, description="Suites of evaluations, by name or file.")

    @field_validator("methods", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: parameters or {} for name, parameters in value.items()}
        return {name: {} for name in value} if isinstance(value, list) else value


def read_batch(file: Path) -> BatchFile:
    """The batch in a file.

    Raises:
        InvalidInput: no such file, not YAML, or a field is wrong.
    """
    try:
        return BatchFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        fields = list(BatchFile.model_fields)
        raise InvalidInput(f"{file.name}: {complaints(error, fields)}. Fields: {', '.join(fields)}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file.name} is not a YAML file: {' '.join(str(error).split())}") from None


def tasks_of(batch: BatchFile) -> list[Task]:
    """The tasks of a batch, each checked before any is started. Methods of a pair with one seed are one task, so that
    they share their pass over the text.

    Raises:
        UnknownName, InvalidInput: a pair, a method, a suite or a parameter is wrong, or nothing is asked for.
    """
    from diffing_mcp.model_pairs.resolve import resolve_pair

    if (batch.methods or batch.activations) and not batch.pairs:
        raise InvalidInput("The batch names methods or activations but no `pairs`.")
    for pair in batch.pairs:
        resolve_pair(pair)
    tasks: list[Task] = []
    for pair in batch.pairs:
        done: set[str] = set()
        for seed in batch.seeds:
            requests = [request for request in _requests(batch.methods, seed) if request.model_dump_json() not in done]
            done |= {request.model_dump_json() for request in requests}
            if requests:
                tasks.append(MethodsTask(pair=pair, requests=requests))
        tasks += [CollectionTask.checked(pair, parameters) for parameters in batch.activations]
    for suite in batch.suites:
        tasks += EvaluationTask.of_suite(suite)
    if not tasks:
        raise InvalidInput("The batch asks for nothing: give `pairs` with `methods` or `activations`, or `suites`.")
    return tasks


def _requests(methods: dict[str, dict[str, Any]], seed: int) -> Iterable[Request]:
    """The methods with this seed; one without a seed is the same for all of them."""
    from diffing_mcp.methods.registry import get_method
    from diffing_mcp.methods.runs.execute import check_params

    for name, given in methods.items():
        method = get_method(name)
        seeded = {"seed": seed} if "seed" in method.Params.model_fields and "seed" not in given else {}
        params = check_params(method, {**given, **seeded})
        yield Request(method=method.name, params=params.model_dump(mode="json"))
