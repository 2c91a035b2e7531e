"""The overview: one call that runs what a budget allows, the cheap methods first, and digests what they say."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import PairArguments, Reply, ToolDeclaration, WaitArguments
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.mcp_server.render import NOTICE, Fence
from diffing_mcp.mcp_server.tools_methods import check_corpus, find_finished, run_records
from diffing_mcp.methods.contract import GENERATED_WORK
from diffing_mcp.methods.overview.digest import OverviewResult
from diffing_mcp.methods.overview.plan import (
    DEFAULT_BUDGET,
    LENS,
    LeftOut,
    OverviewPlan,
    choose,
    later_requests,
    named,
    pending_vector,
    run_plan,
    with_chats,
)
from diffing_mcp.methods.registry import all_methods
from diffing_mcp.methods.runs import execute
from diffing_mcp.methods.runs.store import RunRecord
from diffing_mcp.model_pairs.specs import PairSpec

CORPUS_FIELDS = ("corpus", "max_samples", "max_tokens", "seed")

Outcome = tuple[list[RunRecord], list[LeftOut]]


class OverviewArguments(PairArguments, WaitArguments):
    """Arguments of overview. The corpus fields are those of the methods; left out, each method uses its default."""

    corpus: str | None = Field(
        None,
        description=(
            "Text that the methods reading text read: `unrelated_texts` (default, and some chats besides) or "
            "`chat_exchanges`."
        ),
    )
    max_samples: int | None = Field(
        None, ge=1, le=100_000, description="Documents read at most (default 1000). Fewer are noisier and cost less."
    )
    max_tokens: int | None = Field(None, ge=1, le=8192, description="Tokens read of each document (default 30).")
    seed: int | None = Field(None, ge=0, description="Order in which documents are drawn (default 0).")
    budget: int = Field(
        DEFAULT_BUDGET,
        ge=500,
        description=(
            f"Tokens that the models may read for it, both sides together; a generated one counts {GENERATED_WORK}. "
            "The cheap and telling methods are taken first; what did not fit is named with its cost. 50000: "
            "perplexity_difference and weight_difference only; 350000: everything."
        ),
    )
    methods: list[str] | None = Field(
        None,
        description=(
            "Exactly these methods, whatever they cost. Those that need a vector read the mean difference of "
            "activation_difference_lens."
        ),
    )
    max_characters: int = Field(6000, ge=1000, le=40_000, description="Size of the digest.")


async def overview(call: Call, arguments: OverviewArguments) -> Reply:
    from diffing_mcp.methods.overview.digest import digest

    spec = call.pair(arguments.pair)
    plan = _plan(call, arguments)
    estimate = execute.estimate(call.context.size(spec), plan.all)

    def work(job: Job) -> Outcome:
        return run_plan(plan, lambda requests: run_records(call.context, spec, requests, job))

    def present(shown_to: Call, outcome: Outcome) -> Reply:
        records, left_out = outcome
        for record in records:
            shown_to.remember_run(record.id)
        available = [name for name in all_methods() if shown_to.caller.may_use(name)]
        shown = shown_to.shown_name(spec)
        result = digest(records, arguments.max_characters, available, left_out, pair=shown)
        runs = ", ".join(record.id for record in records)
        return Reply(
            result,
            f"{NOTICE}\n{Fence().around(result.as_text())}",
            next_step=f"Read more of each run with view_run: {runs}.",
        )

    if (finished := await _finished(call, spec, plan)) is not None:
        return present(call, (finished, plan.left_out))
    key = [await call.identity(spec), [[name, params.model_dump(mode="json")] for name, params in plan.all]]
    return await call.run_job(key, work, present, spec=spec, estimate=estimate)


async def _finished(call: Call, spec: PairSpec, plan: OverviewPlan) -> list[RunRecord] | None:
    """The records of the whole plan when all of them are there."""
    if (first := await find_finished(call, spec, plan.requests)) is None:
        return None
    chained = later_requests(plan, first)
    later = await find_finished(call, spec, chained) if chained else []
    return None if later is None else [*first, *later]


def _plan(call: Call, arguments: OverviewArguments) -> OverviewPlan:
    known = all_methods()
    allowed = [name for name in known if call.caller.may_use(name)]
    given = {name: getattr(arguments, name) for name in CORPUS_FIELDS if getattr(arguments, name) is not None}

    def params_of(name: str) -> BaseModel:
        # The corpus fields belong together: a method that merely has a seed of its own keeps its default.
        corpus = given if "corpus" in known[name].Params.model_fields else {}
        params = known[name].Params.model_validate({**corpus, **pending_vector(name)})
        check_corpus(call, params)
        return params

    if arguments.methods is not None:
        if wrong := [name for name in arguments.methods if name not in allowed]:
            raise InvalidInput(f"overview cannot run {', '.join(wrong)}; methods: {', '.join(allowed)}")
        if not arguments.methods:
            raise InvalidInput(f"`methods` is empty; leave it out, or name some of {', '.join(allowed)}")
        asked = {name: params_of(name) for name in dict.fromkeys(arguments.methods)}
        return named(asked, params_of(LENS) if LENS in allowed else None)
    offered = [(name, params_of(name)) for name in allowed if known[name].in_overview]
    if not offered:
        raise InvalidInput(f"none of the methods of an overview is available here; methods: {', '.join(allowed)}")
    plan = choose(with_chats(offered), arguments.budget)
    if not plan.requests:
        costs = ", ".join(f"{row.label()} {row.work:,}" for row in plan.left_out)
        raise InvalidInput(f"a budget of {arguments.budget:,} allows no method; their costs: {costs}")
    return plan


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tool of this module."""
    tool = ToolDeclaration(
        "overview",
        "Overview of a pair",
        (
            "What the diffing methods that fit a budget say about a pair, in one size-bounded digest: what each ran "
            "and cost, what it found, how far that is beyond its null level, which words several methods agree on, "
            "what was left out and what to call next. By default KL divergence, logit, activation and perplexity "
            "differences, contrastive decoding, weight differences, and a patchscope of the mean activation "
            "difference. The best first call after describe_pair; then follow up with view_run, compare_text and "
            "ask_models. Says plainly when nothing stands out."
        ),
        OverviewArguments,
        OverviewResult,
        overview,
        price="0",
    )
    return {tool.name: tool}
