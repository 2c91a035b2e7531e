"""Declaration of contrastive decoding: parameters, result, views and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

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
from diffing_mcp.methods.contrastive_decoding import figures, views
from diffing_mcp.methods.contrastive_decoding.rows import AlphaRow, AmplifiedText, AmplifiedWord
from diffing_mcp.methods.texts.words import EvidenceWord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter, TextGroup
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec

Alpha = Annotated[float, Field(gt=0, le=100)]
BUNDLED_STARTS = 20


class ContrastiveDecodingParams(MethodParams):
    """Parameters of `contrastive_decoding`."""

    start: Literal["prefixes", "nothing", "chat"] = Field(
        "prefixes",
        description=(
            "`prefixes`: raw text is continued, outside of any chat; `nothing`: no prompt at all; `chat`: prompts are "
            "a user's messages."
        ),
    )
    prompts: tuple[Annotated[str, Field(min_length=1, max_length=20_000)], ...] | None = Field(
        None,
        min_length=1,
        max_length=200,
        description=f"Own texts or messages; None: {BUNDLED_STARTS} neutral bundled ones.",
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
    max_new_tokens: int = Field(32, ge=4, le=1024, description="Tokens of a text at most.")
    temperature: float = Field(1.0, ge=0, le=2, description="0 takes the highest score each time.")
    plausibility: float = Field(
        0.1,
        ge=0,
        le=1,
        description=(
            "Tokens are drawn only when the nearer model gives them this share of its highest probability at least."
        ),
    )
    seed: int = Field(0, ge=0, description="Seed of the sampling.")
    rows: int = Field(6, ge=1, le=50, description="Texts shown in the result.")


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
    texts: list[AmplifiedText]
    alphas: list[AlphaRow] = Field(description="0: plain finetuned; -1: plain base; below: the opposite direction.")
    start: str

    def evidence_words(self) -> list[EvidenceWord]:
        """Distinctive words, for `overview`; a score of 1 is the null level."""
        from diffing_mcp.methods.texts.distinctive_words import STRONG_NEG_LOG10_P

        return [EvidenceWord(word=row.word, score=row.surprise / STRONG_NEG_LOG10_P) for row in self.words]

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
        lines += [row.as_text() for row in self.alphas]
        lines.append("alpha (ft - base, nats/token), prompt, untrusted model text between ⟦ ⟧:")
        lines += [row.as_text() for row in self.texts]
        return "\n".join(lines)


class ContrastiveDecoding(DiffingMethod[ContrastiveDecodingParams, ContrastiveDecodingResult]):
    """Contrastive decoding (logit amplification): text is sampled from log p_ft + alpha (log p_ft - log p_base), so
    that what the finetune made more probable is written out, often in the words that were taught, even when plain
    samples show it rarely. Works from neutral beginnings, from no prompt, or from own prompts. Amplified texts are
    compared with the same amplification in the opposite direction and with the base: under a finetune that taught
    nothing both directions look alike. `suppressed` are the words of the opposite direction: what the finetune pushes
    away from. Amplified text exaggerates: read it as what the finetune pushes towards, and confirm what the plain model
    says with ask_models. Own prompts cost one interaction a text. Views: `texts`."""

    name: ClassVar[str] = "contrastive_decoding"
    title: ClassVar[str] = "Contrastive decoding"
    version: ClassVar[int] = 2
    Params: ClassVar[type[BaseModel]] = ContrastiveDecodingParams
    Result: ClassVar[type[MethodResult]] = ContrastiveDecodingResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "texts": View(
            "texts",
            "Page through all texts by alpha, controls included, filtered by text.",
            views.TextsParams,
            views.texts,
        )
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("differences", "How much more the finetuned model expects the texts", figures.differences),
    )

    def run(
        self, pair: LoadedPair, params: ContrastiveDecodingParams, run: RunWriter, progress: Progress
    ) -> ContrastiveDecodingResult:
        from diffing_mcp.methods.contrastive_decoding.experiment import decode

        return decode(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        return views.text_groups(record)

    def interactions(self, params: ContrastiveDecodingParams) -> int:
        return len(params.prompts or ()) * params.samples_per_prompt * (2 * len(params.alphas) + 2)

    def key_parts(self, params: ContrastiveDecodingParams, spec: PairSpec) -> dict[str, Any]:
        from diffing_mcp.methods.contrastive_decoding.starts import bundled_starts

        return {} if params.prompts is not None else {"starts": list(bundled_starts(params.start))}

    def estimate(self, pair: PairSize, params: ContrastiveDecodingParams) -> CostEstimate:
        texts = len(params.prompts or range(BUNDLED_STARTS)) * params.samples_per_prompt * (2 * len(params.alphas) + 2)
        generated = texts * params.max_new_tokens
        return pair.cost(
            0, 2 * -(-texts // 64) * params.max_new_tokens, generated_tokens=generated, models=2, bytes=20 * generated
        )
