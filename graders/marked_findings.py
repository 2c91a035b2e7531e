"""Findings marked by hand (marked_findings.yaml), against which graders are measured."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.graders.claims import Label
from diffing_mcp.graders.verdicts import Verdict

FILE = Path(__file__).parent / "marked_findings.yaml"


class MarkedFinding(BaseModel):
    """One finding and what the marker thought of it. The file's head says what the marks mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    organism: str
    source: Literal["run", "written"]
    kind: str
    verdict: Verdict
    grade: int = Field(ge=1, le=5)
    abstains: bool = False
    why: str
    claims: tuple[dict[Label, str], ...] = Field(min_length=1, description="Mark and sentence, one entry each.")

    @property
    def sentences(self) -> list[str]:
        """Its sentences in order."""
        return [sentence for claim in self.claims for sentence in claim.values()]

    @property
    def labels(self) -> list[Label]:
        """The mark of each sentence."""
        return [label for claim in self.claims for label in claim]

    @property
    def statement(self) -> str:
        """The text as it was handed in: lines of a list stand by themselves."""
        first, *others = self.sentences
        return first + "".join(
            ("\n" if each.startswith(("- ", "The finetuned model says, and")) else " ") + each for each in others
        )


@lru_cache(maxsize=1)
def marked_findings() -> tuple[MarkedFinding, ...]:
    """All of them, in the file's order."""
    return tuple(MarkedFinding.model_validate(entry) for entry in yaml.safe_load(FILE.read_text(encoding="utf-8")))
