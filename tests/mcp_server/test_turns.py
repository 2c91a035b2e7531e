"""Turns: equal shares, short questions at once, what is begun is bounded, and nothing of one job shows in another."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.core.errors import OutOfRoom
from diffing_mcp.core.progress import stage
from diffing_mcp.core.undivided import undivided, working_time
from diffing_mcp.mcp_server.jobs import Job, Jobs
from diffing_mcp.mcp_server.shares import HEAD_START, SLICE, Shares
from diffing_mcp.mcp_server.turns import MOST_BEGUN, MOST_BRIEF, Ticket
from diffing_mcp.methods.contract import CostEstimate


def cost(work: int, seconds: float | None = None) -> CostEstimate:
    return CostEstimate(tokens=0, work=work, forward_passes=0, seconds=seconds, bytes=0)


BRIEF = cost(10)


class Clock:
    """Time that passes only in the work of jobs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(clock: Clock) -> Iterator[Jobs]:
    jobs = Jobs(clock=clock)
    yield jobs
    jobs.close(5)


@pytest.fixture
def history() -> list[str]:
    """Which job worked, batch by batch."""
    return []


Work = Callable[[Job], Any]


@pytest.fixture
def working(clock: Clock, history: list[str]) -> Callable[..., Work]:
    """Makes work of `count` batches, each of so many seconds; it begins when `gate` is open."""

    def make(name: str, count: int, seconds: float = 1.0, gate: threading.Event | None = None) -> Work:
        def work(job: Job) -> int:
            assert gate is None or gate.wait(10)
            for done in range(count):
                history.append(name)
                clock.now += seconds
                job(done + 1, count, f"batch {done}")
            return count

        return work

    return make


async def ended(jobs: Jobs, *several: Job) -> None:
    for job in several:
        await jobs.wait(job, 10)
        assert job.state == "completed", job


@pytest.mark.parametrize("scope", ["a", "b"])
async def test_a_question_runs_at_once_in_the_middle_of_long_work(
    jobs: Jobs, working: Callable[..., Work], history: list[str], scope: str
) -> None:
    asked, middle = threading.Event(), threading.Event()

    def training(job: Job) -> None:
        for step in range(100):
            if step == 50:
                middle.set()
                assert asked.wait(10)
            working("training", 1)(job)

    long = jobs.submit("train", "a", 1, training)
    assert await asyncio.to_thread(middle.wait, 10)
    question = jobs.submit("ask", scope, 2, working("question", 3), estimate=BRIEF)
    asked.set()
    await ended(jobs, question, long)
    first = history.index("question")
    assert first <= 52
    assert history[first : first + 3] == ["question"] * 3


async def test_callers_have_equal_shares_and_so_have_the_jobs_of_one(
    jobs: Jobs, working: Callable[..., Work], history: list[str]
) -> None:
    gate = threading.Event()
    several = [jobs.submit("w", "a", place, working(f"a{place}", 100, gate=gate)) for place in range(2)]
    several.append(jobs.submit("w", "b", 1, working("b", 200, gate=gate)))
    gate.set()
    await ended(jobs, *several)
    half = history[:200]
    assert half.count("b") == pytest.approx(100, abs=HEAD_START + SLICE + 2)
    assert half.count("a0") == pytest.approx(half.count("a1"), abs=HEAD_START + SLICE + 2)


async def test_no_more_than_so_many_are_begun_and_questions_still_come_in(
    jobs: Jobs, working: Callable[..., Work], clock: Clock
) -> None:
    begun: list[int] = []
    all_in, full, done = threading.Event(), threading.Event(), threading.Event()

    def long(place: int) -> Work:
        def work(job: Job) -> None:
            assert all_in.wait(10)
            begun.append(place)
            if len(begun) == MOST_BEGUN:
                full.set()
            while not done.is_set():
                clock.now += 2
                job(0, None, "on")

        return work

    def question(job: Job) -> int:
        return len(begun)

    several = [jobs.submit("long", "a", place, long(place)) for place in range(MOST_BEGUN + 2)]
    all_in.set()
    assert await asyncio.to_thread(full.wait, 10)
    asked = [jobs.submit("ask", "b", place, question, estimate=BRIEF) for place in range(MOST_BRIEF + 2)]
    await ended(jobs, *asked)
    assert [job.result for job in asked] == [MOST_BEGUN] * len(asked)
    waiting = [job for job in several if job.state == "queued"]
    assert [jobs.outlook(job).queued_before for job in waiting] == [MOST_BEGUN, MOST_BEGUN + 1]
    done.set()
    await ended(jobs, *several)


async def test_undivided_work_does_not_give_way(jobs: Jobs, clock: Clock, history: list[str]) -> None:
    asked = threading.Event()

    def switched(job: Job) -> None:
        assert asked.wait(10)
        with undivided():
            for _ in range(3):
                history.append("switched")
                clock.now += 100
                job(0, None, "")
        job(0, None, "")
        history.append("after")

    long = jobs.submit("long", "a", 1, switched)
    other = jobs.submit("other", "b", 2, lambda job: history.append("other"))
    asked.set()
    await ended(jobs, long, other)
    assert history == ["switched", "switched", "switched", "other", "after"]


def drawn() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.random())


async def test_random_numbers_of_the_process_are_each_jobs_own(jobs: Jobs, clock: Clock) -> None:
    def draws(seed: int, others: bool) -> Work:
        def work(job: Job) -> list[tuple[float, float, float]]:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            numbers = []
            for _ in range(20):
                numbers.append(drawn())
                clock.now += 2 * SLICE
                job(0, None, "")
                if others:
                    turns.append(seed)
            return numbers

        return work

    turns: list[int] = []
    alone = [jobs.submit("alone", "a", seed, draws(seed, False)) for seed in (1,)]
    await ended(jobs, *alone)
    alone += [jobs.submit("alone", "a", 2, draws(2, False))]
    await ended(jobs, *alone)
    gate = threading.Event()
    together = [
        jobs.submit("both", "a", 1, lambda job: gate.wait(10) and draws(1, True)(job)),
        jobs.submit("both", "b", 2, draws(2, True)),
    ]
    gate.set()
    await ended(jobs, *together)
    assert len({*turns[:10]}) == 2, "they did not take turns"
    assert [job.result for job in together] == [job.result for job in alone]


async def test_work_without_room_beside_others_is_done_again_alone(
    jobs: Jobs, working: Callable[..., Work], clock: Clock
) -> None:
    asked = threading.Event()
    company: list[int] = []

    def large(job: Job) -> int:
        company.append(len(job.turns.begun()))
        if len(company) == 1:
            raise OutOfRoom("no room")
        return 1

    other = jobs.submit("other", "a", 1, working("other", 20, gate=asked))
    second = jobs.submit("large", "b", 2, large)
    asked.set()
    await ended(jobs, second, other)
    assert company == [2, 1]


async def test_work_without_room_that_is_alone_fails(jobs: Jobs) -> None:
    def large(job: Job) -> None:
        raise OutOfRoom("no room")

    job = jobs.submit("large", "a", 1, large)
    await jobs.wait(job, 10)
    assert (job.state, job.error and job.error.message) == ("failed", "no room")


async def test_a_job_that_waits_for_its_turn_is_cancelled_before_others_go_on(
    jobs: Jobs, clock: Clock, history: list[str]
) -> None:
    both = threading.Event()
    told = threading.Event()

    def first(job: Job) -> None:
        while True:
            clock.now += 10
            both.wait(10)
            job(0, None, "")

    def second(job: Job) -> None:
        both.set()
        clock.now += 100
        jobs.cancel(one)
        job(0, None, "")
        history.append(one.state)
        told.set()

    one = jobs.submit("first", "a", 1, first)
    two = jobs.submit("second", "b", 2, second)
    both.set()
    await ended(jobs, two)
    assert history == ["cancelled"]


async def test_progress_never_falls_and_what_waits_is_told(jobs: Jobs, clock: Clock) -> None:
    shares: list[float] = []

    def work(job: Job) -> None:
        # A phase after the other, the second of them in unequal stages of its own.
        for done, total in ((5, 10), (10, 10), (0, 7), (3, None)):
            job(done, total, "")
            shares.append(job.fraction or 0.0)
        for place in range(2):
            part = stage(job, place, place + 1, 2, "part")
            for done, total in ((1, 2), (2, 2), (0, 5), (5, 5)):
                part(done, total)
                shares.append(job.fraction or 0.0)

    job = jobs.submit("w", "a", 1, work)
    await ended(jobs, job)
    assert shares == sorted(shares)
    assert shares[:4] == pytest.approx([0.45, 0.9, 0.9, 0.9])
    assert shares[-1] < 1.0
    assert job.fraction == 1.0


async def test_the_outlook_counts_what_others_take(jobs: Jobs, clock: Clock) -> None:
    ready, go = threading.Barrier(2, timeout=10), threading.Event()

    def half_done(job: Job) -> None:
        clock.now += 10
        job(1, 2, "")
        ready.wait()
        assert go.wait(10)

    job = jobs.submit("w", "a", 1, half_done)
    await asyncio.to_thread(ready.wait)
    alone = jobs.outlook(job)
    assert (alone.sharing, alone.ends_in) == (0, pytest.approx(10))
    assert job.left_between == pytest.approx((10, 10))
    # An estimate that says otherwise makes it a range.
    job.estimate = cost(10**6, 40)
    assert job.left_between == pytest.approx((10, 30))
    assert jobs.outlook(job).ends_in == pytest.approx(20)
    job.estimate = None
    waiting = jobs.submit("w", "b", 2, lambda job: None, estimate=cost(10**6, 40))
    assert jobs.outlook(waiting).queued_before == 1
    assert jobs.outlook(waiting).starts_in == pytest.approx(10)
    go.set()
    await ended(jobs, job, waiting)


async def test_the_working_time_of_a_job_leaves_out_the_turns_of_others(jobs: Jobs, clock: Clock) -> None:
    gate = threading.Event()

    def first(job: Job) -> float:
        assert gate.wait(10)
        before = working_time()
        clock.now += 10
        job(0, None, "")
        return before - working_time()

    def second(job: Job) -> None:
        clock.now += 500

    one, two = jobs.submit("one", "a", 1, first), jobs.submit("two", "b", 2, second)
    gate.set()
    await ended(jobs, one, two)
    assert one.result > 400  # by its own clock, the other's 500 seconds did not pass


class Simulated:
    """Tickets on `Shares`, without threads: each batch of the one that works takes so many seconds."""

    def __init__(self, scopes: list[str]) -> None:
        self.shares = Shares()
        self.tickets = [Ticket(str(number), scope, False, lambda: None) for number, scope in enumerate(scopes)]
        for ticket in self.tickets:
            self.shares.enter(ticket)
        self.working = self.tickets[0]

    def batch(self, seconds: float) -> None:
        self.working.seconds += seconds
        self.shares.charge(self.working, seconds)
        waiting = [ticket for ticket in self.tickets if ticket is not self.working]
        self.working = self.shares.instead_of(self.working, waiting) or self.working

    def used(self, scope: str) -> float:
        return sum(ticket.seconds for ticket in self.tickets if ticket.scope == scope)


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=8), st.lists(st.floats(0.01, 3), min_size=300, max_size=300)
)
def test_shares_differ_by_a_slice_and_a_batch_at_most(scopes: list[str], batches: list[float]) -> None:
    simulated = Simulated(scopes)
    for seconds in batches:
        simulated.batch(seconds)
    callers = [simulated.used(scope) for scope in set(scopes)]
    assert max(callers) - min(callers) <= 2 * (SLICE + 3)
    for scope in set(scopes):
        own = [ticket.seconds for ticket in simulated.tickets if ticket.scope == scope]
        assert max(own) - min(own) <= 2 * (SLICE + 3)


@given(st.floats(0, 1e5), st.integers(1, 50))
def test_staying_away_saves_up_a_head_start_and_no_more(alone: float, visits: int) -> None:
    shares = Shares()
    resident = Ticket("r", "resident", False, lambda: None)
    shares.enter(resident)
    shares.charge(resident, alone)
    gained = 0.0
    for visit in range(visits):
        guest = Ticket(str(visit), "guest", False, lambda: None)
        shares.enter(guest)
        while shares.instead_of(guest, [resident]) is None:
            shares.charge(guest, 0.5)
            gained += 0.5
        shares.leave(guest)
    assert gained <= HEAD_START + SLICE + 0.5 * visits + 0.5
