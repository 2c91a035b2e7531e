"""One tool call under way: who asked, which pair is meant, and how its work becomes a job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import anyio.to_thread
from pydantic import BaseModel

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.text import clip
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.declarations import JobState, Reply, ToolDeclaration
from diffing_mcp.mcp_server.jobs import LIVE, Job, Part, Still, Work, cancelled
from diffing_mcp.mcp_server.offer import Offer
from diffing_mcp.mcp_server.redaction import Redactor, redactor_of
from diffing_mcp.mcp_server.render import NOTICE, Fence, quote
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.methods.calibration.schema import standing
from diffing_mcp.methods.contract import CostEstimate
from diffing_mcp.methods.registry import all_methods
from diffing_mcp.model_pairs.fingerprint import pair_identity
from diffing_mcp.model_pairs.specs import PairSpec

LONG_SECONDS = 300.0
"""From here on a training is long."""

Present = Callable[["Call", Any], Reply]


@dataclass(frozen=True)
class JobPayload:
    """Kept with a job, so that get_job shows its result as the tool itself would have."""

    present: Present
    spec: PairSpec | None


@dataclass
class Call:
    """Given to every handler. `arguments` are the validated ones; `report` sends a job's progress to the client;
    `structured`: a program asks, which reads data and not text, so nothing need be cut for an agent's context;
    `notes` stand before the answer's text. A handler that changed what the caller lists sets `list_changed`.
    `consent` puts a question to the user and raises unless it is accepted (`consent.consent_of`); None: nobody is
    asked.
    """

    context: ServerContext
    caller: Caller
    tool: ToolDeclaration
    arguments: BaseModel
    offer: Offer
    report: Callable[[Job], Awaitable[None]] | None = None
    structured: bool = False
    notes: Sequence[str] = ()
    list_changed: bool = False
    consent: Callable[[str], Awaitable[None]] | None = None

    @cached_property
    def tools(self) -> frozenset[str]:
        """Names of the tools that this caller may call: an answer names no others."""
        return frozenset(self.offer.usable(self.caller))

    @cached_property
    def methods(self) -> list[str]:
        """The methods that a tool may run for this caller: those that it may call. The token of an operator that names
        none of an overview's may have it run all of these: the tool is its own, and they only read.
        """
        known = all_methods()
        named = [name for name in known if name in self.tools]
        if self.caller.operator and not any(known[name].in_overview for name in named):
            return [name for name, method in known.items() if not method.trains]
        return named

    def pair(self, name: str) -> PairSpec:
        """The pair a caller means: for an investigation only its own label, for operators anything that resolves.

        Raises:
            UnknownName: no such pair for this caller.
        """
        from diffing_mcp.model_pairs.resolve import resolve_pair

        investigation = self.caller.investigation
        if investigation is None:
            return resolve_pair(name)
        if name.strip() != investigation.label:
            raise UnknownName(f"unknown pair {name!r}. There is one pair here: {investigation.label}.")
        return resolve_pair(investigation.pair_of(self.tool.name))

    async def identity(self, spec: PairSpec) -> Any:
        """What decides a pair's results. May hash files, so it is done off the event loop (and cached there)."""
        return await anyio.to_thread.run_sync(pair_identity, spec)

    def shown_name(self, spec: PairSpec) -> str:
        """How this caller knows the pair."""
        return self.caller.investigation.label if self.caller.investigation else spec.name

    @cached_property
    def redactor(self) -> Redactor | None:
        """What hides the pair's names from an investigation; None for operators."""
        investigation = self.caller.investigation
        given = [self.tool.name, self.arguments.model_dump(mode="json")]
        return redactor_of(investigation, self.offer.words, given) if investigation else None

    def message(self, text: str) -> str:
        """A text from elsewhere (an error, a progress message) as this caller may read it."""
        return self.redactor.message(text) if self.redactor else text

    def remember_run(self, run: str) -> None:
        """Let the caller's investigation read this run later."""
        if self.caller.investigation is not None:
            investigations.remember_run(self.caller.investigation.id, run)

    async def run_job(
        self,
        key: Any,
        work: Work,
        present: Present,
        *,
        spec: PairSpec | None = None,
        interactions: int = 0,
        estimate: CostEstimate | None = None,
        note: str = "",
        still: Still = lambda result: True,
    ) -> Reply:
        """Do `work` as a job (or join the one of an equal call), wait, and answer with its result or its handle.

        `interactions` are reserved only when the work is new. `present` turns the work's result into the answer. `note`
        is said with the estimate, or when the work is not done in time. A finished job whose result is not `still`
        there does not answer: the work is done anew.
        """
        wait_seconds = getattr(self.arguments, "wait_seconds", 0.0)
        if getattr(self.arguments, "estimate_only", False):
            return Reply(
                estimate=estimate,
                text=f"{_cost_sentence(estimate, interactions)}.{f' {note}' if note else ''}",
                next_step="Call again without estimate_only to start.",
            )
        if self.consent is not None and self.tool.lasting and _is_long(estimate):
            cost = _cost_sentence(estimate, interactions)
            if self.context.jobs.find(self.tool.name, self.caller.scope, key, still) is None:
                await self.consent(f"{self.tool.title}. {cost}. Start it?")
        investigation, ledger = self.caller.investigation, self.context.ledger

        def reserve() -> Callable[[bool], None] | None:
            # Also of work that costs nothing: a server that is killed leaves it behind, and the next one says so.
            if investigation is None:
                return None
            reservation = ledger.reserve(investigation.id, "interactions", interactions, self.tool.name)
            return lambda completed: ledger.settle(reservation, completed)

        job = self.context.jobs.submit(
            self.tool.name,
            self.caller.scope,
            key,
            work,
            device=self.context.device,
            estimate=estimate,
            reserve=reserve,
            payload=JobPayload(present, spec),
            still=still,
        )
        await self.context.jobs.wait(job, wait_seconds, self.report)
        return self.reply_of(job, present, note)

    def reply_of(self, job: Job, present: Present, note: str = "", everything: bool = False) -> Reply:
        """The answer a job stands for now; a failed one raises its error. Of the parts of a live one it tells those
        that this caller has not been told of, or `everything`.
        """
        match job.state:
            case "completed":
                reply = present(self, job.result)
                reply.job = reply.job or job
                if not reply.remarks and isinstance(job.payload, JobPayload) and job.payload.spec is not None:
                    reply.remarks = self.context.remarks(job.payload.spec)
                return reply
            case "failed":
                raise job.error or RuntimeError(f"{job.id} failed without an error")
            case "cancelled":
                error = job.error or cancelled(job)
                if self.tool.name in ("get_job", "cancel_job"):
                    return Reply(job=job, text=f"{error.message} What it had reserved was given back.")
                raise error
        job.handed_out = True
        lines, meanwhile = [self.job_line(job), note], ""
        news, parts = job.news(self.caller.scope), list(job.parts)
        if shown := parts if everything else news:
            for part in shown:
                self.remember_run(part.run_id)
            new = f", new {len(shown)}" if len(shown) < len(parts) else ""
            lines += [f"Finished so far, {len(parts)}{new}. {NOTICE}", fenced_parts(shown)]
        elif parts:
            lines.append(f"Nothing new since you looked; {len(parts)} finished so far (everything=true tells all).")
        if parts:
            telling = most_telling(parts).run_id
            ways = {"view_run": f'read what is finished, view_run(run_id="{telling}")', "ask_models": "ask_models"}
            if ways := {tool: way for tool, way in ways.items() if tool in self.tools}:
                meanwhile = f"Meanwhile {', or '.join(ways.values())}. "
        return Reply(
            job=job,
            text="\n".join(line for line in lines if line),
            next_step=f'{meanwhile}Call get_job(job_id="{job.id}") to go on waiting; with cancel=true it stops it.',
        )

    def progress_of(self, job: Job) -> tuple[float, float, str]:
        """A job's progress as a notification tells it: percent, of 100, and what it does, with what was found last."""
        message = job.message
        if job.parts:
            newest = job.parts[-1]
            message += f"; {newest.name} found {quote(clip(newest.headline, 160)[0])}"
        return round(100 * (job.fraction or 0.0), 1), 100.0, self.message(message)

    def job_state(self, job: Job) -> JobState:
        """A job as this caller may see it."""
        spec = job.payload.spec if isinstance(job.payload, JobPayload) else None
        outlook = self.context.jobs.outlook(job)
        return JobState(
            job_id=job.id,
            tool=job.kind,
            pair=self.shown_name(spec) if spec is not None else None,
            state=job.state,
            progress=None if job.fraction is None else round(job.fraction, 3),
            message=self.message(job.message),
            queued_before=outlook.queued_before,
            sharing=outlook.sharing,
            seconds=round(job.seconds, 1),
            starts_in=None if outlook.starts_in is None else round(outlook.starts_in),
            ends_in=None if outlook.ends_in is None else round(outlook.ends_in),
            ends_between=_between(job, outlook.ends_in),
            estimate=job.estimate if job.state in LIVE else None,
            parts=job.parts if job.state in LIVE else [],
            # Not in investigations: who reads an answer and then cancels would get it for nothing.
            unfinished=list(job.unfinished.values()) if job.state in LIVE and self.caller.operator else [],
        )

    def job_line(self, job: Job) -> str:
        """A live job in one line."""
        state = self.job_state(job)
        share = f", {state.progress:.0%} done" if state.progress is not None else ""
        place = f", {counted(state.queued_before, 'job')} before it" if state.queued_before else ""
        shared = f", taking turns with {counted(state.sharing, 'other job')}" if state.sharing else ""
        note = f" ({state.message})" if state.message else ""
        times = []
        if state.queued_before and state.starts_in is not None:
            times.append(f"begins in about {state.starts_in:.0f} s")
        if state.ends_between is not None:
            least, most = state.ends_between
            times.append(f"ends in about {f'{least:.0f} to ' if most > _PLAIN * least else ''}{most:.0f} s")
        outlook = f"It {' and '.join(times)}" if times else f"Estimate: {estimate_text(job.estimate)}"
        return f"{job.id} is {job.state}{share}{place}{shared}, {state.seconds:.0f} s of work so far{note}. {outlook}."


_PLAIN = 1.3
"""Up to this ratio of two estimates one of them says enough."""


def _between(job: Job, ends_in: float | None) -> tuple[float, float] | None:
    """Seconds until a job ends, at least and at most: what is said of its middle holds of both bounds in proportion."""
    if ends_in is None or not job.left_between or not job.seconds_left:
        return None
    least, most = (round(ends_in * left / job.seconds_left) for left in job.left_between)
    return least, most


def _is_long(estimate: CostEstimate | None) -> bool:
    """Whether work takes so long that a user should be asked; what nobody knows may."""
    return estimate is None or estimate.seconds is None or estimate.seconds >= LONG_SECONDS


def counted(number: int, what: str) -> str:
    """`1 job`, `3 jobs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def most_telling(parts: Sequence[Part]) -> Part:
    """What stands out most by its p; of equal ones the newest."""
    return min(reversed(parts), key=lambda part: (not part.stands_out, 1.0 if part.p is None else part.p))


def fenced_parts(parts: Sequence[Part]) -> str:
    """Finished parts, one line each, between the marks of untrusted text."""
    fence = Fence()
    lines = [
        fence.line(f"{part.name} [{part.run_id}]{_seen(part)}", clip(" ".join(part.headline.split()), 300)[0])
        for part in parts
    ]
    return fence.around("\n".join(lines))


def _seen(part: Part) -> str:
    seen = "" if part.stands_out is None else f" {standing(part.stands_out, part.p)}"
    return seen if part.p is None else f"{seen}, p {part.p:.3f}"


def _cost_sentence(estimate: CostEstimate | None, interactions: int) -> str:
    if estimate is None:
        return "What this would cost is not known beforehand"
    return f"This would cost {estimate_text(estimate, interactions)}"


def estimate_text(estimate: CostEstimate | None, interactions: int = 0) -> str:
    """An estimate in words."""
    if estimate is None:
        return "unknown"
    tokens = {"tokens read": estimate.tokens, "generated": estimate.generated_tokens}
    parts = [f"{count:,} {name}" for name, count in tokens.items() if count]
    if estimate.forward_passes:
        parts.append(f"{estimate.forward_passes:,} forward passes")
    parts.append(f"about {estimate.seconds:.0f} s" if estimate.seconds is not None else "seconds not known yet")
    if estimate.bytes:
        parts.append(f"{estimate.bytes / 1e6:.1f} MB on disk")
    if interactions:
        parts.append(f"{interactions} model interactions")
    return ", ".join(parts)
