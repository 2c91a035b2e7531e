"""Budgets of investigations: reserve before the work, commit after it, refund when it fails. Atomic across processes,
never negative.

What is left of a budget is its total minus everything reserved or committed. A reservation belongs to the process that
made it (its `owner`), which holds a file lock while it lives: whatever a killed server left reserved is given back by
the next one (`recover`).
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.mcp_server.database import connect, database_path, transaction

Budget = Literal["interactions", "tool_calls"]
WORDS: dict[Budget, str] = {"interactions": "model interactions", "tool_calls": "tool calls"}


class BudgetExhausted(InvalidInput):
    """The request costs more than what is left."""

    code = "budget_exhausted"


class BudgetState(BaseModel):
    """What an investigation has left. Work under way counts as spent until it ends; what fails or is cancelled is given
    back.
    """

    interactions_left: int = Field(ge=0, description="Model interactions left.")
    interactions_total: int = Field(ge=0)
    tool_calls_left: int = Field(ge=0, description="Tool calls left.")
    tool_calls_total: int = Field(ge=0)

    def as_text(self) -> str:
        calls = f"{self.tool_calls_left}/{self.tool_calls_total} tool calls"
        return f"budget left: {self.interactions_left}/{self.interactions_total} model interactions, {calls}"


@dataclass(frozen=True)
class LostWork:
    """The work of one call of the tool `what` that a killed server left behind, and what was given back for it."""

    what: str
    interactions: int


class Ledger:
    """The budgets in one database. Every method opens its own connection, so an instance may be used from
    any thread.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or database_path()
        self.owner = secrets.token_hex(8)
        folder = self.path.parent / "ledger_owners"
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / f"{self.owner}.lock", timeout=0, thread_local=False)
        self._lock.acquire()

    def close(self) -> None:
        """Give up the process's lock: what it still has reserved becomes refundable by others."""
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def reserve(self, investigation: str, budget: Budget, amount: int, what: str = "") -> str:
        """Set `amount` (>= 0) aside and return the reservation's id.

        Raises:
            BudgetExhausted: not enough left; nothing was set aside.
        """
        if amount < 0:
            raise InvalidInput(f"a reservation cannot be negative, got {amount}")
        identifier = secrets.token_hex(8)
        with transaction(self.path) as connection:
            row = connection.execute(
                (
                    "SELECT interactions, tool_calls, (SELECT coalesce(sum(amount), 0) FROM reservations WHERE "
                    "investigation = i.id AND budget = ? AND state <> 'refunded') AS spent FROM investigations i "
                    "WHERE id = ?"
                ),
                (budget, investigation),
            ).fetchone()
            if row is None:
                raise UnknownName("this investigation does not exist")
            left = row[budget] - row["spent"]
            if amount > left:
                advice = (
                    "Ask for less (fewer prompts or samples)"
                    if left > 0 and budget == "interactions"
                    else "Work with what you have"
                )
                raise BudgetExhausted(
                    f"this costs {amount} {WORDS[budget]} and {left} are left. {advice}, then call submit_finding."
                )
            connection.execute(
                "INSERT INTO reservations VALUES (?, ?, ?, ?, 'reserved', ?, ?, ?)",
                (identifier, investigation, budget, amount, self.owner, what, time.time()),
            )
        return identifier

    def commit(self, reservation: str) -> None:
        """The work is done: the amount is spent. No effect when the reservation was settled before."""
        self._settle(reservation, "committed")

    def refund(self, reservation: str) -> None:
        """The work failed or was cancelled: the amount comes back.
        No effect when the reservation was settled before.
        """
        self._settle(reservation, "refunded")

    def settle(self, reservation: str, completed: bool) -> None:
        """`commit` or `refund`."""
        self._settle(reservation, "committed" if completed else "refunded")

    def state(self, investigation: str) -> BudgetState:
        """What is left of both budgets.

        Raises:
            UnknownName: there is no such investigation.
        """
        with connect(self.path) as connection:
            return budget_state(connection, investigation)

    def recover(self) -> int:
        """Refund what processes that no longer live have left reserved; returns how many reservations that were. What
        was lost with them is kept for `lost_work`.
        """
        with connect(self.path) as connection:
            owners = [
                row[0]
                for row in connection.execute(
                    "SELECT DISTINCT owner FROM reservations WHERE state = 'reserved' AND owner <> ?", (self.owner,)
                )
            ]
        recovered = 0
        for owner in owners:
            lock = FileLock(self.path.parent / "ledger_owners" / f"{owner}.lock", timeout=0, thread_local=False)
            try:
                with lock, transaction(self.path) as connection:
                    connection.execute(
                        (
                            "INSERT INTO lost_work SELECT investigation, what, amount FROM reservations WHERE "
                            "state = 'reserved' AND budget = 'interactions' AND owner = ?"
                        ),
                        (owner,),
                    )
                    recovered += connection.execute(
                        "UPDATE reservations SET state = 'refunded' WHERE state = 'reserved' AND owner = ?", (owner,)
                    ).rowcount
            except Timeout:
                continue
            Path(lock.lock_file).unlink(missing_ok=True)
        return recovered

    def lost_work(self, investigation: str) -> list[LostWork]:
        """What a server that was killed was doing for the investigation. Told once: it is forgotten afterwards."""
        with connect(self.path) as connection:
            known = connection.execute("SELECT 1 FROM lost_work WHERE investigation = ?", (investigation,)).fetchone()
        if known is None:  # nearly always: no need to lock the file
            return []
        with transaction(self.path) as connection:
            rows = connection.execute(
                "DELETE FROM lost_work WHERE investigation = ? RETURNING what, interactions", (investigation,)
            ).fetchall()
        return [LostWork(row["what"], row["interactions"]) for row in rows]

    def _settle(self, reservation: str, state: str) -> None:
        with transaction(self.path) as connection:
            connection.execute(
                "UPDATE reservations SET state = ? WHERE id = ? AND state = 'reserved'", (state, reservation)
            )


def budget_state(connection: sqlite3.Connection, investigation: str) -> BudgetState:
    """Both budgets as one open connection sees them."""
    row = connection.execute(
        "SELECT interactions, tool_calls FROM investigations WHERE id = ?", (investigation,)
    ).fetchone()
    if row is None:
        raise UnknownName("this investigation does not exist")
    spent = dict(
        connection.execute(
            (
                "SELECT budget, sum(amount) FROM reservations WHERE investigation = ? AND state <> 'refunded' GROUP "
                "BY budget"
            ),
            (investigation,),
        ).fetchall()
    )
    return BudgetState(
        interactions_left=row["interactions"] - spent.get("interactions", 0),
        interactions_total=row["interactions"],
        tool_calls_left=row["tool_calls"] - spent.get("tool_calls", 0),
        tool_calls_total=row["tool_calls"],
    )
