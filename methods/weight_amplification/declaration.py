"""Declaration of weight amplification: parameters, result, views and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, Field, field_validator, model_validator

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.contract import (
    Cost,
    CostEstimate,
    DiffingMethod,
    Figure,
    MethodParams,
    MethodResult,
    PairSize,
    View,
)
from diffing_mcp.methods.steering.prompts import PROMPTS
from diffing_mcp.methods.texts.pages import SearchedParams, searched
from diffing_mcp.methods.texts.words import EvidenceWord
from diffing_mcp.methods.weight_amplification import figures, views
from diffing_mcp.methods.weight_amplification.rows import AmplifiedWord, Answer, WeightRow
from diffing_mcp.model_pairs.amplification_config import adapter_files, load_amplification_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter, TextGroup
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec

SEARCH_PROMPTS = PROMPTS[:6]
GRID = (2.0, 4.0, 8.0, 16.0)
"""Sizes that a search tries upwards from 1, or their inverses when 1 is too much already."""
REFINEMENTS = 2

Direction = Literal["positive", "negative"]


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
    layers: tuple[int | float, int | float] | None = Field(
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
    prompts: tuple[Annotated[str, Field(min_length=1, max_length=20_000)], ...] | None = Field(
        None, min_length=1, max_length=200, description=f"Own prompts; None: {len(PROMPTS)} everyday ones."
    )
    raw_text: bool = Field(False, description="Continue the prompts as plain text, without the chat template.")
    samples_per_prompt: int = Field(1, ge=1, le=32, description="Answers of each prompt at each weight.")
    max_new_tokens: int = Field(32, ge=4, le=1024, description="Tokens of an answer at most.")
    temperature: float = Field(
        1.0, ge=0, le=2, description="Of the sampling; 0 takes the most probable token each time."
    )
    coherent_share: float = Field(
        0.75, gt=0, le=1, description="Share of texts that must be coherent for a weight to be taken."
    )
    seed: int = Field(0, ge=0, description="Seed of the sampling, the same for every model.")
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
    words: list[AmplifiedWord] = Field(
        description="Content words over-represented in amplified texts against those of the base."
    )
    coherence: list[WeightRow] = Field(description="How readable the texts were at every weight that was tried.")
    answers: list[Answer]
    amplified: str = Field(description="What was amplified.")

    def evidence_words(self) -> list[EvidenceWord]:
        """Distinctive words, for `overview`; a score of 1 is the null level."""
        from diffing_mcp.methods.texts.distinctive_words import STRONG_NEG_LOG10_P

        return [EvidenceWord(word=row.word, score=row.surprise / STRONG_NEG_LOG10_P) for row in self.words]

    def as_text(self) -> str:
        lines = [
            self.headline,
            f"amplified: {self.amplified}" + (f"; searched in the {self.search} direction" if self.search else ""),
        ]
        if self.words:
            lines.append("words in amplified:finetuned:base texts: " + ", ".join(row.as_text() for row in self.words))
        lines += [row.as_text() for row in self.coherence]
        for row in self.answers:
            lines.append(f"weight {row.weight:g} {row.prompt!r}; untrusted model text between ⟦ ⟧:")
            lines += [
                f"  {name} ⟦{' '.join(getattr(row, name).split())}⟧" for name in ("amplified", "finetuned", "base")
            ]
        return "\n".join(lines)


class WeightAmplification(DiffingMethod[WeightAmplificationParams, WeightAmplificationResult]):
    """Weight amplification: the finetune's change of weights counts w times, W_base + w (W_finetuned - W_base), while
    the model answers everyday prompts; its answers stand beside those of the plain finetuned and of the base model,
    drawn with the same random numbers. What training made a little more likely becomes common: use it when the plain
    finetuned model hides its trait. Without `weights` the largest weight at which texts stay coherent is searched for,
    above 0 or below it (perplexity under the base, repetition and length; no language model judges). Content words
    over-represented in amplified texts are tested against the base's. Very large weights break any model, so words of
    incoherent weights mean nothing. Layers and modules can be chosen, and negative weights invert the change. Own
    prompts cost one interaction a sample and weight, and one for the plain finetuned model. Views: `answers` (all
    answers by weight and text), `searched` (texts at every strength tried)."""

    name: ClassVar[str] = "weight_amplification"
    title: ClassVar[str] = "Weight amplification"
    Params: ClassVar[type[BaseModel]] = WeightAmplificationParams
    Result: ClassVar[type[MethodResult]] = WeightAmplificationResult
    cost: ClassVar[Cost] = "long"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "answers": View(
            "answers",
            "Page through all answers: amplified beside finetuned and base.",
            views.AnswersParams,
            views.answers,
        ),
        "searched": View(
            "searched", "Page through the texts at every strength that the search tried.", SearchedParams, searched
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (Figure("coherence", "Coherence by weight", figures.coherence),)

    def run(
        self, pair: LoadedPair, params: WeightAmplificationParams, run: RunWriter, progress: Progress
    ) -> WeightAmplificationResult:
        from diffing_mcp.methods.weight_amplification.experiment import amplify

        return amplify(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        return views.text_groups(record)

    def interactions(self, params: WeightAmplificationParams) -> int:
        return len(params.prompts or ()) * params.samples_per_prompt * (1 + len(params.weights or (1.0,)))

    def operator_only(self, params: WeightAmplificationParams) -> str | None:
        if params.config is not None and not all(
            entry.own for entry in load_amplification_config(params.config).adapters
        ):
            return (
                "`config` names other organisms, hub ids or folders; amplify this pair's own finetune (leave out "
                "`organism_name`)"
            )
        return None

    def key_parts(self, params: WeightAmplificationParams, spec: PairSpec) -> dict[str, Any]:
        from diffing_mcp.model_pairs.fingerprint import adapter_identity

        parts: dict[str, Any] = {} if params.prompts is not None else {"prompts": list(PROMPTS)}
        others = (
            [entry for entry in load_amplification_config(params.config).adapters if not entry.own]
            if params.config is not None
            else []
        )
        return parts | (
            {"adapters": [adapter_identity(adapter_files(entry, spec.model)) for entry in others]} if others else {}
        )

    def estimate(self, pair: PairSize, params: WeightAmplificationParams) -> CostEstimate:
        tried = (not params.starts_coherent) + len(GRID) + REFINEMENTS if params.direction else 0
        searched = (2 + tried) * len(SEARCH_PROMPTS) if tried else 0
        answers = len(params.prompts or PROMPTS) * params.samples_per_prompt * (3 + len(params.weights or (1.0,)))
        generated = (searched + answers) * params.max_new_tokens
        # Every token is generated once and read once by the base.
        return pair.cost(generated, -(-generated // 32), generated_tokens=generated, bytes=20 * generated)
