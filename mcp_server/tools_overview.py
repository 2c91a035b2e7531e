"""The overview: one call that runs what a budget allows, the cheap methods first, and digests what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio.to_thread
from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress
from diffing_mcp.core.seeds import Seed
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import PairArguments, Reply, ToolDeclaration, WaitArguments
from diffing_mcp.mcp_server.jobs import Job, Part
from diffing_mcp.mcp_server.render import NOTICE, Fence
from diffing_mcp.mcp_server.tools_methods import check_corpus, run_records
from diffing_mcp.methods.calibration.readings import level_of_run
from diffing_mcp.methods.contract import GENERATED_WORK
from diffing_mcp.methods.overview.digest import OverviewResult, headline_beside, stands_out
from diffing_mcp.methods.overview.plan import (
    DEFAULT_BUDGET,
    LENS,
    TEXTS_READ,
    LeftOut,
    OverviewPlan,
    Request,
    choose,
    label_of_run,
    later_requests,
    named,
    pending_vector,
    read_by_default,
    run_plan,
    with_chats,
)
from diffing_mcp.methods.registry import all_methods, canonical_name
from diffing_mcp.methods.runs import execute
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.model_pairs.endpoints import WeightsNeeded
from diffing_mcp.model_pairs.specs import PairSpec

CORPUS_FIELDS = ("corpus", "max_samples", "max_tokens", "seed")


Digested = tuple[OverviewResult, list[str]]
"""The digest and the ids of all its runs, some of which may have no room in it."""


class OverviewArguments(PairArguments, WaitArguments):
    """Arguments of overview. The corpus fields are those of the methods; left out, each method uses its default."""

    corpus: str | None = Field(
        None,
        description="Text to read: `unrelated_texts` (default, and some chats besides) or `chat_exchanges`.",
    )
    max_samples: int | None = Field(
        None, ge=1, le=100_000, description=f"Documents read at most (default {TEXTS_READ})."
    )
    max_tokens: int | None = Field(None, ge=1, le=8192, description="Tokens read of each (default 30).")
    seed: Seed | None = Field(None, description="Of the documents' order.")
    budget: int = Field(
        DEFAULT_BUDGET,
        ge=500,
        description=(
            f"Tokens that both models may read together; a generated one counts {GENERATED_WORK}. What does not fit is "
            "named with its cost."
        ),
    )
    methods: list[str] | None = Field(
        None,
        description=("Exactly these methods, whatever they cost."),
    )
    max_characters: int = Field(6000, ge=1000, le=40_000, description="Size of the digest.")


async def overview(call: Call, arguments: OverviewArguments) -> Reply:
    from diffing_mcp.methods.overview.digest import digest

    spec = call.pair(arguments.pair)
    if spec.remote:
        raise WeightsNeeded
    plan = _plan(call, arguments)
    finished, done = await anyio.to_thread.run_sync(_stored, call, spec, plan)
    missing = [request for request in plan.all if request not in finished]
    estimate = execute.estimate(call.context.size(spec), missing)

    def work(job: Job) -> Digested:
        def hand_over(record: RunRecord) -> None:
            if record.id not in {part.run_id for part in job.parts}:
                job.give(_part(record, call.context.store))

        def run(requests: list[Request], progress: Progress) -> list[RunRecord]:
            return run_records(call.context, spec, requests, progress, hand_over)

        for record in done:
            hand_over(record)
        return digested(*run_plan(plan, run, job, finished))

    def digested(records: Sequence[RunRecord], left_out: Sequence[LeftOut]) -> Digested:
        result = digest(records, arguments.max_characters, call.tools, left_out, pair=call.shown_name(spec))
        return result, [record.id for record in records]

    def present(shown_to: Call, found: Digested) -> Reply:
        result, runs = found
        for run in runs:
            shown_to.remember_run(run)
        return Reply(
            result,
            f"{NOTICE}\n{Fence().around(result.as_text())}",
            next_step=_next_step(shown_to, shown_to.shown_name(spec), result, runs) or None,
        )

    complete = len(done) == len(plan.requests) + len(later_requests(plan, done))
    if complete and not arguments.estimate_only:
        return present(call, await anyio.to_thread.run_sync(digested, done, plan.left_out))
    key = [
        await call.identity(spec),
        [[name, params.model_dump(mode="json")] for name, params in plan.all],
        sorted(call.tools),  # of which the digest says what to call next
    ]
    reused = f"{len(done)} of {len(plan.all)} methods are finished already and are reused." if done else ""

    def still(found: Digested) -> bool:
        return call.context.has_runs(found[1])

    return await call.run_job(key, work, present, spec=spec, estimate=estimate, note=reused, still=still)


def _next_step(call: Call, pair: str, result: OverviewResult, runs: Sequence[str]) -> str:
    """What is settled by now and what would add to it: details of a topic, or answers, where a manner would show."""
    if result.confidence == "identical":
        return "Settled: there is no difference; submit that."
    views = f" view_run reads more of a run: {', '.join(runs)}." if "view_run" in call.tools else ""
    if result.facts and result.confidence not in ("nothing", "unsettled") and "facts" in call.tools:
        sure = result.confidence == "agreed" and result.level is not None and result.level.of_this_base
        topic = "A topic is settled, which need not be the only one" if sure else "It is likely, and not settled"
        return f'{topic}; facts(pair="{pair}") has the calls that settle what is claimed.{views}'
    if result.confidence == "unsettled" and "test_hypothesis" in call.tools:
        return f'Not settled: test_hypothesis(pair="{pair}") of what is named above, on fresh prompts.{views}'
    if result.confidence == "nothing" and "sweep_behaviours" in call.tools:
        return f'Nothing shows in texts. A manner would show in answers: sweep_behaviours(pair="{pair}").{views}'
    return views.strip()


def _part(record: RunRecord, store: RunStore) -> Part:
    """What is said of a finished method while the others go on."""
    result, level = record.result(), level_of_run(record, store)
    beyond = stands_out(record, result, level)
    return Part(
        name=label_of_run(record.manifest),
        run_id=record.id,
        headline=headline_beside(result, beyond),
        stands_out=beyond,
        p=None if beyond is None or level is None else level.p,
    )


def _stored(call: Call, spec: PairSpec, plan: OverviewPlan) -> tuple[list[Request], list[RunRecord]]:
    """What is finished of the plan already: its requests, and their runs."""
    finished: list[Request] = []
    records: list[RunRecord] = []

    def look(planned: list[Request], requests: list[Request]) -> None:
        for asked, (name, params) in zip(planned, requests, strict=False):
            if (record := execute.find_finished(spec, name, params, call.context.store)) is not None:
                finished.append(asked)
                records.append(record)

    look(plan.requests, plan.requests)
    look(plan.chained, later_requests(plan, records))
    return finished, records


def _plan(call: Call, arguments: OverviewArguments) -> OverviewPlan:
    known = all_methods()
    allowed = call.methods
    given = {name: getattr(arguments, name) for name in CORPUS_FIELDS if getattr(arguments, name) is not None}

    def params_of(name: str) -> BaseModel:
        # The corpus fields belong together: a method that merely has a seed of its own keeps its default.
        corpus = {**read, **given} if (read := read_by_default(name)) else {}
        params = known[name].Params.model_validate({**corpus, **pending_vector(name)})
        check_corpus(call, params)
        return params

    if arguments.methods is not None:
        wanted = [canonical_name(name) for name in arguments.methods]
        if wrong := [name for name in wanted if name not in allowed]:
            raise InvalidInput(f"overview cannot run {', '.join(wrong)}; methods: {', '.join(allowed)}")
        if not arguments.methods:
            raise InvalidInput(f"`methods` is empty; leave it out, or name some of {', '.join(allowed)}")
        asked = {name: params_of(name) for name in dict.fromkeys(wanted)}
        prices = {name: known[name].interactions(params) for name, params in asked.items()}
        if not call.caller.operator and (paid := {name: price for name, price in prices.items() if price}):
            listed = ", ".join(f"{name} ({price} model interactions)" for name, price in paid.items())
            raise InvalidInput(
                f"an overview costs no model interactions, and these do: {listed}. Call them themselves."
            )
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
            "Run the diffing methods that fit a budget and digest them: topic or manner and how sure, claims with "
            "counts on both sides, form of the answers, a line for each method, what to call next. get_job hands over "
            "each method when it is done. The best first call; follow up with facts, view_run, test_hypothesis. Says "
            "plainly when nothing stands out."
        ),
        OverviewArguments,
        OverviewResult,
        overview,
        price="0",
    )
    return {tool.name: tool}
