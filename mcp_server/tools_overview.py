"""The overview: one call that runs the cheap methods over one shared pass and digests what they say."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, Field

from mcp_server.call import Call
from mcp_server.declarations import PairArguments, Reply, ToolDeclaration, WaitArguments
from mcp_server.jobs import Job
from mcp_server.render import NOTICE, Fence
from mcp_server.tools_methods import check_corpus, find_finished, run_records
from methods import execute
from methods.overview import OverviewResult
from methods.registry import all_methods
from methods.runs import RunRecord
from organisms.errors import InvalidInput

CORPUS_FIELDS = ("corpus", "max_samples", "max_tokens", "seed")


class OverviewArguments(PairArguments, WaitArguments):
    """Arguments of overview. The corpus fields are those of the methods; left out, each method uses its default."""

    corpus: str | None = Field(None, description="Text that the methods reading text read: `unrelated_texts` (default) or `chat_exchanges`.")
    max_samples: int | None = Field(None, ge=1, le=100_000, description="Documents read at most (default 1000). Fewer are faster and noisier.")
    max_tokens: int | None = Field(None, ge=1, le=8192, description="Tokens read of each document (default 30).")
    seed: int | None = Field(None, ge=0, description="Order in which documents are drawn (default 0).")
    methods: list[str] | None = Field(None, description="Only these methods; default: the cheap ones.")
    max_characters: int = Field(6000, ge=1000, le=40_000, description="Size of the digest.")


async def overview(call: Call, arguments: OverviewArguments) -> Reply:
    from methods.overview import digest

    spec = call.pair(arguments.pair)
    requests = _requests(call, arguments)
    estimate = execute.estimate(call.workbench.size(spec), requests)

    def work(job: Job) -> list[RunRecord]:
        return run_records(call.workbench, spec, requests, job)

    def present(shown_to: Call, records: list[RunRecord]) -> Reply:
        for record in records:
            shown_to.remember_run(record.id)
        result = digest(records, arguments.max_characters, [name for name in all_methods() if shown_to.caller.may_use(name)])
        runs = ", ".join(record.id for record in records)
        return Reply(result, f"{NOTICE}\n{Fence().around(result.as_text())}", next_step=f"Read more of each run with view_run: {runs}.")

    if (finished := await find_finished(call, spec, requests)) is not None:
        return present(call, finished)
    key = [await call.identity(spec), [[name, params.model_dump(mode="json")] for name, params in requests]]
    return await call.run_job(key, work, present, spec=spec, estimate=estimate)


def _requests(call: Call, arguments: OverviewArguments) -> list[tuple[str, BaseModel]]:
    known = all_methods()
    chosen = arguments.methods if arguments.methods is not None else [method.name for method in known.values() if method.in_overview]
    allowed = [name for name in known if call.caller.may_use(name)]
    if wrong := [name for name in chosen if name not in allowed]:
        if arguments.methods is not None or len(wrong) == len(chosen):
            raise InvalidInput(f"overview cannot run {', '.join(wrong)}; methods: {', '.join(allowed)}")
        chosen = [name for name in chosen if name in allowed]
    given = {name: getattr(arguments, name) for name in CORPUS_FIELDS if getattr(arguments, name) is not None}
    requests: list[tuple[str, BaseModel]] = []
    for name in dict.fromkeys(chosen):
        fields = known[name].Params.model_fields
        # The corpus fields belong together: a method that merely has a seed of its own keeps its default.
        params = known[name].Params.model_validate(given if "corpus" in fields else {})
        check_corpus(call, params)
        requests.append((name, params))
    if not requests:
        raise InvalidInput(f"no method left to run; methods: {', '.join(allowed)}")
    return requests


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tool of this module."""
    tool = ToolDeclaration(
        "overview",
        "Overview of a pair",
        "What the cheap diffing methods say about a pair, in one size-bounded digest: KL divergence, logit differences, activation differences and "
        "perplexity differences, "
        "sharing one pass over the text. The best first call after describe_pair; then follow up the details with view_run, compare_text and "
        "ask_models. Says plainly when "
        "nothing stands out.",
        OverviewArguments,
        OverviewResult,
        overview,
        price="0",
    )
    return {tool.name: tool}
