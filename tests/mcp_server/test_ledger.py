"""Budgets: never negative, reserved before, committed or refunded once, safe across threads, processes and crashes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.mcp_server.database import database_path, transaction
from diffing_mcp.mcp_server.ledger import Budget, BudgetExhausted, Ledger, LostWork


def new_row(identifier: str, interactions: int, tool_calls: int, path: Path | None = None) -> str:
    with transaction(path) as connection:
        connection.execute(
            "INSERT INTO investigations VALUES (?, ?, 'x', 'a::b', '[\"method\"]', ?, ?, '', 0, NULL, NULL)",
            (identifier, f"pair-{identifier}", interactions, tool_calls),
        )
    return identifier


@pytest.fixture
def ledger(data_folder: Path) -> Iterator[Ledger]:
    ledger = Ledger()
    yield ledger
    ledger.close()


def test_reserve_commit_refund(ledger: Ledger) -> None:
    name = new_row("a", 10, 5)
    first, second = ledger.reserve(name, "interactions", 6), ledger.reserve(name, "interactions", 4)
    assert ledger.state(name).interactions_left == 0
    with pytest.raises(BudgetExhausted, match="costs 1 model interactions and 0 are left"):
        ledger.reserve(name, "interactions", 1)
    ledger.commit(first)
    ledger.refund(second)
    assert ledger.state(name).interactions_left == 4
    assert ledger.state(name).tool_calls_left == 5


def test_settling_twice_changes_nothing(ledger: Ledger) -> None:
    name = new_row("a", 10, 5)
    reservation = ledger.reserve(name, "interactions", 6)
    ledger.commit(reservation)
    ledger.refund(reservation)
    ledger.settle(reservation, False)
    assert ledger.state(name).interactions_left == 4
    refunded = ledger.reserve(name, "interactions", 3)
    ledger.refund(refunded)
    ledger.commit(refunded)
    assert ledger.state(name).interactions_left == 4


def test_bad_amounts_and_names(ledger: Ledger) -> None:
    name = new_row("a", 10, 5)
    with pytest.raises(InvalidInput):
        ledger.reserve(name, "interactions", -1)
    with pytest.raises(UnknownName):
        ledger.reserve("nobody", "interactions", 1)
    with pytest.raises(UnknownName):
        ledger.state("nobody")
    assert ledger.state(name).interactions_left == 10


class LedgerMachine(RuleBasedStateMachine):
    """Any order of operations on two ledgers of one database agrees with plain arithmetic."""

    folder: Path

    @initialize(interactions=st.integers(0, 30), tool_calls=st.integers(0, 30))
    def start(self, interactions: int, tool_calls: int) -> None:
        import tempfile

        self.temporary = tempfile.TemporaryDirectory()
        path = Path(self.temporary.name) / "investigations.sqlite"
        self.ledgers = [Ledger(path), Ledger(path)]
        self.name = new_row("x", interactions, tool_calls, path)
        self.left = {"interactions": interactions, "tool_calls": tool_calls}
        self.open: list[tuple[str, Budget, int]] = []

    @rule(which=st.integers(0, 1), budget=st.sampled_from(["interactions", "tool_calls"]), amount=st.integers(0, 12))
    def reserve(self, which: int, budget: Budget, amount: int) -> None:
        if amount > self.left[budget]:
            with pytest.raises(BudgetExhausted):
                self.ledgers[which].reserve(self.name, budget, amount)
        else:
            self.open.append((self.ledgers[which].reserve(self.name, budget, amount), budget, amount))
            self.left[budget] -= amount

    @rule(which=st.integers(0, 1), place=st.integers(0, 50), completed=st.booleans())
    def settle(self, which: int, place: int, completed: bool) -> None:
        if self.open:
            reservation, budget, amount = self.open.pop(place % len(self.open))
            self.ledgers[which].settle(reservation, completed)
            if not completed:
                self.left[budget] += amount

    @rule(which=st.integers(0, 1))
    def recover_finds_nothing_while_owners_live(self, which: int) -> None:
        assert self.ledgers[which].recover() == 0

    @invariant()
    def state_agrees(self) -> None:
        state = self.ledgers[0].state(self.name)
        assert state.interactions_left == self.left["interactions"] >= 0
        assert state.tool_calls_left == self.left["tool_calls"] >= 0

    def teardown(self) -> None:
        if hasattr(self, "ledgers"):
            for ledger in self.ledgers:
                ledger.close()
            self.temporary.cleanup()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=15, stateful_step_count=15)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(total=st.integers(0, 20), amounts=st.lists(st.integers(1, 6), min_size=6, max_size=12))
def test_concurrent_reservations_never_overdraw(
    tmp_path_factory: pytest.TempPathFactory, total: int, amounts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "investigations.sqlite"
    ledger = Ledger(path)
    name = new_row("x", total, 0, path)
    granted: list[int] = []

    def take(amount: int) -> None:
        try:
            reservation = ledger.reserve(name, "interactions", amount)
        except BudgetExhausted:
            return
        granted.append(amount)
        if amount % 2:
            ledger.refund(reservation)
            granted.append(-amount)
        else:
            ledger.commit(reservation)

    threads = [threading.Thread(target=take, args=(amount,)) for amount in amounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = ledger.state(name).interactions_left
    assert left >= 0
    assert left == total - sum(granted)
    ledger.close()


PROCESS = """
import sys, os
from pathlib import Path
from diffing_mcp.mcp_server.ledger import Ledger, BudgetExhausted
ledger = Ledger(Path(sys.argv[1]))
kept = 0
for _ in range(40):
    try:
        reservation = ledger.reserve("x", "interactions", 1)
    except BudgetExhausted:
        break
    ledger.commit(reservation)
    kept += 1
print(kept, flush=True)
if sys.argv[2] == "die":
    ledger.reserve("x", "tool_calls", 3)
    print("reserved", flush=True)
    os.kill(os.getpid(), 9)
"""


def test_processes_share_one_budget(data_folder: Path) -> None:
    ledger = Ledger()
    new_row("x", 50, 0)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(database_path()), "live"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path.cwd(),
        )
        for _ in range(3)
    ]
    spent = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(spent) == 50
    assert ledger.state("x").interactions_left == 0
    ledger.close()


def test_what_a_killed_process_had_reserved_comes_back_and_what_it_spent_does_not(data_folder: Path) -> None:
    ledger = Ledger()
    new_row("x", 5, 10)
    process = subprocess.run(
        [sys.executable, "-c", PROCESS, str(database_path()), "die"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "reserved" in process.stdout
    assert ledger.state("x").tool_calls_left == 7
    assert ledger.recover() == 1
    assert ledger.state("x").tool_calls_left == 10
    assert ledger.state("x").interactions_left == 0
    ledger.close()


def test_what_was_lost_with_a_process_is_told_once(data_folder: Path) -> None:
    lost, ledger = Ledger(), Ledger()
    new_row("x", 5, 10)
    lost.reserve("x", "interactions", 2, "ask_models")
    lost.reserve("x", "interactions", 0, "overview")
    done = lost.reserve("x", "interactions", 1, "compare_text")
    lost.commit(done)
    assert ledger.lost_work("x") == []
    lost.close()
    assert ledger.recover() == 2
    assert ledger.state("x").interactions_left == 4
    assert ledger.lost_work("x") == [LostWork("ask_models", 2), LostWork("overview", 0)]
    assert ledger.lost_work("x") == []
    ledger.close()
