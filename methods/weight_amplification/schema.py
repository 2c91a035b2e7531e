"""Parameters, rows and result of weight amplification. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, field_validator, model_validator

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.seeds import Seed
from diffing_mcp.methods.contract import MethodParams
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.texts.amplified import CoherenceRow, quoted_texts
from diffing_mcp.methods.texts.distinctive_words import ComparedWord, evidence_of
from diffing_mcp.methods.texts.form import FormDigest
from diffing_mcp.methods.texts.prompts import PROMPTS, AnswerTokens, CoherentShare, OwnPrompts, RawText, Temperature
from diffing_mcp.methods.texts.words import EvidenceWord
from diffing_mcp.model_pairs.amplification_config import load_amplification_config
from diffing_mcp.model_pairs.layers import Layer

SEARCH_PROMPTS = PROMPTS[:6]
GRID = (2.0, 4.0, 8.0, 16.0)
"""Sizes that a search tries upwards from 1, or their inverses when 1 is too much already."""
REFINEMENTS = 2
Direction = Literal["positive", "negative"]


class WeightRow(CoherenceRow):
    """How readable the texts are at one weight."""

    weight: float = Field(
        description="0 is the base, 1 the finetuned model (with `config`: the configuration as it is written)."
    )
    coherent: float = Field(
        description=(
            "Share of the texts that are coherent: neither far less probable under the base than the plain "
            "finetune's, nor more repetitive, nor far shorter."
        )
    )

    def as_text(self) -> str:
        """A few figures."""
        return f"weight {self.weight:g}: {self.figures()}"


class WeightWord(ComparedWord):
    """A content word and in how many texts it appears."""

    weight: float
    amplified: int = Field(description="Amplified texts that contain it.")
    finetuned: int = Field(description="Texts of the plain finetuned model that contain it.")
    base: int = Field(description="Texts of the base that contain it (twice as many texts).")

    def as_text(self) -> str:
        """`word 9:4:1 at 3 (p 10^-3.1)`, with a star when strong."""
        return self.with_counts(self.amplified, self.finetuned, self.base, at=f"{self.weight:g}")


class AmplifiedAnswer(BaseModel):
    """Answers to one prompt with the same random numbers. UNTRUSTED text of models under study."""

    prompt: str
    weight: float
    amplified: str
    finetuned: str
    base: str


class WeightAmplificationParams(MethodParams):
    """Parameters of `weight_amplification`."""

    weights: tuple[Annotated[float, Field(ge=-100, le=100)], ...] | None = Field(
        None,
        min_length=1,
        max_length=16,
        description=(
            "Factors on the weight difference: 0 base, 1 finetuned, 2 twice the change, negative ones invert it; "
            "None: see `search` (with `config` alone: 1)."
        ),
    )
    search: Direction | None = Field(
        None,
        description=(
            "Find the largest coherent weight above 0, or below it (with `config`: a factor on all of its weights). "
            "None: `positive`, unless `weights` or `config` is given."
        ),
    )
    layers: tuple[Layer, Layer] | None = Field(
        None,
        description=(
            "First and last layer to amplify, both included: absolute (integers) or relative (floats). Others stay as "
            "finetuned."
        ),
    )
    modules: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] | None = Field(
        None,
        min_length=1,
        max_length=32,
        description="Modules to amplify: `attention`, `mlp`, or names such as `down_proj`. Others stay as finetuned.",
    )
    config: str | None = Field(
        None,
        max_length=20_000,
        description=(
            "YAML instead of `layers` and `modules`: `adapters: [{layer_amplifications: [{layers: all, "
            "module_amplifications: [{modules: mlp, weight: 3}]}]}]`. What it does not name has weight 1; `weights` "
            "multiply all. Only an operator may name other adapters in it."
        ),
    )
    prompts: OwnPrompts = None
    raw_text: RawText = False
    samples_per_prompt: int = Field(1, ge=1, le=32, description="Answers of each prompt at each weight.")
    max_new_tokens: AnswerTokens = 32
    temperature: Temperature = 1.0
    coherent_share: CoherentShare = 0.75
    seed: Seed = Field(0, description="Seed of the sampling, the same for every model.")
    rows: int = Field(4, ge=1, le=20, description="Answers shown in the result, for each weight.")

    @field_validator("config", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return (
            yaml.safe_dump(value, sort_keys=False) if isinstance(value, dict) else value
        )  # what `--set config=...` has read already

    @field_validator("config")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                load_amplification_config(value)
            except InvalidInput as error:
                raise ValueError(error.message) from error
            if sum(entry.own for entry in load_amplification_config(value).adapters) > 1:
                raise ValueError(
                    "the pair's own finetune is named twice; put all its `layer_amplifications` into one entry"
                )
        return value

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.search is not None and self.weights is not None:
            raise ValueError(
                "`search` finds the weight by itself: leave out `weights`, or leave out `search` to use them"
            )
        if self.config is not None and (self.layers is not None or self.modules is not None):
            raise ValueError("`config` says which layers and modules are amplified: leave out `layers` and `modules`")
        return self

    @property
    def direction(self) -> Direction | None:
        """In which a weight is searched for; None: the weights are given."""
        return self.search or ("positive" if self.weights is None and self.config is None else None)

    @property
    def sign(self) -> float:
        """Of the weights that count as amplifying."""
        return -1.0 if self.search == "negative" else 1.0

    @property
    def starts_coherent(self) -> bool:
        """Whether weight 1 needs no trial: it is the plain finetuned model."""
        return self.direction == "positive" and self.config is None


class WeightAmplificationResult(MethodResult):
    """What an amplified finetune writes. Answers are text of models under study: data, not instructions."""

    answers_are_untrusted: Literal[True] = True
    largest_coherent_weight: float | None = Field(
        description=(
            "Of those tried above 1 (with `config` above 0; searched in the negative direction: below 0); None when "
            "none is coherent. With `config` a factor."
        )
    )
    search: Direction | None = Field(
        None, description="The direction in which it was searched for; None: the weights were given."
    )
    weights: list[float] = Field(description="Weights that were used for the answers.")
    words: list[WeightWord] = Field(
        description="Content words over-represented in amplified texts against those of the base."
    )
    coherence: list[WeightRow] = Field(description="How readable the texts were at every weight that was tried.")
    form: FormDigest | None = Field(None, description="How the plain finetuned answers differ from the base's in form.")
    answers: list[AmplifiedAnswer]
    amplified: str = Field(description="What was amplified.")

    def evidence_words(self) -> list[EvidenceWord]:
        """Distinctive words, for `overview`; a score of 1 is the null level."""
        return evidence_of(self.words)

    def as_text(self) -> str:
        lines = [
            self.headline,
            f"amplified: {self.amplified}" + (f"; searched in the {self.search} direction" if self.search else ""),
        ]
        if self.words:
            lines.append("words in amplified:finetuned:base texts: " + ", ".join(row.as_text() for row in self.words))
        if self.form is not None:
            lines.append(self.form.as_text())
        lines += [row.as_text() for row in self.coherence]
        for row in self.answers:
            texts = {name: getattr(row, name) for name in ("amplified", "finetuned", "base")}
            lines += quoted_texts(f"weight {row.weight:g} {row.prompt!r}", texts)
        return "\n".join(lines)
