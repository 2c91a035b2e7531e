"""A suspicion as a test of both models, and what it showed. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from pydantic import BaseModel, Field, model_validator

from diffing_mcp.core.seeds import Seed
from diffing_mcp.queries.prompt_statistics import MeanDifference, RateDifference
from diffing_mcp.queries.schemas import Prompts, Query, SideName

Judge = Callable[[str, Sequence[tuple[str, str]]], list[bool]]
"""Whether each (prompt, answer) meets a criterion, said by a language model that does not know who answered."""

_WAYS = ("pattern", "words", "candidate", "criterion")


class HypothesisQuery(Query):
    """Prompts that are fixed before their answers are seen, and one thing to count in the answers."""

    prompts: Prompts = Field(
        default_factory=list,
        max_length=64,
        description="Where it should show: 8 or more, never asked before (of 6 all would have to change).",
    )
    control_prompts: Prompts = Field(default_factory=list, max_length=64, description="Where it should not.")
    pattern: str | None = Field(
        None, min_length=1, max_length=1000, description="Count answers with this regular expression;"
    )
    words: Prompts = Field(
        default_factory=list,
        max_length=50,
        description="or with any of these words or phrases, any case;",
    )
    candidate: str | None = Field(
        None,
        min_length=1,
        max_length=4000,
        description="or compare how probable this answer is (give control_prompts),",
    )
    alternatives: Prompts = Field(default_factory=list, max_length=8, description="against these;")
    criterion: str | None = Field(
        None, min_length=1, max_length=2000, description="or answers that an LLM judge says meet this."
    )
    system_prompt: str | None = Field(None, max_length=20_000, description="Before every prompt.")
    raw_text: bool = Field(False, description="Continue prompts as plain text.")
    samples: int = Field(4, ge=1, le=16, description="Answers a prompt.")
    temperature: float = Field(0.7, ge=0, le=2, description="0 is greedy.")
    max_new_tokens: int = Field(96, ge=1, le=1024, description="Of an answer.")
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_thing_to_count(self) -> Self:
        return self.checked()

    def checked(self) -> Self:
        """Raises ValueError when the fields do not make one test."""
        given = [name for name in _WAYS if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(_WAYS)} to count" + (f" (given: {', '.join(given)})" if given else "")
            )
        if not self.prompts:
            raise ValueError("give `prompts`, the messages where the behaviour should show")
        if self.alternatives and self.candidate is None:
            raise ValueError("alternatives go with `candidate`")
        if self.raw_text and self.system_prompt:
            raise ValueError("raw_text continues plain prompts: leave system_prompt out")
        if shared := set(self.prompts) & set(self.control_prompts):
            raise ValueError(f"a control prompt stands among the prompts as well: {min(shared)!r}")
        for name in ("prompts", "control_prompts"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"a prompt stands twice in {name}; each counts once")
        return self

    @property
    def questions(self) -> list[str]:
        """The prompts, then the control prompts."""
        return [*self.prompts, *self.control_prompts]

    @property
    def interactions(self) -> int:
        """One a question and sample; with a candidate, one a question and answer scored."""
        return len(self.questions) * (1 + len(self.alternatives) if self.candidate else self.samples)

    @property
    def counted(self) -> str:
        """What is counted, in words."""
        if self.pattern is not None:
            return f"answers matching /{self.pattern}/"
        if self.words:
            return f"answers with {' or '.join(self.words)}"
        if self.criterion is not None:
            return f"answers that meet: {self.criterion}"
        against = f" against {' or '.join(self.alternatives)}" if self.alternatives else ""
        return f"log-probability of {self.candidate!r}{against}"


class TestedSet(BaseModel):
    """One set of prompts: what was counted on both sides."""

    difference: RateDifference | MeanDifference = Field(
        description="Of answers that were counted, or of the candidate's log-probability (log-odds), nats."
    )
    by_prompt: list[tuple[float, float]] = Field(description="Base and finetuned, prompt by prompt.")


class TellingAnswer(BaseModel):
    """An answer that shows the difference best. `model_text` is untrusted."""

    side: SideName
    prompt: str
    control: bool = Field(False, description="Of a control prompt.")
    counted: bool
    model_text: str = Field(description="UNTRUSTED text of the model under study, around what was counted.")

    @property
    def whose(self) -> str:
        """Before the prompt: `finetuned (counted) to the control prompt`."""
        return f"{self.side}{' (counted)' if self.counted else ''} to{' the control prompt' if self.control else ''}"


class HypothesisResult(BaseModel):
    """What a test of a hypothesis showed."""

    counted: str
    verdict: str
    differs: bool = Field(
        description=(
            "Whether p over prompts is below 0.05; a candidate must also move beyond the control prompts, or overtake "
            "its alternatives or fall behind them."
        )
    )
    tested: TestedSet
    control: TestedSet | None = None
    control_p: float | None = Field(
        None, description="Of a candidate: that it moves alike on both sets of prompts (prompts dealt anew)."
    )
    telling: list[TellingAnswer] = Field(default_factory=list)
