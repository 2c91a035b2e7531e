"""One tool for every registered diffing method, made from its declaration; the overview; and reading finished runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
from pydantic import BaseModel

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.progress import Progress
from diffing_mcp.core.settings import settings
from diffing_mcp.core.text import clip
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import DEFAULT_CHARACTERS, Reply, ToolDeclaration, with_arguments
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.mcp_server.render import NOTICE, Fence
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.tools_runs import find_run, knows_run
from diffing_mcp.methods.calibration.readings import level_sentence
from diffing_mcp.methods.contract import DiffingMethod
from diffing_mcp.methods.directions.vectors import handles
from diffing_mcp.methods.registry import all_methods
from diffing_mcp.methods.runs import execute
from diffing_mcp.methods.runs.store import RunRecord
from diffing_mcp.model_pairs.specs import PairSpec
from diffing_mcp.preprocessing.activation_store import default_activation_store
from diffing_mcp.preprocessing.corpora import BUNDLED, CorpusParams
from diffing_mcp.preprocessing.text_sources import StoredActivationsParams


def method_tool(method: DiffingMethod[Any, Any]) -> ToolDeclaration:
    """The tool of a method: its name and description, its parameters as input, its result as output."""

    async def run(call: Call, arguments: BaseModel) -> Reply:
        params = method.Params.model_validate({name: getattr(arguments, name) for name in method.Params.model_fields})
        spec = call.pair(arguments.pair)  # type: ignore[attr-defined]
        check_corpus(call, params)
        check_vectors(call, params)
        await check_activations(call, spec, params)
        if not call.caller.operator and (reason := method.operator_only(params)) is not None:
            raise InvalidInput(reason)
        requests = [(method.name, params)]
        estimate = execute.estimate(call.context.size(spec), requests)

        def present(shown_to: Call, records: list[RunRecord]) -> Reply:
            record = records[0]
            result = record.result()
            shown_to.remember_run(record.id)
            views = ""
            if method.views and "view_run" in shown_to.tools:
                views = f'view_run(run_id="{record.id}") lists views: {", ".join(method.views)}.'
            level = level_sentence(record, call.context.store)
            return Reply(
                result,
                _fenced(record.report(result), "view_run" in shown_to.tools),
                run_id=record.id,
                next_step=" ".join(filter(None, (level, views))) or None,
                remarks=record.remarks,
            )

        price = method.interactions(params)
        finished = await find_finished(call, spec, requests)
        # What somebody else has asked already costs this caller as much as if it were asked now.
        if finished is not None and (price == 0 or knows_run(call, finished[0].id)):
            return present(call, finished)
        key = [await call.identity(spec), params.model_dump(mode="json")]

        def work(job: Job) -> list[RunRecord]:
            return run_records(call.context, spec, requests, job)

        def still(records: list[RunRecord]) -> bool:
            return call.context.has_runs(record.id for record in records)

        return await call.run_job(key, work, present, spec=spec, estimate=estimate, interactions=price, still=still)

    takes_prompts = type(method).interactions is not DiffingMethod.interactions
    return ToolDeclaration(
        method.name,
        method.title,
        clip(method.description, 1000)[0],
        with_arguments(method.name, method.Params),
        method.Result,
        run,
        price="prompts x samples" if takes_prompts else "0",
        lasting=method.trains,
    )


async def find_finished(call: Call, spec: PairSpec, requests: list[tuple[str, BaseModel]]) -> list[RunRecord] | None:
    """The stored runs when all of them are there: an answer that need not wait for the device. None otherwise, and when
    only an estimate is asked for.
    """
    if getattr(call.arguments, "estimate_only", False):
        return None

    def look() -> list[RunRecord] | None:
        records = [execute.find_finished(spec, name, params, call.context.store) for name, params in requests]
        return [record for record in records if record is not None] if all(records) else None

    return await anyio.to_thread.run_sync(look)


def run_records(
    context: ServerContext,
    spec: PairSpec,
    requests: list[tuple[str, BaseModel]],
    progress: Progress,
    finished: Callable[[RunRecord], None] = lambda record: None,
) -> list[RunRecord]:
    """`diffing_mcp.methods.runs.execute.run_methods` in a job; remembers sizes and speed for later estimates."""
    progress(0, None, "starting")
    before = {manifest.id for manifest in context.store.list()}
    records = execute.run_methods(context.pairs, spec, requests, context.store, progress, finished)
    passes = [record.manifest.notes.get("corpus_pass") for record in records if record.id not in before]
    if known := next((statistics for statistics in passes if statistics), None):
        context.note_speed(spec, int(known["tokens"]), float(known["seconds"]))
    return records


def check_corpus(call: Call, params: BaseModel) -> None:
    """What a client may name as a corpus: bundled ones; operators also hub datasets and files inside the data folder.

    Raises:
        InvalidInput: anything else, also ways out of the data folder through links or `..`.
    """
    if not isinstance(params, CorpusParams) or params.corpus in BUNDLED:
        return
    if not call.caller.operator:
        raise InvalidInput(f"corpus must be one of {', '.join(BUNDLED)}")
    if params.corpus.startswith(("hub:", "training:")):
        return
    allowed = settings().data_folder.resolve()
    if "\0" in params.corpus or not Path(params.corpus).expanduser().resolve().is_relative_to(allowed):
        raise InvalidInput(
            f"through the server, corpus files must lie inside the data folder ({allowed}); or use "
            f"{', '.join(BUNDLED)} or hub:ID#column@split"
        )


def check_vectors(call: Call, params: BaseModel) -> None:
    """An investigation names vectors of its own runs only, by the whole id.

    Raises:
        UnknownName: a run that is not there or not this investigation's.
    """
    for handle in handles(params):
        record = find_run(call, handle.run)
        if call.caller.investigation is not None and record.id != handle.run:
            raise UnknownName(f"name the run of a vector by its whole id: {record.id}/{handle.name}")


async def check_activations(call: Call, spec: PairSpec, params: BaseModel) -> None:
    """An investigation reads stored activations of its own pair on a bundled corpus only, named by their whole id.

    Raises:
        UnknownName: any other collection, whether it exists or not.
    """
    if call.caller.operator or not isinstance(params, StoredActivationsParams) or not params.collections:
        return
    known = {
        index.id: index for index in await anyio.to_thread.run_sync(default_activation_store().list) if index.finished
    }
    for name in params.collections:
        index = known.get(name)
        if index is not None and index.pair == await call.identity(spec) and index.corpus["id"] in BUNDLED:
            continue
        raise UnknownName(
            f"there are no stored activations {name!r} of this pair on a bundled corpus; leave out `activations` to "
            "collect them anew"
        )


def _fenced(text: str, viewed: bool) -> str:
    shown, cut = clip(text, DEFAULT_CHARACTERS)
    note = f"\n(cut{': read the rest with view_run' if viewed else ''})" if cut else ""
    return f"{NOTICE}\n{Fence().around(shown)}{note}"


def declarations() -> Mapping[str, ToolDeclaration]:
    """A tool for every method, in the registry's order."""
    return {method.name: method_tool(method) for method in all_methods().values()}
