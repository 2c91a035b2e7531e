"""Reading finished runs: the list, and drill-down views that need no model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_jsonable_python

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.text import clip
from diffing_mcp.core.validation_messages import complaints
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.arguments import coerced, cuts
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import (
    DEFAULT_CHARACTERS,
    Arguments,
    JsonObject,
    PairArguments,
    Reply,
    ToolDeclaration,
)
from diffing_mcp.mcp_server.render import NOTICE, Fence, cut_at_line
from diffing_mcp.mcp_server.view_pages import read_page
from diffing_mcp.methods.calibration.readings import level_sentence
from diffing_mcp.methods.contract import View
from diffing_mcp.methods.registry import canonical_name, get_method
from diffing_mcp.methods.runs.store import changed_since

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunManifest, RunRecord
    from diffing_mcp.model_pairs.specs import PairSpec


class ListRunsArguments(PairArguments):
    """Arguments of list_runs."""

    method: str | None = Field(None, max_length=100, description="Only runs of this method.")
    offset: int = Field(0, ge=0)
    limit: int = Field(20, ge=1, le=100)


class RunRow(BaseModel):
    """One finished run."""

    run_id: str
    method: str
    headline: str = Field(description="Its outcome in a sentence. Holds untrusted words.")
    params: dict[str, Any] = Field(description="Parameters that differ from the defaults.")
    created: str
    seconds: float
    forward_passes: int | None = Field(
        None, description="Passes of one model over one batch, both sides together; a shared pass counts whole."
    )
    forward_tokens: int | None = Field(None, description="Tokens read in them.")
    generated_tokens: int | None = None


class ListRunsResult(BaseModel):
    """Runs, newest first."""

    runs: list[RunRow]
    total: int
    next_offset: int | None = None


class ViewRunArguments(Arguments):
    """Arguments of view_run. The parameters that most views have stand here, so that hosts which send only what is
    declared can page; any other may stand beside them as well.
    """

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    run_id: str = Field(
        min_length=2,
        max_length=200,
        validation_alias=AliasChoices("run_id", "run"),
        description="Id, or its beginning.",
    )
    view: str | None = Field(None, max_length=100, description="Left out: the result and the list of views.")
    limit: int | None = Field(None, ge=1, description="Rows.")
    offset: int | None = Field(None, ge=0, description="Rows to skip.")
    contains: str | None = Field(None, max_length=1000, description="Only rows with this text.")
    params: JsonObject = Field(default_factory=dict, description="Other parameters of the view (JSON object).")
    pair: str | None = Field(None, max_length=1000, description="Not needed.")

    def view_params(self, view: View) -> dict[str, Any]:
        """Parameters for the view, wherever they stood. Of those declared here, an empty one that the view does not
        have is left out: some hosts send every parameter.
        """
        common = {"limit": self.limit, "offset": self.offset, "contains": self.contains}
        flat = {
            name: value
            for name, value in common.items()
            if value is not None and (value or name in view.Params.model_fields)
        }
        return {**self.params, **flat, **(self.model_extra or {})}


class ViewRow(BaseModel):
    """A view that a run offers."""

    name: str
    description: str
    params: dict[str, Any] = Field(description="JSON schema of each parameter.")


class ViewRunResult(BaseModel):
    """A view's data, or the list of views with the run's result."""

    run_id: str
    method: str
    params: dict[str, Any]
    views: list[ViewRow] | None = None
    result: dict[str, Any] | None = Field(None, description="The run's result (without `view`). Holds untrusted text.")
    view: str | None = None
    data: Any = Field(None, description="What the view says. Holds untrusted text.")


async def own_runs(call: Call, spec: PairSpec, method: str | None = None) -> list[RunRecord]:
    """The finished runs on a pair (of one method) that this caller may read, newest first."""
    identity, investigation = await call.identity(spec), call.caller.investigation
    mine = investigations.remembered_runs(investigation.id) if investigation else None
    found = await anyio.to_thread.run_sync(call.context.store.records, method and canonical_name(method))
    return [record for record in found if record.manifest.pair == identity and (mine is None or record.id in mine)]


async def list_runs(call: Call, arguments: ListRunsArguments) -> Reply:
    found = await own_runs(call, call.pair(arguments.pair), arguments.method)
    shown = found[arguments.offset : arguments.offset + arguments.limit]
    end = arguments.offset + len(shown)
    rows = await anyio.to_thread.run_sync(lambda: [_row(record) for record in shown])
    result = ListRunsResult(runs=rows, total=len(found), next_offset=end if end < len(found) else None)
    if not found and arguments.method is not None:
        get_method(arguments.method)  # a mistyped name is an error, not an empty list
    counted = f"{len(found)} runs" + (
        f", showing {arguments.offset + 1} to {end}" if 0 < len(shown) < len(found) else "" if shown else ", none here"
    )
    # Headlines quote what the models say.
    room = DEFAULT_CHARACTERS // max(len(rows), 1)
    listed = "\n".join(
        clip(f"{row.run_id} {json.dumps(row.params, separators=(',', ':'))}: {row.headline}", room)[0] for row in rows
    )
    lines = [counted, NOTICE, Fence().around(listed)] if rows else [counted]
    return Reply(result, "\n".join(lines), next_step=f"Pass offset={end} for more." if result.next_offset else None)


def _row(record: RunRecord) -> RunRow:
    manifest = record.manifest
    return RunRow(
        run_id=manifest.id,
        method=manifest.method,
        headline=str(record.result_json().get("headline", "")),
        params=_changed_params(manifest),
        created=manifest.created.isoformat(timespec="seconds"),
        seconds=manifest.seconds,
        forward_passes=manifest.forward_passes,
        forward_tokens=manifest.forward_tokens,
        generated_tokens=manifest.generated_tokens,
    )


async def view_run(call: Call, arguments: ViewRunArguments) -> Reply:
    record = find_run(call, arguments.run_id)
    if arguments.pair is not None:
        identity = await call.identity(call.pair(arguments.pair))
        # The runs of an investigation are of its pair, or of what its methods look at in a placebo.
        if call.caller.operator and identity != record.manifest.pair:
            raise InvalidInput(f"{record.id} is not a run on the pair {arguments.pair!r}: leave `pair` out.")
    changed = await anyio.to_thread.run_sync(changed_since, record.manifest)
    remarks = [*record.remarks, *([changed] if changed else [])]
    method = get_method(record.manifest.method)
    if arguments.view is None:
        level = await anyio.to_thread.run_sync(level_sentence, record, call.context.store)
        return _result_and_views(record, arguments, remarks, level)
    if arguments.view not in method.views:
        raise UnknownName(f"{record.id} has no view {arguments.view!r}. Views: {', '.join(method.views) or 'none'}.")
    view = method.views[arguments.view]
    schema, given = view.Params.model_json_schema(), arguments.view_params(view)
    try:
        params = view.Params.model_validate(coerced(view.Params, schema, given))
    except ValidationError as error:
        raise InvalidInput(
            f"view {view.name}: {complaints(error, view.Params.model_fields)}. Parameters: {_signature(view)}"
        ) from None
    # Arrays and tables are read here: off the event loop, so that other calls are answered meanwhile.
    page = await anyio.to_thread.run_sync(read_page, view, record, params, call.structured)
    answer = ViewRunResult(
        run_id=record.id,
        method=method.name,
        params=_changed_params(record.manifest),
        view=view.name,
        data=page.values,
    )
    lines = [f"{record.id}, {view.name}{f': {page.place}' if page.place else ''}", *cuts(schema, given)]
    lines += [NOTICE, Fence().around(page.text)]
    return Reply(answer, "\n".join(lines), run_id=record.id, remarks=remarks, next_step=page.next_step)


def _result_and_views(record: RunRecord, arguments: ViewRunArguments, remarks: list[str], level: str) -> Reply:
    if unknown := [*arguments.params, *(arguments.model_extra or {}), *(["limit"] if arguments.limit else [])]:
        fields = ", ".join(ViewRunArguments.model_fields)
        raise InvalidInput(f"view_run: {', '.join(unknown)} without `view`. Arguments: {fields}.")
    method, result = get_method(record.manifest.method), record.result()
    params = _changed_params(record.manifest)
    views = [
        ViewRow(name=view.name, description=view.description, params=_parameter_schemas(view))
        for view in method.views.values()
    ]
    listed = [f"  {view.name}({_signature(view)}): {view.description}" for view in method.views.values()]
    report, cut = cut_at_line(record.report(result), max(DEFAULT_CHARACTERS - len("".join(listed)), 1500))
    lines = [
        f"{record.id}: {method.title}, parameters {json.dumps(params)}",
        NOTICE,
        Fence().around(report),
        *(["(the end of the report was cut; the views show all of it)"] if cut else []),
        "views:",
        *(listed or ["  none"]),
    ]
    answer = ViewRunResult(
        run_id=record.id, method=method.name, params=params, views=views, result=result.model_dump(mode="json")
    )
    return Reply(answer, "\n".join(lines), run_id=record.id, remarks=remarks, next_step=level or None)


def find_run(call: Call, identifier: str) -> RunRecord:
    """A run this caller may read.

    Raises:
        UnknownName: no such run, or an investigation that did not make it.
    """
    investigation = call.caller.investigation
    if investigation is None:
        return call.context.store.get(identifier)
    mine = sorted(investigations.remembered_runs(investigation.id))
    matching = [run for run in mine if run == identifier] or [run for run in mine if run.startswith(identifier)]
    if len(matching) != 1:
        listed = (
            f"Runs of this investigation: {', '.join(mine)}."
            if mine
            else "This investigation has no runs yet: call a method first."
        )
        raise UnknownName(f"there is no run {identifier!r}. {listed}")
    return call.context.store.get(matching[0])


def knows_run(call: Call, run: str) -> bool:
    """Whether the caller has seen this run before; operators know all."""
    investigation = call.caller.investigation
    return investigation is None or run in investigations.remembered_runs(investigation.id)


def _changed_params(manifest: RunManifest) -> dict[str, Any]:
    try:
        fields = get_method(manifest.method).Params.model_fields
    except UnknownName:
        return manifest.params
    defaults = {
        name: to_jsonable_python(field.get_default(call_default_factory=True), fallback=str)
        for name, field in fields.items()
    }
    return {name: value for name, value in manifest.params.items() if name not in defaults or defaults[name] != value}


def _parameter_schemas(view: View) -> dict[str, Any]:
    properties = view.Params.model_json_schema().get("properties", {})
    return {
        name: {key: value for key, value in schema.items() if key != "title"} for name, schema in properties.items()
    }


def _signature(view: View) -> str:
    """The parameters of a view with defaults and what is allowed: `limit=10 (1-100), side=base (base|finetuned)`."""
    return ", ".join(_parameter(name, schema) for name, schema in _parameter_schemas(view).items())


def _parameter(name: str, schema: Mapping[str, Any]) -> str:
    kinds = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    words = [str(word) for kind in kinds for word in kind.get("enum", [])]
    default = schema.get("default")
    shown = name if default in (None, "") else f"{name}={default}"
    if words:
        return f"{shown} ({'|'.join(words)})"
    low = next((kind[bound] for kind in kinds for bound in ("minimum", "exclusiveMinimum") if bound in kind), None)
    high = next((kind[bound] for kind in kinds for bound in ("maximum", "exclusiveMaximum") if bound in kind), None)
    if high is not None:
        return f"{shown} ({low if low is not None else ''}-{high})"
    return shown if low in (None, 0) else f"{shown} (from {low})"


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tools of this module."""
    tools = [
        ToolDeclaration(
            "list_runs",
            "List finished runs",
            (
                "List the finished runs of the diffing methods on a pair: ids, parameters and headlines. Runs are "
                "kept; calling a method again with equal parameters is a lookup."
            ),
            ListRunsArguments,
            ListRunsResult,
            list_runs,
            tool_calls=0,
        ),
        ToolDeclaration(
            "view_run",
            "Read more of a run",
            (
                "Read more of a finished run: rows, texts, single tokens, examples, positions. Without `view` it "
                "shows the run's result and its views with their parameters. Quick: no model is loaded."
            ),
            ViewRunArguments,
            ViewRunResult,
            view_run,
        ),
    ]
    return {tool.name: tool for tool in tools}
