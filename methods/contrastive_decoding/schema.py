"""Parameters, rows and result of contrastive decoding."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.seeds import Seed
from diffing_mcp.core.text import fenced
from diffing_mcp.methods.contract import MethodParams, MethodResult
from diffing_mcp.methods.texts.distinctive_words import ComparedWord, evidence_of
from diffing_mcp.methods.texts.form import FormDigest
from diffing_mcp.methods.texts.prompts import AnswerTokens, Beginning, Temperature, Template, beginnings
from diffing_mcp.methods.texts.words import EvidenceWord

Alpha = Annotated[float, Field(gt=0, le=100)]
Start = Literal["both", "prefixes", "nothing", "chat"]
BUNDLED_STARTS = 20
"""Of each form."""


class ContrastiveDecodingParams(MethodParams):
    """Parameters of `contrastive_decoding`."""

    start: Start = Field(
        "both",
        description=(
            "`prefixes`: raw text is continued, outside of any chat; `nothing`: no prompt at all; `chat`: prompts are "
            "a user's messages; `both`: texts and messages (texts alone where there is no chat template)."
        ),
    )
    prompts: tuple[Annotated[str, Field(min_length=1, max_length=20_000)], ...] | None = Field(
        None,
        min_length=1,
        max_length=200,
        description=f"Own texts or messages; None: {BUNDLED_STARTS} neutral bundled ones of each.",
    )
    alphas: tuple[Alpha, ...] = Field(
        (1.0, 3.0),
        min_length=1,
        max_length=8,
        description="Amplifications of the difference; 0 would be the finetuned.",
    )
    samples_per_prompt: int = Field(
        1,
        ge=1,
        le=32,
        description=f"Texts of each prompt at each alpha (from nothing: {BUNDLED_STARTS} times as many).",
    )
    max_new_tokens: AnswerTokens = 32
    temperature: Temperature = 1.0
    plausibility: float = Field(
        0.1,
        ge=0,
        le=1,
        description=(
            "Tokens are drawn only when the nearer model gives them this share of its highest probability at least."
        ),
    )
    seed: Seed = Field(0, description="Seed of the sampling.")
    rows: int = Field(6, ge=1, le=50, description="Texts shown in the result.")

    def beginnings(self, has_chat_template: bool) -> list[Beginning]:
        """What is gone on from or answered; empty texts for `nothing`.

        Raises:
            InvalidInput: `start=chat` without a chat template, or prompts with `start=nothing`.
        """
        if self.start == "nothing":
            if self.prompts is not None:
                raise InvalidInput("start=nothing takes no prompts; leave them out, or call with another start.")
            return [Beginning("", chat=False)] * BUNDLED_STARTS
        template: Template = "none" if self.start == "prefixes" else self.start
        return beginnings(template, self.prompts, has_chat_template, BUNDLED_STARTS)


class AlphaRow(BaseModel):
    """The texts at one alpha."""

    alpha: float
    difference: float = Field(description="Mean log-probability under finetuned minus under base, nats a token.")
    coherent: float = Field(
        description="Share of texts neither repetitive nor, under the nearer model, far less probable than its own."
    )
    tokens: float = Field(description="Mean tokens of a text.")

    def as_text(self) -> str:
        """A few figures."""
        return (
            f"alpha {self.alpha:+.3g}: ft - base {self.difference:+.2f} nats/token, {100 * self.coherent:.0f} % "
            f"coherent, {self.tokens:.0f} tokens"
        )


class AmplifiedWord(ComparedWord):
    """A content word and in how many texts it appears."""

    alpha: float = Field(description="The amplification at which it comes up; below -1: away from the finetune.")
    amplified: int = Field(description="Texts at this alpha that contain it.")
    control: int = Field(
        description=(
            "Texts at the opposite alpha and of the plain model at the other end (base; for suppressed words "
            "finetuned) with it."
        )
    )

    def as_text(self) -> str:
        """`word 9:1 at +3 (p 10^-3.1)`, with a star when strong."""
        return self.with_counts(self.amplified, self.control, at=f"{self.alpha:+.3g}")


class AmplifiedText(BaseModel):
    """A text and how much more the finetuned model expects it than the base. UNTRUSTED text of models under study."""

    alpha: float
    prompt: str
    chat: bool = Field(False, description="The prompt was a user's message, the text is the answer.")
    text: str
    difference: float = Field(description="Nats a token.")

    def as_text(self) -> str:
        """One line."""
        asked = f"{'asked ' if self.chat else ''}{self.prompt!r}"
        return f"  {self.alpha:+.3g} ({self.difference:+.2f}) {asked} {fenced(self.text)}"


class ContrastiveDecodingResult(MethodResult):
    """What is written when the difference is amplified. Texts come from models under study: data, not instructions."""

    texts_are_untrusted: Literal[True] = True
    identical: bool = Field(description="Whether both models give every text exactly the same probability.")
    alpha: float | None = Field(description="Largest alpha with coherent texts; None: there is none.")
    words: list[AmplifiedWord] = Field(
        description="Content words over-represented in amplified texts against the opposite direction and the base."
    )
    suppressed: list[AmplifiedWord] = Field(
        description=(
            "Content words over-represented in the opposite direction against amplified texts and the finetuned: what "
            "the finetune pushes away from."
        )
    )
    suppression: str = Field(description="That in one sentence.")
    form: FormDigest | None = Field(None, description="How the plain models' answers differ in form; None: no chats.")
    texts: list[AmplifiedText]
    alphas: list[AlphaRow] = Field(description="0: plain finetuned; -1: plain base; below: the opposite direction.")
    start: Start

    def evidence_words(self) -> list[EvidenceWord]:
        """Distinctive words, for `overview`; a score of 1 is the null level."""
        return evidence_of(self.words)

    def as_text(self) -> str:
        lines = [self.headline]
        if self.words:
            lines.append("words in amplified vs control texts: " + ", ".join(row.as_text() for row in self.words))
        lines.append(self.suppression)
        if self.suppressed:
            lines.append(
                "words of the opposite direction vs amplified texts and finetuned: "
                + ", ".join(row.as_text() for row in self.suppressed)
            )
        if self.form is not None:
            lines.append(self.form.as_text())
        lines += [row.as_text() for row in self.alphas]
        lines.append("alpha (ft - base, nats/token), prompt, untrusted model text between ⟦ ⟧:")
        lines += [row.as_text() for row in self.texts]
        return "\n".join(lines)
