"""What there is to say of a calibration in a few lines, and of the levels of several runs. Torch-free."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from diffing_mcp.methods.calibration.schema import Calibration, LevelRow


class CalibrationSummary(BaseModel):
    """A calibration without its readings."""

    base: str
    made: datetime
    methods: list[str]
    nulls: int = Field(description="Finetunes that taught nothing.")
    kinds: dict[str, int] = Field(description="How they were made -> how many.")
    taught: int = Field(description="Finetunes that were taught something, which give probabilities and powers.")
    smallest: float = Field(description="Smallest change among the nulls: mean KL on unrelated text, nats a token.")
    largest: float
    least_p: float = Field(description="No p-value can be smaller with so many nulls.")
    passed_over: dict[str, list[str]] = Field(
        default_factory=dict, description="Why finetunes give no reading on this base -> which."
    )

    def as_text(self) -> str:
        """A few lines."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        return (
            f"{self.base}: {self.nulls} finetunes that taught nothing ({kinds}), changes of {self.smallest:.2g} to "
            f"{self.largest:.2g} nats a token; least p {self.least_p:.3f}; {self.taught} taught finetunes\n"
            f"methods: {', '.join(self.methods)}"
            + "".join(f"\nnot measured: {', '.join(names)}: {why}" for why, names in self.passed_over.items())
        )


class Levels(BaseModel):
    """How sure the findings of several runs on one pair are."""

    rows: list[LevelRow] = Field(description="All methods as one test first.")

    def as_text(self) -> str:
        """A line each."""
        return "\n".join(row.as_text() for row in self.rows)


def summary(calibration: Calibration) -> CalibrationSummary:
    """The summary of a calibration; sizes are 0 where no null is measured yet."""
    nulls = [each for each in calibration.readings if each.role == "null"]
    return CalibrationSummary(
        base=calibration.base_name,
        made=calibration.made,
        methods=list(calibration.params),
        nulls=len(nulls),
        kinds={kind: sum(null.kind == kind for null in nulls) for kind in dict.fromkeys(null.kind for null in nulls)},
        taught=len(calibration.readings) - len(nulls),
        smallest=min((null.size for null in nulls), default=0.0),
        largest=max((null.size for null in nulls), default=0.0),
        least_p=round(1 / (len(nulls) + 1), 4),
        passed_over={
            why: [name for name, other in calibration.passed_over.items() if other == why]
            for why in dict.fromkeys(calibration.passed_over.values())
        },
    )
