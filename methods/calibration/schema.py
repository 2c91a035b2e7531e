"""What a calibration holds and what it says of a run. Torch-free."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.calibration.levels import needed_p

Role = Literal["null", "taught"]
THIS_BASE = "this base"
STATISTICS_VERSION = 2
"""Readings with other statistics than those of this version do not compare: they are read again from stored runs."""


class Reading(BaseModel):
    """One finetune of known content: how large its change is and what each method's statistic gave."""

    name: str
    made_by: str = Field(description="Its recipe's name, and digits made of what decides the outcome.")
    role: Role
    kind: str = Field(description="How it was made, or what it was taught.")
    dilution: int = Field(0, description="Untouched documents to one taught.")
    held_out: bool = False
    size: float = Field(gt=0, description="Mean KL(finetuned || base) on unrelated text, nats a token.")
    statistics: dict[str, float] = Field(description="By method and text, some methods with several.")
    stands_out: dict[str, bool] = Field(
        default_factory=dict, description="The own verdicts of each method on each text, uncalibrated."
    )
    left_out: list[str] = Field(default_factory=list, description="Methods that could not be run on it.")
    seconds: dict[str, float] = Field(default_factory=dict, description="Time each took.")


class Calibration(BaseModel):
    """What methods measure of finetunes of one base."""

    base: dict[str, Any] = Field(description="Identity of the base model by content.")
    base_name: str
    statistics_version: int = Field(1, description="Readings with other statistics do not compare.")
    params: dict[str, dict[str, Any]] = Field(description="Parameters of each method on each text.")
    versions: dict[str, int] = Field(description="Version of each; results of other versions do not compare.")
    made: datetime
    readings: list[Reading]
    passed_over: dict[str, str] = Field(
        default_factory=dict,
        description="`made_by` -> why there is no reading: it cannot be made of this base, or differs in nothing.",
    )


FEW = 0.15
"""A p up to here is no finding and not nothing either: two or three nulls of twenty show as much."""


MOST_SHOW_MORE = 0.5


def standing(stands_out: bool, p: float | None) -> str:
    """How a method's outcome stands to nulls, in three words."""
    if stands_out:
        return "STANDS OUT"
    return "few nulls show as much" if p is not None and p <= FEW else "nothing beyond nulls"


class LevelRow(BaseModel):
    """How sure one method's finding is."""

    method: str = Field(description="With its text, where that is not the default.")
    run: str | None = Field(description="Id of the run; None: all of them taken together.")
    statistic: float | None = Field(description="What is judged; None: several together.")
    unit: str
    deviations: float = Field(description="Above what nulls of this size of change show, in their standard deviations.")
    furthest: float | None = Field(None, description="Deviations of the null that lies furthest out.")
    p: float = Field(description="Share of finetunes that taught nothing which show as much; at least 1 / (nulls + 1).")
    probability: float | None = Field(
        None,
        description=(
            "That something was taught, if that was as likely as not before looking; None: too few taught finetunes "
            "were measured."
        ),
    )
    nulls: int = Field(description="Null finetunes that it rests on.")
    trained: int = Field(0, description="Those of them that were trained; the others are edits of weights.")
    level_from: str = Field(description=f"`{THIS_BASE}`, or the base whose nulls were used.")
    remarks: list[str] = Field(default_factory=list, description="Why the level may not hold.")

    @property
    def beyond(self) -> bool:
        """Whether this counts as a finding: at most one in twenty of the finetunes that taught nothing shows as much,
        or fewer than one of all where there are not so many."""
        return self.p <= needed_p(self.nulls) + 1e-4

    @property
    def of_this_base(self) -> bool:
        """Whether the nulls are of the same base model."""
        return self.level_from == THIS_BASE

    def sure(self) -> str:
        """`p 0.030 among 32 finetunes that taught nothing (12 trained), at this size of change (the least that they
        allow): 4.7 deviations out, the furthest of them 4.1; probability ...`.
        """
        # Most nulls show more and yet it is not 0: some of what is taught is seen by no method.
        unseen = " all the same, unseen by these methods" if self.p > MOST_SHOW_MORE else ""
        probability = (
            ""
            if self.probability is None
            else f"; probability {self.probability:.2f} that something was taught{unseen}"
        )
        remarks = "".join(f"; {remark}" for remark in self.remarks)
        least = " (the least that they allow)" if self.p * (self.nulls + 1) < 1.5 else ""
        far = (
            ""
            if self.furthest is None
            else f": {self.deviations:.1f} deviations out, the furthest of them {self.furthest:.1f}"
        )
        return (
            f"p {self.p:.3f} among {self.nulls} finetunes that taught nothing ({self.trained} trained), at this size "
            f"of change{least}{far}{probability}{remarks}"
        )

    def as_text(self) -> str:
        """One line."""
        of = "all methods as one test" if self.run is None else f"{self.method} [{self.run}]"
        return f"{of}: {self.sure()} (level from {self.level_from})"
