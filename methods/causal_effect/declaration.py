"""Declaration of the causal effect: parameters, result, views and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from diffing_mcp.core.settings import settings
from diffing_mcp.methods.causal_effect import figures, views
from diffing_mcp.methods.causal_effect.rows import EffectRow
from diffing_mcp.methods.contract import (
    CorpusMethodParams,
    Cost,
    CostEstimate,
    DiffingMethod,
    Figure,
    MethodResult,
    PairSize,
    View,
)
from diffing_mcp.methods.directions.vectors import VECTOR_HELP, VectorSource
from diffing_mcp.preprocessing.corpora import CorpusParams, corpus_identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class CausalEffectParams(CorpusMethodParams):
    """Parameters of `causal_effect`, with those of the corpus."""

    vectors: tuple[VectorSource, ...] = Field(
        min_length=1, max_length=16, description=f"Directions, tested one by one. {VECTOR_HELP}"
    )
    subspace: bool = Field(
        False, description="Test all directions together, as the subspace that they span (they must share a layer)."
    )
    mode: Literal["patch", "ablate"] = Field(
        "patch",
        description=(
            "`patch`: the projection becomes that of the other model on the same text; `ablate`: it becomes zero."
        ),
    )
    direction: Literal["base_to_ft", "ft_to_base"] = Field(
        "base_to_ft",
        description=(
            "`base_to_ft`: the finetuned model is changed, with the base's projections; `ft_to_base`: the reverse."
        ),
    )
    texts: tuple[Annotated[str, Field(max_length=20_000)], ...] | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Own texts in place of the corpus (max_tokens of each are read); None: the corpus.",
    )
    max_samples: int = Field(32, ge=1, le=10_000, description="Documents read at most.")
    max_tokens: int = Field(
        48, ge=2, le=8192, description="Tokens of each document at most (of a chat: of the answer)."
    )
    random_directions: int = Field(
        24,
        ge=4,
        le=256,
        description=(
            "Gaussian directions, and as many differences of random base activations, as nulls. Below 19 nothing can "
            "stand out."
        ),
    )


class CausalEffectResult(MethodResult):
    """Loss changes beside their nulls."""

    rows: list[EffectRow]
    gap: float = Field(description="Loss of the other model minus loss of the changed one, nats a token.")
    gap_low: float = Field(description="Lower end of its 95 % bootstrap interval over samples.")
    gap_high: float
    target_loss: float = Field(description="Loss of the changed model, nats a token.")
    samples: int
    tokens: int = Field(description="Tokens whose loss counts (of chats: those of the answer).")
    identical: bool = Field(description="Whether both models give every text exactly the same loss.")

    def as_text(self) -> str:
        lines = [
            self.headline,
            (
                f"loss {self.target_loss:.4f} nats/token; other model {self.gap:+.4f} [{self.gap_low:+.4f}, "
                f"{self.gap_high:+.4f}]; {self.samples} samples, {self.tokens} tokens"
            ),
            "loss change [95 %] share of gap, p against Gaussian/difference directions:",
        ]
        return "\n".join([*lines, *(f"  {row.as_text()}" for row in self.rows)])


class CausalEffect(DiffingMethod[CausalEffectParams, CausalEffectResult]):
    """Causal effect: whether a direction carries what the finetune changed. In one model the projection of every
    activation on the direction is set to that of the other model on the same text (or to zero), and the change of the
    loss is compared with the gap between the models and with two nulls: random Gaussian directions and differences of
    random base activations. A direction that matters on text about what was taught and not on unrelated text belongs to
    the finetune: run it on both (`texts` takes your own). Small p-values come easily, because any direction along which
    the models differ does something; read the share of the gap and the size first. In chats the loss is that of the
    answer. Views: `samples` (losses of each text), `nulls` (loss changes of all null directions)."""

    name: ClassVar[str] = "causal_effect"
    title: ClassVar[str] = "Causal effect of directions"
    version: ClassVar[int] = 3
    Params: ClassVar[type[BaseModel]] = CausalEffectParams
    Result: ClassVar[type[MethodResult]] = CausalEffectResult
    cost: ClassVar[Cost] = "long"
    needs_vector: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "samples": View(
            "samples", "Losses of each text with one of the directions changed.", views.SamplesParams, views.samples
        ),
        "nulls": View("nulls", "Loss changes of the null directions, largest first.", views.NullsParams, views.nulls),
    }
    figures: ClassVar[Sequence[Figure]] = (Figure("effects", "Loss changes beside their nulls", figures.effects),)

    def run(
        self, pair: LoadedPair, params: CausalEffectParams, run: RunWriter, progress: Progress
    ) -> CausalEffectResult:
        from diffing_mcp.methods.causal_effect.measure import measure

        return measure(pair, params, run, progress)

    def interactions(self, params: CausalEffectParams) -> int:
        return len(params.texts or ())

    def key_parts(self, params: CausalEffectParams, spec: PairSpec) -> dict[str, Any]:
        return {} if params.texts is not None else {"corpus": corpus_identity(corpus_of(params))}

    def estimate(self, pair: PairSize, params: CausalEffectParams) -> CostEstimate:
        samples = params.max_samples if params.texts is None else len(params.texts)
        tested = 1 if params.subspace else len(params.vectors)
        # Vectors may lie in different layers, each with nulls of its own; how many is known only once they are looked
        # up.
        passes = 2 + tested + 2 * params.random_directions
        batches = -(-samples * params.max_tokens // settings().batch_tokens)
        return pair.cost(samples * params.max_tokens * passes, passes * batches, bytes=16 * samples * passes)


def corpus_of(params: CausalEffectParams) -> CorpusParams:
    """The part of the parameters that chooses the text."""
    return CorpusParams(**{name: getattr(params, name) for name in CorpusParams.model_fields})
