"""A suspicion as a test: rates on both sides, on control prompts too, and answers that show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import anyio.to_thread
from pydantic import Field, model_validator

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.mcp_server import hypothesis_tests
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import PairArguments, Reply, ToolDeclaration, WaitArguments
from diffing_mcp.mcp_server.hypothesis_tests import HypothesisTest
from diffing_mcp.mcp_server.jobs import Job, job_id
from diffing_mcp.mcp_server.pair_queries import query_key
from diffing_mcp.mcp_server.render import NOTICE, Fence, quote
from diffing_mcp.mcp_server.tools_runs import own_runs
from diffing_mcp.methods.facts.facts import prompts_of
from diffing_mcp.queries.hypothesis_schemas import HypothesisQuery, TestedSet
from diffing_mcp.queries.prompt_statistics import LEVEL, RateDifference
from diffing_mcp.queries.weighing import finder_of, weigh

COUNTS = (
    "p is over prompts (the models swapped prompt by prompt), which counts for prompts like these; p over answers "
    "speaks of these very prompts only."
)


class HypothesisArguments(HypothesisQuery, PairArguments, WaitArguments):
    """Arguments of test_hypothesis."""

    test_id: str | None = Field(None, description="Show this earlier test again.")

    @model_validator(mode="after")
    def _one_thing_to_count(self) -> Self:
        # Takes the place of the query's own check, which asks for prompts.
        return self if self.test_id is not None else self.checked()


async def test_hypothesis(call: Call, arguments: HypothesisArguments) -> Reply:
    spec = call.pair(arguments.pair)
    scope, judge = call.caller.scope, call.context.judge
    if arguments.test_id is not None:
        return _present(call, hypothesis_tests.get(scope, arguments.test_id))
    finder_of(arguments)  # what cannot be counted is refused before anything is spent
    if arguments.criterion is not None and judge is None:
        raise InvalidInput(
            "no LLM judge is set here, so a criterion cannot be judged. Count with `pattern`, `words` or `candidate`; "
            "whoever runs the server can set DIFFING_JUDGE=anthropic/NAME (or openai/NAME) and the provider's key."
        )
    identity = await call.identity(spec)
    key = query_key(identity, arguments, without=("test_id",))
    test_id = job_id(hypothesis_tests.PREFIX.rstrip("-"), scope, key)
    if not arguments.estimate_only and (kept := hypothesis_tests.find(scope, test_id)) is not None:
        return _present(call, kept)
    stored = await own_runs(call, spec)
    in_runs = await anyio.to_thread.run_sync(lambda: {prompt for record in stored for prompt in prompts_of(record)})
    before = hypothesis_tests.count_answered(scope, identity, arguments.questions, in_runs)

    def work(job: Job) -> HypothesisTest:
        from diffing_mcp.queries.hypotheses import collect

        with call.context.answering(spec, job) as pair:
            collected = collect(pair, arguments, job)
        result = weigh(arguments, collected, judge)
        made = hypothesis_tests.count_made(scope, identity)
        test = HypothesisTest(test_id=test_id, answered_before=before, made_before=made, **dict(result))
        hypothesis_tests.keep(scope, identity, test, arguments.questions)
        return test

    tokens = 0 if arguments.candidate else 2 * arguments.interactions * arguments.max_new_tokens
    estimate = call.context.size(spec).cost(0, 2 * arguments.max_new_tokens, generated_tokens=tokens)
    return await call.run_job(key, work, _present, spec=spec, interactions=arguments.interactions, estimate=estimate)


def _present(call: Call, test: HypothesisTest) -> Reply:
    counts = [COUNTS] if any(map(_two_ps_differ, filter(None, (test.tested, test.control)))) else []
    lines = [f"{test.test_id}. Counted: {test.counted}.", test.verdict, *counts, test.validation]
    lines += [
        f"{name}, prompt by prompt, finetuned/base: {_by_prompt(tested)}"
        for name, tested in (("Tested", test.tested), ("Control", test.control))
        if tested is not None
    ]
    if test.telling:
        fence = Fence()
        shown = [fence.line(f"{each.whose} {quote(each.prompt)}", each.model_text) for each in test.telling]
        lines += [NOTICE, fence.around("\n".join(shown))]
    return Reply(test, "\n".join(lines), next_step=f'Cite it as evidence: {{"source": "{test.test_id}"}}.')


def _two_ps_differ(tested: TestedSet) -> bool:
    found = tested.difference
    return isinstance(found, RateDifference) and (found.p < LEVEL) != (found.p_answers < LEVEL)


def _by_prompt(tested: TestedSet) -> str:
    return " ".join(f"{finetuned:g}/{base:g}" for base, finetuned in tested.by_prompt)


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tool of this module."""
    tool = ToolDeclaration(
        "test_hypothesis",
        "Test a hypothesis on both models",
        (
            "Turn a suspicion into a finding: both models answer prompts with the same seeds and one thing is counted. "
            "Returns rates, difference with interval and p-value, the same on control prompts, a verdict, telling "
            "answers. On prompts never asked before it validates; cite its test_id as evidence. 1 interaction a prompt "
            "and sample."
        ),
        HypothesisArguments,
        HypothesisTest,
        test_hypothesis,
        price="1 a prompt and sample, for both models",
    )
    return {tool.name: tool}
