"""What the tools share that query the models of a pair directly, as a job and for interactions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from diffing_mcp.mcp_server.call import Call, Present
from diffing_mcp.mcp_server.declarations import Reply
from diffing_mcp.mcp_server.hypothesis_tests import remember_answered
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.methods.contract import CostEstimate

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair

R = TypeVar("R")


class PromptedQuery(Protocol):
    """Arguments of a query that may come after a chat prompt."""

    @property
    def pair(self) -> str:
        """Name of the pair."""

    @property
    def prompt(self) -> str | None:
        """What the user says first; None: none."""

    @property
    def interactions(self) -> int:
        """What it costs."""


A = TypeVar("A", bound=PromptedQuery)


def query_key(identity: Any, arguments: Any, *, without: Collection[str] = ()) -> list[Any]:
    """What tells whether two calls ask the same of a pair: all arguments but how to wait, and those `without`."""
    return [identity, arguments.model_dump(exclude={"pair", "wait_seconds", "estimate_only", *without}, mode="json")]


async def run_query(
    call: Call,
    arguments: A,
    query: Callable[[LoadedPair, A, Job], R],
    present: Present,
    estimate: CostEstimate,
) -> Reply:
    """Ask the query of the loaded pair in a job, and remember its prompt as answered."""
    spec = call.pair(arguments.pair)
    identity = await call.identity(spec)

    def work(job: Job) -> R:
        with call.context.loaded(spec, job) as pair:
            result = query(pair, arguments, job)
        if arguments.prompt is not None:
            remember_answered(call.caller.scope, identity, [arguments.prompt])
        return result

    key = query_key(identity, arguments)
    return await call.run_job(key, work, present, spec=spec, interactions=arguments.interactions, estimate=estimate)
