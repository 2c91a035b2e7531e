"""Declaration of the method `kl`: its parameters, result, drill-down views and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import CorpusMethod, CorpusMethodParams, Cost, Figure, MethodResult, View
from diffing_mcp.methods.kl import figures, views
from diffing_mcp.methods.kl.rows import Metric, TextRow, TokenMove, TokenRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.kl.accumulator import KLAccumulator
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


class KLParams(CorpusMethodParams):
    """Parameters of `kl`."""

    examples: int = Field(
        100,
        ge=1,
        le=1000,
        description="Tokens kept with their context and probability movements (texts: a quarter of it).",
    )


class Spread(BaseModel):
    """A distribution of divergences, in nats."""

    mean: float
    standard_error: float = Field(description="Of the mean, over samples (tokens of one text are not independent).")
    median: float
    p90: float
    p99: float
    max: float


class KLResult(MethodResult):
    """How much the next-token distributions differ, where most, and which tokens became more or less probable."""

    amount: Literal["none", "rounding", "small", "moderate", "large"] = Field(
        description=(
            "none: exactly zero; rounding: no more than recomputing one model gives; small below 0.01 nats a token, "
            "moderate below 0.1, large above."
        )
    )
    tokens: int
    samples: int
    dropped: int = Field(description="Documents left out: too short, without an answer, or rows that are no document.")
    position_origin: str = Field(description="What position 0 is.")
    kl_finetuned_base: Spread = Field(description="Per token, KL(finetuned || base).")
    kl_base_finetuned: Spread = Field(description="Per token, KL(base || finetuned).")
    js: Spread = Field(description="Per token, Jensen-Shannon divergence, at most 0.693.")
    per_text: Spread = Field(
        description="KL(finetuned || base) averaged in each text; standard error of the mean over texts."
    )
    rounding_noise: float = Field(
        description="Mean KL between two computations of the same model over the same tokens in other batches, in nats."
    )
    outlying_texts: int = Field(
        description="Texts that differ far more than the rest (log divergence beyond 8 robust standard deviations)."
    )
    first_positions: list[float] = Field(description="Mean KL(finetuned || base) at positions 0 to 7.")
    far_more_often: list[TokenMove] = Field(
        description=(
            "Tokens at least 10 times as probable as before (by 0.001 or more), averaged over all positions, and "
            "consistently so over the texts."
        )
    )
    far_less_often: list[TokenMove] = Field(description="The same in the other direction.")
    rose: list[TokenMove] = Field(description="Tokens whose probability rose most, averaged over all positions.")
    fell: list[TokenMove] = Field(description="Tokens whose probability fell most, averaged over all positions.")
    top_tokens: list[TokenRow] = Field(description="Positions where the models differ most.")
    top_texts: list[TextRow] = Field(description="Texts where the models differ most.")

    def as_text(self) -> str:
        lines = [
            self.headline,
            f"tokens {self.tokens}, texts {self.samples}, dropped {self.dropped}; position 0 = {self.position_origin}",
            (
                f"amount {self.amount}; rounding noise {self.rounding_noise:.2g} nats; texts far above the rest: "
                f"{self.outlying_texts}; stands out: {'yes' if self.stands_out else 'no'}"
            ),
            "nats mean±se median p90 p99 max",
        ]
        for name, spread in (
            ("KL(ft||base)", self.kl_finetuned_base),
            ("KL(base||ft)", self.kl_base_finetuned),
            ("JS", self.js),
            ("per text", self.per_text),
        ):
            lines.append(
                f"{name} {spread.mean:.3g}±{spread.standard_error:.1g} {spread.median:.3g} {spread.p90:.3g} "
                f"{spread.p99:.3g} {spread.max:.3g}"
            )
        lines.append("KL(ft||base) at positions 0..7: " + " ".join(f"{value:.3g}" for value in self.first_positions))
        for name, moves in (("more", self.far_more_often), ("less", self.far_less_often)):
            if moves:
                lines.append(f"said far {name} often: " + " ".join(move.as_text() for move in moves))
        lines.append("rose overall: " + " ".join(move.as_text() for move in self.rose))
        lines.append("fell overall: " + " ".join(move.as_text() for move in self.fell))
        lines.append("most different positions:")
        lines += [row.as_text() for row in self.top_tokens]
        lines.append("most different texts:")
        lines += [row.as_text() for row in self.top_texts]
        return "\n".join(lines)


class KLDivergence(CorpusMethod[KLParams, KLResult]):
    """How far the two models' next-token distributions are apart on a text corpus: KL divergence in both directions and
    Jensen-Shannon divergence, in nats, for every token and text; the texts and tokens where the models differ most,
    each with the tokens whose probability moved most. It tells how much changed and where, not what was meant."""

    name: ClassVar[str] = "kl"
    title: ClassVar[str] = "KL divergence"
    version: ClassVar[int] = 1
    Params: ClassVar[type[BaseModel]] = KLParams
    Result: ClassVar[type[MethodResult]] = KLResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "tokens": View(
            "tokens",
            "Positions by divergence, with context and moved tokens; or every token of one text.",
            views.TokensParams,
            views.tokens,
        ),
        "texts": View(
            "texts",
            "Texts by mean divergence, with the tokens that gained and lost probability in them.",
            views.TextsParams,
            views.texts,
        ),
        "positions": View("positions", "Mean divergence at each position.", views.PositionsParams, views.positions),
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("histogram", "Divergence per token", figures.histogram),
        Figure("positions", "Divergence by position", figures.positions),
    )

    def accumulator(self, pair: LoadedPair, params: KLParams, corpus: TokenizedCorpus) -> KLAccumulator:
        from diffing_mcp.methods.kl.accumulator import KLAccumulator

        return KLAccumulator(pair, corpus, params.examples)

    def summarise(self, accumulator: Any, pair: LoadedPair, params: KLParams, run: RunWriter) -> KLResult:
        from diffing_mcp.methods.kl.summary import summarise

        return summarise(accumulator, pair, run)


__all__ = ["KLDivergence", "KLParams", "KLResult", "Metric"]
