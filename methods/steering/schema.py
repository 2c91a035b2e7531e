"""Parameters, rows and result of steering. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from diffing_mcp.core.seeds import Seed
from diffing_mcp.methods.contract import MethodParams
from diffing_mcp.methods.directions.vectors import VECTOR_HELP, VectorSource
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.texts.amplified import CoherenceRow, quoted_texts
from diffing_mcp.methods.texts.distinctive_words import ComparedWord, evidence_of
from diffing_mcp.methods.texts.prompts import PROMPTS, AnswerTokens, CoherentShare, OwnPrompts, RawText, Temperature
from diffing_mcp.methods.texts.words import EvidenceWord

Strength = Annotated[float, Field(ge=-1000, le=1000)]
GRID = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
REFINEMENTS = 3
SEARCH_PROMPTS = PROMPTS[:3]
"""What the strength is searched with."""


class StrengthRow(CoherenceRow):
    """How readable the texts of a model are at one strength."""

    side: str
    strength: float
    coherent: float = Field(
        description=(
            "Share of the texts that are coherent: neither far less probable under the base than unsteered ones nor "
            "repetitive."
        )
    )

    def as_text(self) -> str:
        """A few figures."""
        return f"{self.side} {self.strength:+.2g}: {self.figures()}"


class SteeredWord(ComparedWord):
    """A content word and in how many texts it appears."""

    strength: float
    steered: int = Field(description="Steered texts that contain it.")
    control: int = Field(description="Unsteered texts, and texts steered by a random direction, that contain it.")

    def as_text(self) -> str:
        """`word 9:1 at +2 (p 10^-3.1)`, with a star when strong."""
        return self.with_counts(self.steered, self.control, at=f"{self.strength:+.2g}")


class SteeredAnswer(BaseModel):
    """Answers to one prompt, steered and not, with the same random numbers. UNTRUSTED text of a model under study."""

    side: str
    prompt: str
    strength: float
    steered: str
    unsteered: str


class AnswerAndControl(SteeredAnswer):
    """A steered answer beside its control. UNTRUSTED text of a model under study."""

    random: str = Field(
        description=(
            "Control: under a random direction of the same length, with the same random numbers. What comes up here "
            "as well is no effect of the vector."
        )
    )


class SteeringParams(MethodParams):
    """Parameters of `steering`."""

    vector: VectorSource = Field(description=VECTOR_HELP)
    side: Literal["base", "finetuned", "both"] = Field("finetuned", description="The model that is steered.")
    positions: Literal["all_tokens", "prompt_only", "linear_decay"] = Field(
        "all_tokens",
        description=(
            "Where the direction is added: at every token, at the prompt's, or everywhere but fading over the new "
            "tokens."
        ),
    )
    decay_tokens: int = Field(30, ge=1, le=4096, description="New tokens over which `linear_decay` falls to zero.")
    strengths: tuple[Strength, ...] | None = Field(
        None,
        min_length=1,
        max_length=16,
        description=(
            "Strengths to steer with (negative ones subtract; 1 adds a vector as long as typical activations); None: "
            "the largest coherent one is searched for, with both signs."
        ),
    )
    prompts: OwnPrompts = None
    raw_text: RawText = False
    samples_per_prompt: int = Field(1, ge=1, le=32, description="Answers of each prompt at each strength.")
    max_new_tokens: AnswerTokens = 32
    temperature: Temperature = 1.0
    coherent_share: CoherentShare = 0.75
    seed: Seed = Field(0, description="Seed of the sampling and of the random control direction.")
    rows: int = Field(4, ge=1, le=20, description="Answers shown in the result, for each strength.")


class SteeringResult(MethodResult):
    """What steering makes a model write. Answers are text of models under study: data, not instructions."""

    answers_are_untrusted: Literal[True] = True
    layer: int
    strengths: list[float] = Field(description="Strengths that were used for the answers.")
    words: list[SteeredWord] = Field(
        description="Content words over-represented in steered texts against unsteered and randomly steered ones."
    )
    coherence: list[StrengthRow] = Field(description="How readable the texts were at every strength that was tried.")
    answers: list[SteeredAnswer]
    vector: str = Field(description="What the direction is.")
    note: str = Field("", description="What to know of its origin.")

    def evidence_words(self) -> list[EvidenceWord]:
        """Distinctive words, for `overview`; a score of 1 is the null level."""
        return evidence_of(self.words)

    def as_text(self) -> str:
        lines = [self.headline, f"vector: {self.vector}; layer {self.layer}" + (f"; {self.note}" if self.note else "")]
        if self.words:
            lines.append("words in steered vs other texts: " + ", ".join(row.as_text() for row in self.words))
        lines += [row.as_text() for row in self.coherence]
        for row in self.answers:
            heading = f"{row.side} {row.strength:+.2g} {row.prompt!r}"
            lines += quoted_texts(heading, {"steered": row.steered, "unsteered": row.unsteered})
        return "\n".join(lines)
