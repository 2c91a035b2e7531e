"""What a suite will cost before it runs, what it has cost so far, and the cap on it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from pydantic import BaseModel, Field

from diffing_mcp.agents.arms import CHEAT
from diffing_mcp.agents.cells import BASELINE, cells_of
from diffing_mcp.agents.records import (
    EvaluationFolder,
    EvaluationPlan,
    EvaluationRecord,
    TokenUsage,
    list_evaluations,
)
from diffing_mcp.agents.suite_files import Price, SuiteFile
from diffing_mcp.core.errors import DiffingError


class CapReached(DiffingError):
    """The suite has spent what it may. The message says what to change."""

    code = "cap_reached"


class Spent(BaseModel):
    """Tokens of language models, money and wall-clock time."""

    tokens: int = 0
    money: float | None = Field(0.0, description="None: tokens of a model without a price are among them.")
    hours: float = 0.0
    unpriced: frozenset[str] = Field(frozenset(), description="Those models.")

    def __add__(self, other: Spent) -> Spent:
        money = None if self.money is None or other.money is None else self.money + other.money
        return Spent(
            tokens=self.tokens + other.tokens,
            money=money,
            hours=self.hours + other.hours,
            unpriced=self.unpriced | other.unpriced,
        )

    def as_text(self, currency: str) -> str:
        """In words."""
        money = "money unknown (no price)" if self.money is None else f"{self.money:.2f} {currency}"
        return f"{self.tokens:,} tokens, {money}, {self.hours:.2f} h"


class CostEstimate(BaseModel):
    """What is left to run of a suite, by what equal investigations have cost before."""

    cells: int = Field(description="Investigations that are not finished.")
    spent: Spent
    measured: int = Field(description="Investigations among `cells` whose cost rests on finished ones like them.")
    bounded: int = Field(
        description="LLM investigations that none like them has been finished of: counted at their limits."
    )

    def as_text(self, currency: str) -> str:
        """In words."""
        known = self.measured + self.bounded > 0
        lines = [f"{self.cells} investigations to run{f': about {self.spent.as_text(currency)}' if known else ''}."]
        if self.bounded:
            lines.append(f"{self.bounded} of them were never run before and are counted at their limits.")
        if unknown := self.cells - self.measured - self.bounded:
            lines.append(f"{unknown} investigations by programs have not been timed yet; they cost no tokens.")
        return " ".join(lines)


def cost_of(record: EvaluationRecord, prices: dict[str, Price]) -> Spent:
    """What one investigation has cost, its grading with it."""
    return _spent([*record.usage, *record.grading_usage], record.seconds, prices)


def spent_on(records: Sequence[EvaluationRecord], prices: dict[str, Price]) -> Spent:
    """What these investigations have cost, with all attempts that failed."""
    former = (_spent(record.former_usage, record.former_seconds, prices) for record in records)
    return sum((*(cost_of(record, prices) for record in records), *former), Spent())


def _spent(used: Sequence[TokenUsage], seconds: float, prices: dict[str, Price]) -> Spent:
    priced = [(usage, prices.get(usage.model)) for usage in used]
    money = [price.of(usage) for usage, price in priced if price is not None]
    return Spent(
        tokens=sum(usage.total_tokens for usage in used),
        money=sum(money) if len(money) == len(priced) else None,
        hours=seconds / 3600,
        unpriced=frozenset(usage.model for usage, price in priced if price is None),
    )


def estimate(suite: SuiteFile, plans: Sequence[EvaluationPlan]) -> CostEstimate:
    """What the unfinished cells of these plans will cost: the mean of finished investigations of the same investigator,
    arm and limits, in this or any other stored evaluation, if there are any those with the same budget of interactions,
    and of those the first of their pair (methods run) or the later ones (their runs are stored); without one, an LLM
    investigation is counted at its limits.
    """
    finished = [
        (plan.settings, record)
        for plan in list_evaluations()
        for record in EvaluationFolder(plan.id).records()
        if record.status == "completed"
    ]
    total, cells, measured, bounded = Spent(), 0, 0, 0
    for plan in plans:
        folder = EvaluationFolder(plan.id)
        for cell in cells_of(plan):
            known = folder.get(cell.id, cell.organism)
            if known is not None and known.status == "completed":
                continue
            cells += 1
            wanted = (plan.settings, plan.investigator, cell.arm)
            alike = [each for settings, each in finished if (settings, each.investigator, each.arm) == wanted]
            alike = [each for each in alike if _interactions(each) == plan.interactions] or alike
            alike = [each for each in alike if (each.repeat == 0) == (cell.repeat == 0)] or alike
            if alike:
                measured += 1
                total += _mean([cost_of(each, suite.prices) for each in alike])
            elif plan.investigator != BASELINE and cell.arm != CHEAT:
                bounded += 1
                total += _at_the_limits(suite, plan.investigator)
    return CostEstimate(cells=cells, spent=total, measured=measured, bounded=bounded)


def _interactions(record: EvaluationRecord) -> int | None:
    budget = record.budgets.get("model_interactions")
    return None if budget is None else budget.limit


def check_cap(suite: SuiteFile, spent: Spent) -> None:
    """Refuse to go on once the cap is reached.

    Raises:
        CapReached: with what was spent and what to change; also where there is a cap on money and nobody can say what
            was spent.
    """
    cap = suite.cap
    if cap.money is not None and spent.money is None:
        raise CapReached(
            f"The suite caps money, and what {', '.join(sorted(spent.unpriced))} took has no price: give one under "
            "`prices` in the suite's file and call again. Finished investigations are kept."
        )
    reached = [
        name
        for name, used, allowed in (
            ("tokens", spent.tokens, cap.tokens),
            ("money", spent.money, cap.money),
            ("hours", spent.hours, cap.hours),
        )
        if allowed is not None and used is not None and used >= allowed
    ]
    if reached:
        raise CapReached(
            f"The suite's cap on {' and '.join(reached)} is reached: {spent.as_text(suite.currency)} spent. Finished "
            "investigations are kept; raise `cap` in the suite's file and call again for the others."
        )


def _mean(costs: Sequence[Spent]) -> Spent:
    priced = [cost.money for cost in costs if cost.money is not None]
    return Spent(
        tokens=round(mean(cost.tokens for cost in costs)),
        money=mean(priced) if len(priced) == len(costs) else None,
        hours=mean(cost.hours for cost in costs),
    )


def _at_the_limits(suite: SuiteFile, model: str) -> Spent:
    """Nearly all tokens of an agent are input: its growing transcript is read again at every step."""
    price = suite.prices.get(model)
    tokens = suite.limits.token_limit
    return Spent(
        tokens=tokens,
        money=None if price is None else tokens * max(price.input, price.output) / 1e6,
        hours=suite.limits.time_limit / 3600,
    )
