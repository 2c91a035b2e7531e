"""Long work that outlives the request which started it: jobs that take turns on a device (`turns`), equal work shared,
cancellable between batches, their parts handed over as they are finished.

A tool call waits a while for its job and then hands out the job's id. Jobs run in plain threads that never touch an MCP
session: they write numbers into the `Job`, and whoever waits on the event loop reads them. So a client that hangs up
can neither block a job nor keep the device.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import Cancelled, DiffingError, OutOfRoom, UnknownName
from diffing_mcp.core.progress import Phases
from diffing_mcp.mcp_server.shown_errors import internal_error, presentable
from diffing_mcp.mcp_server.turns import Ticket, Turns
from diffing_mcp.methods.contract import CostEstimate

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "completed", "failed", "cancelled"]
Work = Callable[["Job"], Any]
Still = Callable[[Any], bool]
"""Whether the result of finished work is still there: a pair in memory, a run on the disk."""
LIVE: tuple[State, ...] = ("queued", "running")
BRIEF_WORK = 20_000
"""Up to so much `CostEstimate.work` a job is brief: a question or two."""


class Part(BaseModel):
    """A finished part of a job that goes on. Its texts may hold text of models."""

    name: str
    run_id: str = Field(description="Read it with view_run.")
    headline: str
    stands_out: bool | None = Field(None, description="Beyond its null level; null: it has none.")
    p: float | None = Field(None, description="Share of finetunes that taught nothing which show as much.")


class Unfinished(BaseModel):
    """An answer that is being written."""

    side: Literal["base", "finetuned"]
    prompt: int
    sample: int
    model_text: str = Field(description="UNTRUSTED text of a model.")


@dataclass
class Job:
    """One piece of work. It is also the `Progress` given to it: calling it records where the work is, lets other jobs
    of the device have their turn, and raises `Cancelled` when it shall stop.
    """

    id: str
    kind: str
    scope: str
    device: str
    work: Work
    estimate: CostEstimate | None
    settle: Callable[[bool], None] | None = None
    payload: Any = None
    state: State = "queued"
    message: str = ""
    phases: Phases = field(default_factory=Phases)
    parts: list[Part] = field(default_factory=list)
    unfinished: dict[tuple[str, int, int], Unfinished] = field(default_factory=dict)
    """Answers that are being written, by side, prompt and sample."""
    told: dict[str, int] = field(default_factory=dict)
    """How many of the parts a caller has been told of, by its scope."""
    sequence: int = 0
    handed_out: bool = False
    """A caller knows its id, and may come back for it."""
    result: Any = None
    error: DiffingError | None = None
    created: float = field(default_factory=time.time)
    ended: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    waiters: list[Callable[[], None]] = field(default_factory=list)
    ticket: Ticket = field(init=False)
    turns: Turns = field(init=False)

    def __call__(self, done: float, total: float | None = None, message: str = "") -> None:
        self._stop_if_told()
        self.message = message
        self.phases.report(done, total)
        self.sequence += 1
        self.turns.give_way(self.ticket)
        self._stop_if_told()

    def give(self, part: Part) -> None:
        """Hand over a part that is finished."""
        self.parts.append(part)
        self.sequence += 1

    def write(self, side: Literal["base", "finetuned"], prompt: int, sample: int, text: str) -> None:
        """Hand over an answer as far as it is written."""
        written = Unfinished(side=side, prompt=prompt, sample=sample, model_text=text)
        self.unfinished[side, prompt, sample] = written

    @property
    def seconds(self) -> float:
        """Seconds of work so far, without those in which others had their turn."""
        return self.turns.seconds(self.ticket)

    @property
    def fraction(self) -> float | None:
        """Share done in [0, 1], which never falls; None while nothing is known."""
        return 1.0 if self.state == "completed" else self.phases.share or None

    def news(self, scope: str) -> list[Part]:
        """The parts that a caller has not been told of; from now on it has."""
        parts = list(self.parts)
        known, self.told[scope] = self.told.get(scope, 0), len(parts)
        return parts[known:]

    @property
    def left_between(self) -> tuple[float, float] | None:
        """Seconds of work that are left, at least and at most: by what is done of it and by its estimate, as far as
        either is known. None: neither is.
        """
        used, share = self.seconds, self.phases.of_phase
        known = [used * (1 - share) / share] if self.phases.number == 1 and share >= 0.05 else []
        if self.estimate is not None and self.estimate.seconds is not None and self.estimate.seconds > used:
            known.append(self.estimate.seconds - used)
        return (min(known), max(known)) if known else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds of work that are left, the middle of `left_between`."""
        return None if self.left_between is None else sum(self.left_between) / 2

    def _stop_if_told(self) -> None:
        if self.stop.is_set():
            raise cancelled(self)


def cancelled(job: Job) -> Cancelled:
    """What whoever waits for a cancelled job is told."""
    return Cancelled(f"{job.id} was cancelled. Call {job.kind} again to start it anew.")


@dataclass(frozen=True)
class Outlook:
    """How long a live job still takes. Seconds are estimates, None while something they rest on is unknown."""

    queued_before: int = 0
    """Jobs that must end or begin before it begins."""
    sharing: int = 0
    """Other jobs that it takes turns with."""
    starts_in: float | None = None
    ends_in: float | None = None


def job_id(kind: str, scope: str, key: Any) -> str:
    """`kind-xxxxxxxx`: the same for equal work asked by the same caller. `key` is anything JSON can hold."""
    canonical = json.dumps([scope, key], sort_keys=True, separators=(",", ":"), default=str)
    return f"{kind}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


class Jobs:
    """All jobs of this process. Thread-safe; `close` stops everything."""

    def __init__(self, keep_finished: int = 500, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: what turns are measured with, in seconds."""
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._turns: dict[str, Turns] = {}
        self._threads: list[threading.Thread] = []
        self._keep_finished = keep_finished
        self._clock = clock
        self._closed = False
        self.on_end: list[Callable[[Job], None]] = []
        """Called, in whatever thread, with every job that has ended."""

    def find(self, kind: str, scope: str, key: Any, still: Still = lambda result: True) -> Job | None:
        """The live or completed job of equal work. None: there is none, the last one failed or was cancelled, or what
        it gave is no longer there.
        """
        with self._lock:
            job = self._jobs.get(job_id(kind, scope, key))
            if job is None or job.state in ("failed", "cancelled"):
                return None
            if job.state == "completed":
                return job if still(job.result) else None
            return None if job.stop.is_set() else job

    def submit(
        self,
        kind: str,
        scope: str,
        key: Any,
        work: Work,
        *,
        device: str = "default",
        estimate: CostEstimate | None = None,
        reserve: Callable[[], Callable[[bool], None] | None] | None = None,
        payload: Any = None,
        still: Still = lambda result: True,
    ) -> Job:
        """Queue `work`, or return the live or completed job of equal work (`find`).

        `reserve` is called only for new work, before it is queued, and may refuse by raising; what it returns is called
        exactly once with whether the work completed. `payload` is kept for whoever shows the job later.
        """
        with self._lock:
            if (known := self.find(kind, scope, key, still)) is not None:
                return known
            if self._closed:
                raise Cancelled("the server is shutting down; call again when it is back. Finished runs are kept.")
            settle = reserve() if reserve else None
            identifier = job_id(kind, scope, key)
            previous = self._jobs.pop(identifier, None)
            if previous is not None and previous.state in LIVE:
                # A cancelled job that has not reached its next batch yet keeps the id under which its waiters know it;
                # the new one gets a fresh one.
                self._jobs[f"{identifier}-{secrets.token_hex(2)}"] = previous
            job = Job(identifier, kind, scope, device, work, estimate, settle, payload)
            job.turns = self._turns.setdefault(device, Turns(self._clock))
            brief = estimate is not None and estimate.work <= BRIEF_WORK
            job.ticket = Ticket(secrets.token_hex(8), scope, brief, lambda: self._begin(job))
            self._jobs[identifier] = job
            self._forget_old()
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            job.turns.join(job.ticket)
            return job

    def get(self, identifier: str, scope: str | None) -> Job:
        """The job with this id, visible to `scope` (None sees all).

        Raises:
            UnknownName: no such job for this caller; the message lists those there are.
        """
        with self._lock:
            job = self._jobs.get(identifier)
            if job is not None and scope in (None, job.scope):
                return job
            known = [other.id for other in self._jobs.values() if scope in (None, other.scope)][-10:]
        listed = f"Jobs there are: {', '.join(known)}." if known else "There are no jobs now."
        raise UnknownName(
            f"unknown job {identifier!r}. {listed} Jobs end with the server, finished runs do not: repeat the call "
            "that started it."
        )

    def list(self, scope: str | None) -> list[Job]:
        """Jobs visible to `scope`, oldest first."""
        with self._lock:
            return [job for job in self._jobs.values() if scope in (None, job.scope)]

    def outlook(self, job: Job) -> Outlook:
        """When a live job begins and ends, if nothing else comes."""
        with self._lock:
            of_ticket = {id(other.ticket): other for other in self._jobs.values() if other.state in LIVE}
        begun = [of_ticket[id(ticket)] for ticket in job.turns.begun() if id(ticket) in of_ticket]
        line = [of_ticket[id(ticket)] for ticket in job.turns.line() if id(ticket) in of_ticket]
        if job in line:
            before = line.index(job)
            ends = [_ends_in(other, begun) for other in begun]
            known = sorted(end for end in ends if end is not None)
            starts = known[before] if len(known) == len(ends) and before < len(known) else None
            left = job.seconds_left
            ends_in = None if starts is None or left is None else starts + left * max(1, len(begun))
            return Outlook(before + len(begun), 0, starts, ends_in)
        return Outlook(0, len(begun) - 1, 0.0, _ends_in(job, begun)) if job in begun else Outlook()

    def cancel(self, job: Job) -> None:
        """Stop a job: at once when it waits in the queue, at its next batch when it runs.
        No effect on a finished one.
        """
        with self._lock:
            job.stop.set()
            queued = job.state == "queued"
        if queued:
            self._end(job, "cancelled", error=cancelled(job))
            job.turns.leave(job.ticket)
        elif job.state == "running":
            job.turns.hurry(job.ticket)

    def close(self, timeout: float = 10.0) -> bool:
        """Cancel everything: whoever waits for a job is told at once. Then wait up to `timeout` seconds for threads to
        reach their next batch; whether all have. Those that have not are left to the end of the process.
        """
        with self._lock:
            self._closed = True
            live = [job for job in self._jobs.values() if job.state in LIVE]
        for job in live:
            job.stop.set()
            said = (
                f"the server is shutting down, so {job.id} was stopped. Call {job.kind} again when it is back: what "
                "had finished is kept and not done again."
            )
            self._end(job, "cancelled", error=Cancelled(said))
        for turns in self._turns.values():
            turns.close()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    async def wait(
        self, job: Job, seconds: float, report: Callable[[Job], Any] | None = None, every: float = 0.25
    ) -> None:
        """Wait until the job ends or `seconds` passed. `report` is awaited on the event loop whenever the job has
        moved. When the wait itself is cancelled, so is a job that nobody else waits for and nobody else knows.
        """
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(ended.set)

        with self._lock:
            if job.finished.is_set():
                return
            job.waiters.append(wake)
        deadline, seen = loop.time() + seconds, -1
        try:
            while not ended.is_set() and (left := deadline - loop.time()) > 0:
                try:
                    await asyncio.wait_for(ended.wait(), min(every, left))
                except TimeoutError:
                    if report is not None and job.sequence != seen:
                        seen = job.sequence
                        await report(job)
        except asyncio.CancelledError:
            with self._lock:
                forsaken = job.waiters == [wake] and not job.handed_out
            if forsaken:
                self.cancel(job)
            raise
        finally:
            with self._lock:
                if wake in job.waiters:
                    job.waiters.remove(wake)

    def _begin(self, job: Job) -> None:
        # Called with the turns locked: takes no lock of ours.
        thread = threading.Thread(target=self._run, args=(job,), name=job.id, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _run(self, job: Job) -> None:
        try:
            with self._lock:
                if job.state != "queued" or job.stop.is_set():  # whoever told it to stop ends it
                    return
                job.state = "running"
            self._end(job, "completed", self._result(job))
        except Cancelled as error:
            self._end(job, "cancelled", error=error)
        except BaseException as error:
            self._end(job, "failed", error=presentable(job.kind, error))
        finally:
            job.turns.leave(job.ticket)

    def _result(self, job: Job) -> Any:
        """What the work gives. Where there was no room for it beside other jobs it is done again without them."""
        try:
            return job.work(job)
        except OutOfRoom:
            if not job.turns.has_company(job.ticket):
                raise
        # Not inside of the handler: the exception keeps what the work had in memory.
        job.turns.wait_to_be_alone(job.ticket)
        job(0, None, "again, without other work beside it")
        return job.work(job)

    def _end(self, job: Job, state: State, result: Any = None, error: DiffingError | None = None) -> None:
        with self._lock:
            if job.state not in LIVE:
                return
            job.state, job.result, job.error = state, result, _without_frames(error)
        if job.settle is not None:
            try:
                job.settle(state == "completed")
            except Exception as failure:
                internal_error(f"settling {job.id}", failure)
        job.ended = time.time()
        with self._lock:  # whoever comes to wait while the job is settled is woken too
            job.finished.set()
            waiters, job.waiters = job.waiters, []
        for listener in self.on_end:
            try:
                listener(job)
            except Exception as failure:
                internal_error(f"telling of {job.id}", failure)
        for wake in waiters:
            try:
                wake()
            except RuntimeError:
                logger.debug("a waiter's event loop is gone", exc_info=True)

    def _forget_old(self) -> None:
        finished = [identifier for identifier, job in self._jobs.items() if job.state not in LIVE]
        for identifier in finished[: max(0, len(finished) - self._keep_finished)]:
            del self._jobs[identifier]


def _without_frames(error: DiffingError | None) -> DiffingError | None:
    """An exception keeps the frames that it went through, and these what the work had in memory: hundreds of megabytes
    of a corpus pass, as long as the ended job can be asked for."""
    if error is not None:
        error.__cause__ = error.__context__ = None
        error.__traceback__ = None
    return error


def _ends_in(job: Job, begun: list[Job]) -> float | None:
    """Seconds until a begun job ends while it takes turns with the others: each caller has an equal share, and each of
    a caller's jobs an equal part of that; and when all others have ended it has the device to itself."""
    left = job.seconds_left
    if left is None:
        return None
    shares = len({other.scope for other in begun}) * sum(other.scope == job.scope for other in begun)
    others = [other.seconds_left for other in begun if other is not job]
    known = [seconds for seconds in others if seconds is not None]
    return min(left * max(1, shares), left + sum(known)) if len(known) == len(others) else left * max(1, shares)
