"""What a tool of this server is, and the one envelope every answer comes in."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from mcp.types import ToolAnnotations
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model

from diffing_mcp.mcp_server.jobs import Job, Part, Unfinished
from diffing_mcp.mcp_server.ledger import BudgetState
from diffing_mcp.methods.contract import CostEstimate

DEFAULT_WAIT_SECONDS = 45.0
DEFAULT_CHARACTERS = 6000
"""Untrusted text of one answer: about 1,700 tokens, so that the whole stays below 2,000."""


def _parsed(value: Any) -> Any:
    """A JSON object as an object; anything else is left to the validation."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else {}
    except ValueError:
        return value


JsonObject = Annotated[dict[str, Any], BeforeValidator(_parsed), WithJsonSchema({"type": "string"})]
"""An object of any keys. Hosts that know only closed objects (OpenAI's strict mode, Gemini) are told that it is a text;
objects are taken as well.
"""


class Arguments(BaseModel):
    """Base of all tools' arguments: unknown names are refused."""

    model_config = ConfigDict(extra="forbid")


class PairArguments(Arguments):
    """Arguments of a tool about one pair."""

    pair: str = Field(description="Its name, from list_pairs.", min_length=1, max_length=1000)


class WaitArguments(Arguments):
    """Arguments of a tool that may take long."""

    wait_seconds: float = Field(
        DEFAULT_WAIT_SECONDS, ge=0, le=50, description="Longer work goes on as a job (get_job)."
    )
    estimate_only: bool = Field(False, description="Only say the cost.")


class Deleted(BaseModel):
    """What is gone from the disk."""

    deleted: str
    megabytes: float


class JobState(BaseModel):
    """Where a piece of work is."""

    job_id: str
    tool: str
    pair: str | None = Field(None, description="The pair it is about.")
    state: Literal["queued", "running", "completed", "failed", "cancelled"]
    progress: float | None = Field(None, description="Share done, 0 to 1; null while unknown.")
    message: str = ""
    queued_before: int = Field(0, description="Jobs that come first on the same device.")
    sharing: int = Field(0, description="Jobs that it takes turns with on its device.")
    seconds: float = Field(0, description="Seconds of work so far.")
    starts_in: float | None = Field(None, description="Seconds until it begins, as far as known.")
    ends_in: float | None = Field(None, description="Seconds until it ends, as far as known.")
    ends_between: tuple[float, float] | None = Field(
        None, description="At least and at most: by what is done of the work, and by its estimate."
    )
    estimate: CostEstimate | None = None
    parts: list[Part] = Field([], description="What is finished already, while the rest goes on.")
    unfinished: list[Unfinished] = Field([], description="Answers as far as they are written, for operators.")


class AnswerEnvelope(BaseModel):
    """The envelope of every answer. Fields without a value are left out."""

    status: Literal["completed", "running", "cancelled", "estimate"] = Field(
        description="`running`: the work goes on, call get_job with job.job_id."
    )
    result: Any = Field(None, description="The tool's result, once completed.")
    run_id: str | None = Field(
        None, description="The stored run behind the result: cite it as evidence, read more of it with view_run."
    )
    job: JobState | None = None
    estimate: CostEstimate | None = None
    budget: BudgetState | None = Field(None, description="What the investigation has left.")
    next_step: str | None = None
    remarks: list[str] | None = Field(
        None,
        description=(
            "What to know of how the pair was loaded, or of a stored run's models, before trusting the numbers."
        ),
    )


@dataclass
class Reply:
    """What a tool's handler returns; the server puts it into an `AnswerEnvelope`."""

    result: BaseModel | None = None
    text: str = ""
    run_id: str | None = None
    job: Job | None = None
    estimate: CostEstimate | None = None
    next_step: str | None = None
    remarks: Sequence[str] = ()
    """They may name models: shown to operators only."""


@dataclass(frozen=True)
class ToolDeclaration:
    """One tool. `handler` gets the `diffing_mcp.mcp_server.call.Call` and the validated arguments.

    `tool_calls` is what a call takes from that budget; `price` says in words what it takes from the model interactions
    (shown by describe_pair). `read_only`: it changes nothing but finished runs and the caller's own jobs. `lasting`: it
    trains, stores, deletes or unloads what others use, which a server started with --read-only does not do.
    """

    name: str
    title: str
    description: str
    Arguments: type[BaseModel]
    Result: type[BaseModel]
    handler: Callable[[Any, Any], Awaitable[Reply]]
    tool_calls: int = 1
    price: str = ""
    operator_only: bool = False
    read_only: bool = True
    lasting: bool = False
    destructive: bool = False
    idempotent: bool = True

    def annotations(self, operator: bool) -> ToolAnnotations:
        """The hints that a caller gets. An operator may name a pair by hub ids, so a tool about a pair may reach the
        hub; an investigation has one pair.
        """
        return ToolAnnotations(
            read_only_hint=self.read_only and not self.lasting,
            destructive_hint=self.destructive,
            idempotent_hint=self.idempotent,
            open_world_hint=operator and "pair" in self.Arguments.model_fields,
        )

    @cached_property
    def input_schema(self) -> dict[str, Any]:
        """JSON schema of the arguments, without what only fills an agent's context: titles and descriptions that
        repeat names, empty defaults, lengths of texts.
        """
        schema = self.Arguments.model_json_schema()
        definitions = schema.pop("$defs", {})
        for described in (schema, *definitions.values()):
            described.pop("description", None)  # "Arguments of ..."
        return _compact(_inlined(schema, definitions))

    @cached_property
    def output_schema(self) -> dict[str, Any]:
        """JSON schema of the answer with this tool's result in it."""
        title = "".join(part.capitalize() for part in self.name.split("_"))
        fields: dict[str, Any] = {
            "result": (self.Result | None, Field(None, description="The result, once completed."))
        }
        answer: type[BaseModel] = create_model(f"{title}Answer", __base__=AnswerEnvelope, **fields)
        schema = answer.model_json_schema(mode="serialization")
        # What has no value is left out of an answer, at any depth, so nothing that may be null is required.
        return {**_nullables_optional(schema), "required": ["status"]}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A JSON schema with its definitions in place of the references to them, which OpenAI's strict mode refuses."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str):
        schema = {**definitions[reference.rsplit("/", 1)[-1]], **schema}
        del schema["$ref"]
    return {key: _inlined(value, definitions) for key, value in schema.items()}


_LEFT_OUT = {"title", "minLength", "maxLength", "minItems", "pattern"}
_EMPTY_DEFAULTS = (None, "", False)
_HARDLY_A_BOUND = 2**31 - 1


def _compact(schema: Any) -> Any:
    """The same JSON schema in fewer characters and in the words that all hosts take: no lists of types, no
    `prefixItems`, no `additionalProperties` (Gemini takes none, OpenAI's strict mode none but false). Lengths and
    patterns of texts are left to the validation, which explains them.
    """
    if isinstance(schema, list):
        return [_compact(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {
        key: value for key, value in schema.items() if not (key == "additionalProperties" and isinstance(value, bool))
    }
    if "prefixItems" in schema:  # a pair of numbers: hosts refuse lists whose items have no one schema
        kinds = [_compact(part) for part in schema["prefixItems"]]
        items = kinds[0] if all(kind == kinds[0] for kind in kinds) else {"anyOf": kinds}
        schema = {**{key: value for key, value in schema.items() if key != "prefixItems"}, "items": items}
    short = {
        key: {name: _compact(part) for name, part in value.items()}
        if key == "properties"
        else _short_number(value)
        if key in ("default", "minimum", "maximum")
        else _compact(value)
        for key, value in schema.items()
        if not (key in _LEFT_OUT and isinstance(value, str | int))
        and not (key == "default" and any(value is empty for empty in _EMPTY_DEFAULTS))
        and not (key == "maximum" and value >= _HARDLY_A_BOUND)
    }
    options = short.pop("anyOf", None)
    if options is None:
        return short
    options = [part for option in options for part in (option["anyOf"] if set(option) == {"anyOf"} else [option])]
    null = {"type": "null"}
    # Every integer is a number.
    rest = [
        option
        for option in options
        if option != null and not (option == {"type": "integer"} and {"type": "number"} in options)
    ]
    # Null is taken and not advertised: several hosts refuse lists of types.
    return {**rest[0], **short} if len(rest) == 1 else {"anyOf": rest, **short}


def _short_number(value: Any) -> Any:
    """45.0 as 45."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _nullables_optional(schema: Any) -> Any:
    """A JSON schema in which no object requires a property that may be null."""
    if isinstance(schema, list):
        return [_nullables_optional(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    relaxed = {key: _nullables_optional(value) for key, value in schema.items()}
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, dict) and isinstance(required, list):
        relaxed["required"] = [
            name
            for name in required
            if not any(option.get("type") == "null" for option in properties.get(name, {}).get("anyOf", []))
        ]
    return relaxed


def tool_names(tools: Mapping[str, ToolDeclaration]) -> list[str]:
    """Names of the tools that an investigation can have, in their order."""
    return [name for name, tool in tools.items() if not tool.operator_only]


def with_arguments(name: str, params: type[BaseModel]) -> type[BaseModel]:
    """The arguments of a method's tool: its parameters as they are declared, preceded by the pair and followed by the
    waiting arguments.
    """
    fields: dict[str, Any] = {
        model_field: (PairArguments.model_fields[model_field].annotation, PairArguments.model_fields[model_field])
        for model_field in PairArguments.model_fields
    }
    fields |= {
        model_field: (WaitArguments.model_fields[model_field].annotation, WaitArguments.model_fields[model_field])
        for model_field in WaitArguments.model_fields
    }
    return create_model(f"{name}_arguments", __base__=params, **fields)
