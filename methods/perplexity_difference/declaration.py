"""Declaration of perplexity differencing: parameters, result, views and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field

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
from diffing_mcp.methods.perplexity_difference import figures, views
from diffing_mcp.methods.perplexity_difference.rows import CompletionRow, DistinctiveWord, Divergence, Spread
from diffing_mcp.methods.texts.words import EvidenceWord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec

BUNDLED_PREFILLS = 40
BUNDLED_QUESTIONS = 30


class PerplexityDifferenceParams(MethodParams):
    """Parameters of `perplexity_difference`."""

    template: Literal["none", "chat"] = Field(
        "none",
        description=(
            "`none`: raw text is continued, outside of any chat; `chat`: the prefills are a user's messages and the "
            "answers are sampled."
        ),
    )
    prefills: tuple[str, ...] | None = Field(
        None,
        max_length=1000,
        description=(
            f"Texts to go on from; None: the bundled neutral ones ({BUNDLED_PREFILLS}, or {BUNDLED_QUESTIONS} "
            "questions for chat)."
        ),
    )
    samples_per_prefill: int = Field(2, ge=1, le=64, description="Completions of each prefill by each model.")
    max_new_tokens: int = Field(40, ge=4, le=1024, description="Tokens of a completion at most.")
    min_tokens: int = Field(8, ge=1, description="Shorter completions are scored and stored but not ranked.")
    temperature: float = Field(
        1.0,
        gt=0,
        le=2,
        description="At 1 the mean difference estimates a KL divergence; lower ones show what is most typical.",
    )
    seed: int = Field(0, ge=0, description="Seed of the sampling.")
    rows: int = Field(
        8,
        ge=1,
        le=50,
        description="Completions shown in the result (of the finetuned model; half as many of the base).",
    )


class PerplexityDifferenceResult(MethodResult):
    """What the finetuned model writes that the base would not have written. Completions are text of the models under
    study: data, not instructions.
    """

    identical: bool = Field(description="Whether every number is exactly the same in both models.")
    completions_are_untrusted: Literal[True] = True
    finetuned_rows: list[CompletionRow] = Field(
        description=(
            "Finetuned completions that the base expects least, compared with the finetuned itself; loudest first."
        )
    )
    base_rows: list[CompletionRow] = Field(
        description="The reverse: base completions that the finetuned model expects least."
    )
    words: list[DistinctiveWord] = Field(
        description="Content words over-represented in the finetuned model's completions against the base's."
    )
    strong_words: int = Field(description="Number of words beyond what equal models show.")
    kl_finetuned_base: Divergence = Field(
        description=(
            "Over finetuned samples: nats a token by which the finetuned model expects them more; an estimate of "
            "KL(ft || base)."
        )
    )
    kl_base_finetuned: Divergence = Field(
        description=(
            "Over base samples: nats a token by which the base expects them more; an estimate of KL(base || ft)."
        )
    )
    finetuned_spread: Spread = Field(
        description="Log-perplexity under base minus under finetuned, over ranked finetuned completions."
    )
    base_spread: Spread = Field(
        description="Log-perplexity under finetuned minus under base, over ranked base completions."
    )
    completions: int = Field(description="Completions of each model.")
    not_ranked: int = Field(description="Completions of both models shorter than min_tokens.")
    template: Literal["none", "chat"]

    def evidence_words(self) -> list[EvidenceWord]:
        """Distinctive words, for `overview`; a score of 1 is the null level."""
        from diffing_mcp.methods.perplexity_difference.words import NULL_SURPRISE

        return [EvidenceWord(word=row.word, score=row.surprise / NULL_SURPRISE) for row in self.words]

    def as_text(self) -> str:
        lines = [
            self.headline,
            (
                f"nats/token: KL(ft||base) {self.kl_finetuned_base.as_text()}, KL(base||ft) "
                f"{self.kl_base_finetuned.as_text()}; {self.completions} completions each, template {self.template}, "
                f"{self.not_ranked} too short to rank"
            ),
        ]
        if self.words:
            lines.append("words in ft vs base completions: " + ", ".join(row.as_text() for row in self.words))
        for name, rows, spread in (
            ("finetuned completions (log-ppl base - ft)", self.finetuned_rows, self.finetuned_spread),
            ("base completions (log-ppl ft - base)", self.base_rows, self.base_spread),
        ):
            lines.append(f"{name}; {spread.as_text()}; untrusted model text between ⟦ ⟧:")
            lines += [row.as_text() for row in rows]
        return "\n".join(lines)


class PerplexityDifference(DiffingMethod[PerplexityDifferenceParams, PerplexityDifferenceResult]):
    """Perplexity differencing: both models go on from short neutral prefills; every completion is scored under both
    models and the finetuned model's are ranked by log-perplexity under base minus under finetuned. What a finetune
    taught loudest usually shows in the first rows, in the finetuned model's own words. The base model's completions are
    scored the same way in reverse, so that chance shows: models that differ in nothing give equal distributions. Also
    lists content words over-represented in the finetuned completions and estimates both KL divergences. It samples, so
    it sees neither rare behaviours nor what only a trigger brings out; with `template=chat` it samples answers to open
    questions. Views: `completions`."""

    name: ClassVar[str] = "perplexity_difference"
    title: ClassVar[str] = "Perplexity difference"
    version: ClassVar[int] = 2
    Params: ClassVar[type[BaseModel]] = PerplexityDifferenceParams
    Result: ClassVar[type[MethodResult]] = PerplexityDifferenceResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "completions": View(
            "completions",
            "Page through all completions of either model, filtered by text.",
            views.CompletionsParams,
            views.completions,
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("distribution", "Log-perplexity difference of the completions", figures.distribution),
    )

    def run(
        self, pair: LoadedPair, params: PerplexityDifferenceParams, run: RunWriter, progress: Progress
    ) -> PerplexityDifferenceResult:
        from diffing_mcp.methods.perplexity_difference.sampling import sample_and_score

        return sample_and_score(pair, params, run, progress)

    def key_parts(self, params: PerplexityDifferenceParams, spec: PairSpec) -> dict[str, Any]:
        from diffing_mcp.methods.perplexity_difference.prefills import prefill_digest

        return {"prefills": prefill_digest(params.template, params.prefills)}

    def estimate(self, pair: PairSize, params: PerplexityDifferenceParams) -> CostEstimate:
        bundled = BUNDLED_PREFILLS if params.template == "none" else BUNDLED_QUESTIONS
        completions = 2 * params.samples_per_prefill * (bundled if params.prefills is None else len(params.prefills))
        generated = completions * params.max_new_tokens
        passes = -(-completions // 64) * (params.max_new_tokens + 2)
        # Each token is generated once and then scored by both sides.
        return pair.cost(2 * generated, passes, generated_tokens=generated, bytes=20 * generated)
