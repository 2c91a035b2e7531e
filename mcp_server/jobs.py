"""Long work that outlives the request which started it: one queue and one worker a device, equal work shared,
cancellable between batches.

A tool call waits a while for its job and then hands out the job's id. Workers are plain threads that never touch an MCP
session: they write numbers into the `Job`, and whoever waits on the event loop reads them. So a client that hangs up
can neither block the worker nor keep the device.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from diffing_mcp.core.errors import Cancelled, DiffingError, OutOfRoom, UnknownName
from diffing_mcp.methods.contract import CostEstimate

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "completed", "failed", "cancelled"]
Work = Callable[["Job"], Any]
LIVE: tuple[State, ...] = ("queued", "running")


class InternalError(DiffingError):
    """Something that should not happen; its own text stays in the server's log under `identifier`."""

    code = "internal_error"

    def __init__(self, identifier: str) -> None:
        super().__init__(
            f"internal error {identifier}: nothing finished was lost. Try the call once more; if it fails again, go on "
            f"without it and give {identifier} to the operator (the server's log holds the cause)."
        )
        self.identifier = identifier


def internal_error(where: str, error: BaseException) -> InternalError:
    """Log an unexpected exception under a fresh id and return the error that may be shown in its place."""
    identifier = secrets.token_hex(4)
    logger.error("internal error %s in %s", identifier, where, exc_info=error)
    return InternalError(identifier)


def presentable(where: str, error: BaseException) -> DiffingError:
    """The error to show for any exception: a `DiffingError` as it is, a device out of memory in plain words, all others
    under an id.
    """
    if isinstance(error, DiffingError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfRoom(
            "the device ran out of memory. Ask for less at once (fewer or shorter texts, fewer samples), or unload a "
            "pair that is not needed."
        )
    return internal_error(where, error)


@dataclass
class Job:
    """One piece of work. It is also the `Progress` given to it: calling it records where the work is and raises
    `Cancelled` when it shall stop.
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
    done: float = 0
    total: float | None = None
    message: str = ""
    sequence: int = 0
    result: Any = None
    error: DiffingError | None = None
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    waiters: list[Callable[[], None]] = field(default_factory=list)

    def __call__(self, done: float, total: float | None = None, message: str = "") -> None:
        if self.stop.is_set():
            raise Cancelled("the job was cancelled")
        self.done, self.total, self.message = done, total, message
        self.sequence += 1

    @property
    def seconds(self) -> float:
        """Seconds of work so far, without the time in the queue."""
        return 0.0 if self.started is None else (self.ended or time.time()) - self.started

    @property
    def fraction(self) -> float | None:
        """Share done in [0, 1], None while the total is unknown."""
        if self.state == "completed":  # work reports what it starts, not that it has ended
            return 1.0
        return min(1.0, self.done / self.total) if self.total else None


def job_id(kind: str, scope: str, key: Any) -> str:
    """`kind-xxxxxxxx`: the same for equal work asked by the same caller. `key` is anything JSON can hold."""
    canonical = json.dumps([scope, key], sort_keys=True, separators=(",", ":"), default=str)
    return f"{kind}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


class Jobs:
    """All jobs of this process. Thread-safe; `close` stops everything."""

    def __init__(self, keep_finished: int = 500) -> None:
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._queues: dict[str, queue.SimpleQueue[Job | None]] = {}
        self._workers: list[threading.Thread] = []
        self._keep_finished = keep_finished
        self._closed = False

    def find(self, kind: str, scope: str, key: Any) -> Job | None:
        """The live or completed job of equal work, None when there is none or the last one failed or was cancelled."""
        with self._lock:
            job = self._jobs.get(job_id(kind, scope, key))
            return (
                job
                if job is not None
                and job.state not in ("failed", "cancelled")
                and not (job.stop.is_set() and job.state in LIVE)
                else None
            )

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
    ) -> Job:
        """Queue `work`, or return the live or completed job of equal work.

        `reserve` is called only for new work, before it is queued, and may refuse by raising; what it returns is called
        exactly once with whether the work completed. `payload` is kept for whoever shows the job later.
        """
        with self._lock:
            if (known := self.find(kind, scope, key)) is not None:
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
            self._jobs[identifier] = job
            self._forget_old()
            if device not in self._queues:
                self._queues[device] = queue.SimpleQueue()
                worker = threading.Thread(
                    target=self._serve, args=(self._queues[device],), name=f"worker-{device}", daemon=True
                )
                self._workers.append(worker)
                worker.start()
            self._queues[device].put(job)
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

    def ahead(self, job: Job) -> int:
        """How many live jobs of the same device were there before this one."""
        with self._lock:
            return sum(
                other.state in LIVE and other.device == job.device and other.created < job.created
                for other in self._jobs.values()
            )

    def cancel(self, job: Job) -> None:
        """Stop a job: at once when it waits in the queue, at its next batch when it runs.
        No effect on a finished one.
        """
        with self._lock:
            job.stop.set()
            queued = job.state == "queued"
        if queued:
            self._end(job, "cancelled", error=Cancelled("the job was cancelled before it started"))

    def close(self, timeout: float = 10.0) -> None:
        """Cancel everything, wait up to `timeout` seconds for the workers to reach their next batch."""
        with self._lock:
            self._closed = True
            live = [job for job in self._jobs.values() if job.state in LIVE]
        for job in live:
            self.cancel(job)
        for work_queue in self._queues.values():
            work_queue.put(None)
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    async def wait(
        self, job: Job, seconds: float, report: Callable[[Job], Any] | None = None, every: float = 0.25
    ) -> None:
        """Wait until the job ends or `seconds` passed. `report` is awaited on the event loop whenever the job has
        moved.
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
        finally:
            with self._lock:
                if wake in job.waiters:
                    job.waiters.remove(wake)

    def _serve(self, work_queue: queue.SimpleQueue[Job | None]) -> None:
        while (job := work_queue.get()) is not None:
            with self._lock:
                if job.state != "queued":
                    continue
                job.state, job.started = "running", time.time()
            try:
                result = job.work(job)
            except Cancelled as error:
                self._end(job, "cancelled", error=error)
            except BaseException as error:
                self._end(job, "failed", error=presentable(job.kind, error))
            else:
                self._end(job, "completed", result)

    def _end(self, job: Job, state: State, result: Any = None, error: DiffingError | None = None) -> None:
        with self._lock:
            if job.state not in LIVE:
                return
            job.state, job.result, job.error, job.ended = state, result, error, time.time()
            waiters, job.waiters = job.waiters, []
        if job.settle is not None:
            try:
                job.settle(state == "completed")
            except Exception as failure:
                internal_error(f"settling {job.id}", failure)
        job.finished.set()
        for wake in waiters:
            try:
                wake()
            except RuntimeError:
                logger.debug("a waiter's event loop is gone", exc_info=True)

    def _forget_old(self) -> None:
        finished = [identifier for identifier, job in self._jobs.items() if job.state not in LIVE]
        for identifier in finished[: max(0, len(finished) - self._keep_finished)]:
            del self._jobs[identifier]
