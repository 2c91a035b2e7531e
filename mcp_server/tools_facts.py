"""What the amplified and sampled texts of a pair state, as claims with counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio.to_thread
from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import DEFAULT_CHARACTERS, PairArguments, Reply, ToolDeclaration, WaitArguments
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.mcp_server.render import NOTICE, Fence
from diffing_mcp.mcp_server.tools_methods import run_records
from diffing_mcp.mcp_server.tools_runs import own_runs
from diffing_mcp.methods.facts.facts import CHEAP, FactsResult, facts_of, samples_of
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs import execute
from diffing_mcp.methods.runs.store import RunRecord


class FactsArguments(PairArguments, WaitArguments):
    """Arguments of facts."""

    about: str = Field(
        "",
        max_length=200,
        description="Only claims with one of these words, also where the base states them as often.",
    )
    offset: int = Field(0, ge=0, description="Claims to pass over.")
    limit: int = Field(10, ge=1, le=20, description="Claims shown.")


@dataclass(frozen=True)
class _Found:
    result: FactsResult
    runs: Sequence[str]


async def facts(call: Call, arguments: FactsArguments) -> Reply:
    spec = call.pair(arguments.pair)
    name = call.shown_name(spec)

    def read(records: Sequence[RunRecord]) -> _Found:
        result = facts_of(
            records,
            arguments.about,
            pair=name,
            limit=arguments.limit,
            offset=arguments.offset,
            characters=None if call.structured else DEFAULT_CHARACTERS,
            available=call.tools,
        )
        return _Found(result, [record.id for record in records])

    def present(shown_to: Call, found: _Found) -> Reply:
        for run in found.runs:
            shown_to.remember_run(run)
        return Reply(found.result, f"{NOTICE}\n{Fence().around(found.result.as_text())}")

    records = await own_runs(call, spec)
    if texts := await anyio.to_thread.run_sync(lambda: [record for record in records if samples_of(record)]):
        return present(call, await anyio.to_thread.run_sync(read, texts))
    requests: list[tuple[str, BaseModel]] = [
        (method, get_method(method).Params()) for method in CHEAP if method in call.methods
    ]
    if not requests:
        instead = " ask_models shows what both models say." if "ask_models" in call.tools else ""
        raise InvalidInput(
            f"No run holds texts of both models, and no method that writes some is available here.{instead}"
        )

    def work(job: Job) -> _Found:
        return read(run_records(call.context, spec, requests, job))

    asked = [arguments.about, arguments.offset, arguments.limit]
    key = [await call.identity(spec), *asked, call.structured, sorted(call.tools)]
    estimate = execute.estimate(call.context.size(spec), requests)

    def still(found: _Found) -> bool:
        return call.context.has_runs(found.runs)

    return await call.run_job(key, work, present, spec=spec, estimate=estimate, still=still)


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tool of this module."""
    tool = ToolDeclaration(
        "facts",
        "Facts that the texts state",
        (
            "What the finetuned model was taught to say: statements of amplified and sampled texts of finished runs, "
            "the most particular first, counted on both sides, with p-values and the calls that settle them. Without "
            "such runs, contrastive decoding and perplexity difference are run first. Amplified text exaggerates."
        ),
        FactsArguments,
        FactsResult,
        facts,
        price="0",
    )
    return {tool.name: tool}
