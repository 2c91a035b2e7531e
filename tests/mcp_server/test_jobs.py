"""Jobs: equal work is shared, the slot always comes back, cancellation takes effect between batches."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from diffing_mcp.core.errors import Cancelled, DiffingError, InvalidInput, OutOfRoom, UnknownName
from diffing_mcp.mcp_server.jobs import Job, Jobs
from diffing_mcp.mcp_server.shown_errors import InternalError


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    jobs = Jobs()
    yield jobs
    jobs.close(5)


def batches(count: int, gate: threading.Event | None = None) -> Callable[[Job], int]:
    """Work of `count` batches; with a gate it stops in the first until the gate opens."""

    def work(job: Job) -> int:
        for done in range(count):
            job(done, count, f"batch {done}")
            if gate is not None:
                assert gate.wait(10)
        return count

    return work


def endless(started: threading.Event) -> Callable[[Job], None]:
    """Work that ends by being cancelled; `started` is set once it runs."""

    def work(job: Job) -> None:
        while True:
            job(0, None, "on")
            started.set()

    return work


async def test_a_job_ends_with_its_result_and_reports_on_the_way(jobs: Jobs) -> None:
    seen: list[float] = []
    reported = threading.Event()

    def work(job: Job) -> int:
        for done in range(4):
            job(done, 4, f"batch {done}")
            assert reported.wait(10)
            reported.clear()
        return 4

    async def report(job: Job) -> None:
        seen.append(job.fraction or 0.0)
        reported.set()

    job = jobs.submit("count", "a", {"n": 4}, work)
    await jobs.wait(job, 10, report, every=0.01)
    assert (job.state, job.result) == ("completed", 4)
    assert seen == sorted(seen)
    assert {round(share / 0.9, 3) for share in seen} == {0.0, 0.25, 0.5, 0.75}


async def test_equal_work_runs_once_while_live_and_when_completed(jobs: Jobs) -> None:
    runs: list[int] = []
    gate = threading.Event()

    def work(job: Job) -> int:
        runs.append(1)
        assert gate.wait(10)
        return 7

    first, second = (jobs.submit("kind", "a", {"x": 1, "y": 2}, work), jobs.submit("kind", "a", {"y": 2, "x": 1}, work))
    gate.set()
    await asyncio.gather(jobs.wait(first, 5), jobs.wait(second, 5))
    third = jobs.submit("kind", "a", {"x": 1, "y": 2}, work)
    assert first is second is third
    assert runs == [1]
    assert jobs.submit("kind", "b", {"x": 1, "y": 2}, work) is not first


async def test_finished_work_is_done_anew_when_what_it_gave_is_gone(jobs: Jobs) -> None:
    first = jobs.submit("kind", "a", 1, batches(1))
    await jobs.wait(first, 5)
    assert jobs.submit("kind", "a", 1, batches(1), still=lambda result: result == 1) is first
    second = jobs.submit("kind", "a", 1, batches(1), still=lambda result: False)
    assert second is not first
    assert second.id == first.id
    await jobs.wait(second, 5)
    assert second.state == "completed"


async def test_live_work_is_joined_whatever_it_will_give(jobs: Jobs) -> None:
    gate = threading.Event()
    first = jobs.submit("kind", "a", 1, batches(1, gate))
    assert jobs.submit("kind", "a", 1, batches(1), still=lambda result: False) is first
    gate.set()
    await jobs.wait(first, 5)


async def test_whoever_comes_to_wait_while_a_job_is_settled_is_told_of_its_end(jobs: Jobs) -> None:
    settling, go_on = threading.Event(), threading.Event()

    def settle(completed: bool) -> None:
        settling.set()
        assert go_on.wait(10)

    job = jobs.submit("kind", "a", 1, batches(1), reserve=lambda: settle)
    assert await asyncio.to_thread(settling.wait, 5)
    waiting = asyncio.create_task(jobs.wait(job, 60))
    await asyncio.sleep(0.05)
    go_on.set()
    await asyncio.wait_for(waiting, 5)


async def test_a_listener_that_fails_keeps_nobody_waiting(jobs: Jobs) -> None:
    def fail(job: Job) -> None:
        raise RuntimeError("its event loop is gone")

    jobs.on_end.append(fail)
    job = jobs.submit("kind", "a", 1, batches(1))
    await asyncio.wait_for(jobs.wait(job, 60), 5)
    assert job.state == "completed"


async def test_waiting_ends_in_time_and_the_work_goes_on(jobs: Jobs) -> None:
    gate = threading.Event()
    job = jobs.submit("count", "a", 1, batches(3, gate))
    await jobs.wait(job, 0.1)
    assert not job.finished.is_set()
    gate.set()
    await jobs.wait(job, 10)
    assert job.state == "completed"


async def abandoned(jobs: Jobs, job: Job) -> None:
    """A wait for the job that is cancelled once the job has reported."""
    waiting = asyncio.Event()

    async def report(job: Job) -> None:
        waiting.set()

    waiter = asyncio.create_task(jobs.wait(job, 10, report, every=0.01))
    await waiting.wait()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter


async def test_a_job_that_nobody_waits_for_or_knows_stops_with_its_last_waiter(jobs: Jobs) -> None:
    job = jobs.submit("count", "a", 1, endless(threading.Event()))
    await abandoned(jobs, job)
    assert await asyncio.to_thread(job.finished.wait, 10)
    assert job.state == "cancelled"


async def test_a_job_whose_id_was_handed_out_outlives_its_waiters(jobs: Jobs) -> None:
    gate = threading.Event()
    job = jobs.submit("count", "a", 1, batches(3, gate))
    job.handed_out = True
    await abandoned(jobs, job)
    gate.set()
    await jobs.wait(job, 10)
    assert job.result == 3


async def test_a_job_that_somebody_else_waits_for_goes_on(jobs: Jobs) -> None:
    gate = threading.Event()
    job = jobs.submit("count", "a", 1, batches(3, gate))
    other = asyncio.create_task(jobs.wait(job, 10))
    await abandoned(jobs, job)
    gate.set()
    await other
    assert job.result == 3


async def test_cancelling_stops_at_the_next_batch_and_frees_the_device(jobs: Jobs) -> None:
    settled: list[bool] = []
    started = threading.Event()
    job = jobs.submit("count", "a", 1, endless(started), reserve=lambda: settled.append)
    assert await asyncio.to_thread(started.wait, 10)
    jobs.cancel(job)
    after = jobs.submit("count", "a", 2, batches(2))
    await jobs.wait(after, 5)
    assert (job.state, after.state, settled) == ("cancelled", "completed", [False])
    assert isinstance(job.error, Cancelled)


async def test_a_queued_job_is_cancelled_at_once_and_never_runs(jobs: Jobs) -> None:
    gate = threading.Event()
    ran: list[int] = []
    blocking = jobs.submit("block", "a", 1, lambda job: gate.wait(10))
    settled: list[bool] = []
    queued = jobs.submit("never", "a", 1, lambda job: ran.append(1), reserve=lambda: settled.append)
    assert jobs.outlook(queued).queued_before == 1
    jobs.cancel(queued)
    assert (queued.state, settled) == ("cancelled", [False])
    gate.set()
    await jobs.wait(blocking, 5)
    assert ran == []


class Large:
    """Stands for what a corpus pass has in memory."""


@pytest.mark.parametrize("error", [Cancelled, InvalidInput, OutOfRoom, None])
async def test_an_ended_job_keeps_nothing_that_its_work_had_in_memory(
    jobs: Jobs, error: type[DiffingError] | None
) -> None:
    """Every cancelled `kl` of the 135M model kept 400 MB until a hundred other jobs had ended."""
    kept: list[weakref.ref[Large]] = []

    def work(job: Job) -> None:
        large = Large()
        kept.append(weakref.ref(large))
        try:
            job(0, 1, "at work")
            raise LookupError("underneath")
        except LookupError as missing:
            if error is not None:
                raise error("said") from missing

    job = jobs.submit("work", "a", 1, work)
    await jobs.wait(job, 5)
    assert job.state in ("completed", "cancelled", "failed")
    while not thread_has_ended(job):
        await asyncio.sleep(0.001)
    gc.collect()
    assert jobs.get(job.id, "a") is job
    assert kept[0]() is None


async def test_a_job_that_begins_while_it_is_cancelled_does_not_work_beside_others(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began between the look at its state and its end, and its place was given away while it worked."""
    gate, entered, leave = threading.Event(), threading.Event(), threading.Event()
    blocking = jobs.submit("block", "a", 1, lambda job: gate.wait(10))

    def work(job: Job) -> None:
        entered.set()
        leave.wait(10)

    queued = jobs.submit("never", "a", 1, work)
    end = jobs._end

    def late(job: Job, *given: object, **named: object) -> None:
        if job is queued:
            gate.set()
            while not entered.is_set() and not thread_has_ended(queued):
                time.sleep(0.001)
        end(job, *given, **named)

    monkeypatch.setattr(jobs, "_end", late)
    await asyncio.to_thread(jobs.cancel, queued)
    leave.set()
    assert not entered.is_set()
    assert (queued.state, blocking.state) == ("cancelled", "completed")
    after = jobs.submit("count", "a", 2, batches(1))
    await jobs.wait(after, 5)
    assert after.state == "completed"


def thread_has_ended(job: Job) -> bool:
    return job.ticket.threaded and all(thread.name != job.id for thread in threading.enumerate())


@pytest.mark.parametrize("begins", ["with the call", "after another"])
async def test_a_thread_that_cannot_be_started_does_not_block_the_device(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    """Where a container allows no more threads, whatever came later waited for ever."""
    gate = threading.Event()
    if begins == "after another":
        jobs.submit("block", "a", 1, lambda job: gate.wait(10))
    start, failed = threading.Thread.start, threading.Event()

    def fails_once(thread: threading.Thread) -> None:
        if thread.name.startswith("count") and not failed.is_set():
            failed.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fails_once)
    settled: list[bool] = []
    first = jobs.submit("count", "a", 1, batches(1), reserve=lambda: settled.append)
    gate.set()
    assert await asyncio.to_thread(failed.wait, 5)
    second = jobs.submit("count", "b", 2, batches(1))
    for job in (first, second):
        await jobs.wait(job, 5)
    assert (first.state, second.state, settled) == ("completed", "completed", [True])


async def test_work_can_be_asked_for_again_after_failure_and_cancellation(jobs: Jobs) -> None:
    def broken(job: Job) -> None:
        raise InvalidInput("too long")

    first = jobs.submit("kind", "a", 1, broken)
    await jobs.wait(first, 5)
    assert first.error is not None
    assert first.error.message == "too long"
    started = threading.Event()
    second = jobs.submit("kind", "a", 1, endless(started))
    assert second is not first
    assert await asyncio.to_thread(started.wait, 10)
    jobs.cancel(second)
    # The cancelled one may still be on its way to the next batch: equal work asked for now is new work.
    third = jobs.submit("kind", "a", 1, batches(1))
    assert third is not second
    await jobs.wait(third, 5)
    assert (second.state, third.state) == ("cancelled", "completed")


async def test_unexpected_exceptions_get_an_id_and_keep_their_text(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(job: Job) -> None:
        raise RuntimeError("/secret/path")

    settled: list[bool] = []
    job = jobs.submit("kind", "a", 1, broken, reserve=lambda: settled.append)
    await jobs.wait(job, 5)
    assert isinstance(job.error, InternalError)
    assert "/secret" not in job.error.message
    assert job.error.identifier in job.error.message
    assert job.error.identifier in caplog.text
    assert "/secret/path" in caplog.text
    assert settled == [False]


async def test_out_of_memory_is_told_in_plain_words_and_the_worker_lives(jobs: Jobs) -> None:
    def hungry(job: Job) -> None:
        raise MemoryError

    job = jobs.submit("kind", "a", 1, hungry)
    await jobs.wait(job, 5)
    assert isinstance(job.error, OutOfRoom)
    after = jobs.submit("kind", "a", 2, batches(1))
    await jobs.wait(after, 5)
    assert after.state == "completed"


async def test_a_refused_reservation_queues_nothing(jobs: Jobs) -> None:
    def refuse() -> None:
        raise InvalidInput("no budget")

    with pytest.raises(InvalidInput):
        jobs.submit("kind", "a", 1, batches(1), reserve=refuse)
    assert jobs.list(None) == []


def test_jobs_of_other_callers_are_unknown(jobs: Jobs) -> None:
    mine = jobs.submit("mine", "a", 1, batches(1))
    other = jobs.submit("other", "b", 1, batches(1))
    assert jobs.get(mine.id, "a") is mine
    assert jobs.get(other.id, None) is other
    with pytest.raises(UnknownName) as caught:
        jobs.get(other.id, "a")
    assert mine.id in caught.value.message
    assert other.id not in caught.value.message.replace(repr(other.id), "")


async def test_devices_work_side_by_side(jobs: Jobs) -> None:
    meet = threading.Barrier(2, timeout=5)
    both = [jobs.submit("meet", "a", place, lambda job: meet.wait() >= 0, device=f"cuda:{place}") for place in range(2)]
    for job in both:
        await jobs.wait(job, 5)
    assert [job.result for job in both] == [True, True]


def test_closing_cancels_everything_and_refuses_new_work() -> None:
    jobs = Jobs()
    settled: list[bool] = []
    started = threading.Event()
    running = jobs.submit("count", "a", 1, endless(started), reserve=lambda: settled.append)
    queued = jobs.submit("count", "a", 2, batches(1), reserve=lambda: settled.append)
    assert started.wait(10)
    jobs.close(5)
    assert (running.state, queued.state, settled) == ("cancelled", "cancelled", [False, False])
    with pytest.raises(Cancelled):
        jobs.submit("count", "a", 3, batches(1))


async def test_old_finished_jobs_are_forgotten() -> None:
    jobs = Jobs(keep_finished=3)
    last = None
    for number in range(10):
        last = jobs.submit("kind", "a", number, batches(0))
        await jobs.wait(last, 5)
    assert len(jobs.list(None)) <= 4
    assert last is not None
    assert jobs.get(last.id, "a") is last
    jobs.close()
