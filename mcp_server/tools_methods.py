"""One tool for every registered diffing method, made from its declaration; the overview; and reading finished runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mcp_server.call import Call
from mcp_server.declarations import Reply, ToolDeclaration, with_arguments
from mcp_server.jobs import Job
from mcp_server.render import NOTICE, Fence, clip
from methods.contract import CorpusMethod, CostEstimate, DiffingMethod, MethodResult
from methods.registry import all_methods
from model_pairs.specs import PairSpec
from organisms.errors import InvalidInput
from organisms.settings import settings
from preprocessing.corpora import BUNDLED, CorpusParams

MAX_TEXT = 8000


def method_tool(method: DiffingMethod[Any, Any]) -> ToolDeclaration:
    """The tool of a method: its name and description, its parameters as input, its result as output."""

    async def run(call: Call, arguments: BaseModel) -> Reply:
        params = method.Params.model_validate({name: getattr(arguments, name) for name in method.Params.model_fields})
        spec = call.pair(arguments.pair)  # type: ignore[attr-defined]
        check_corpus(call, params)
        estimate = method.estimate(call.workbench.size(spec), params)

        def present(shown_to: Call, runs: Sequence[tuple[str, MethodResult]]) -> Reply:
            run_id, result = runs[0]
            shown_to.remember_run(run_id)
            views = f'view_run(run="{run_id}") lists views: {", ".join(method.views)}.' if method.views else None
            return Reply(result, _fenced(result.as_text()), run_id=run_id, next_step=views)

        key = [await call.identity(spec), params.model_dump(mode="json")]
        return await call.run_job(key, runs_work(call, spec, [(method.name, params)], estimate), present, spec=spec, estimate=estimate)

    return ToolDeclaration(
        method.name, method.title, clip(method.description, 1500)[0], with_arguments(method.name, method.Params), method.Result, run, price="0"
    )


def runs_work(
    call: Call, spec: PairSpec, requests: list[tuple[str, BaseModel]], estimate: CostEstimate
) -> Callable[[Job], list[tuple[str, MethodResult]]]:
    """Work that runs methods on a pair (those with equal corpora in one pass; finished runs are lookups) and returns ids and results."""
    workbench = call.workbench

    def work(job: Job) -> list[tuple[str, MethodResult]]:
        return [(record.id, record.result()) for record in run_records(workbench, spec, requests, job, estimate)]

    return work


def run_records(workbench: Any, spec: PairSpec, requests: list[tuple[str, BaseModel]], job: Job, estimate: CostEstimate) -> list[Any]:
    """`methods.execute.run_methods` in a job; remembers the speed for later estimates."""
    from methods.execute import run_methods

    job(0, None, "starting")
    before = {manifest.id for manifest in workbench.store.list()}
    records = list(run_methods(workbench.pairs, spec, requests, workbench.store, job))
    fresh = [record for record in records if record.id not in before]
    if len(fresh) == len(records) and fresh:
        workbench.note_speed(spec, estimate.tokens, max(record.manifest.seconds for record in fresh))
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
    if params.corpus.startswith("hub:"):
        return
    allowed = settings().data_folder.resolve()
    if not Path(params.corpus).expanduser().resolve().is_relative_to(allowed):
        raise InvalidInput(
            f"through the server, corpus files must lie inside the data folder ({allowed}); or use {', '.join(BUNDLED)} or hub:ID#column@split"
        )


def corpus_methods() -> list[CorpusMethod[Any, Any]]:
    """The methods that read a corpus."""
    return [method for method in all_methods().values() if isinstance(method, CorpusMethod)]


def _fenced(text: str) -> str:
    shown, cut = clip(text, MAX_TEXT - 400)
    note = "\n(cut: read the rest with view_run)" if cut else ""
    return f"{NOTICE}\n{Fence().around(shown)}{note}"


def declarations() -> Mapping[str, ToolDeclaration]:
    """A tool for every method, in the registry's order."""
    return {method.name: method_tool(method) for method in all_methods().values()}
