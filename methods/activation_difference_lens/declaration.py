"""Declaration of the activation difference lens: parameters, result, views and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from diffing_mcp.methods.activation_difference_lens import figures, views
from diffing_mcp.methods.activation_difference_lens.rows import PositionRow
from diffing_mcp.methods.contract import CorpusMethod, Cost, Figure, HiddenStatesParams, MethodResult, View
from diffing_mcp.methods.texts.words import EvidenceWord
from diffing_mcp.model_pairs.specs import Side

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.activation_difference_lens.accumulator import ActivationDifferenceAccumulator
    from diffing_mcp.methods.contract import RunWriter, TokenList
    from diffing_mcp.methods.directions.vectors import ResidualVector
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


class ActivationDifferenceLensParams(HiddenStatesParams):
    """Parameters of `activation_difference_lens`, with those of the corpus."""

    layers: tuple[int | float, ...] = Field(
        (0.5, 0.95),
        min_length=1,
        description=(
            "Relative depths in [0, 1] (floats) or absolute layers (integers). Late ones read best through the lens, "
            "middle ones with patchscope."
        ),
    )
    positions: int = Field(
        5,
        ge=1,
        le=128,
        description="First positions kept one by one (in a chat also the three tokens before the answer).",
    )
    lens_side: Side = Field("finetuned", description="Whose final norm and unembedding read the vectors.")
    random_directions: int = Field(
        128,
        ge=64,
        le=4096,
        description="Random Gaussian directions of the same norm against which lens scores are standardised.",
    )
    list_length: int = Field(
        8,
        ge=1,
        le=50,
        description="Tokens of each list in the result (fewer when there are many layers and positions).",
    )


class LensWord(BaseModel):
    """A content word among the first of the lens lists."""

    word: str
    z: float = Field(description="Highest z over layers and positions.")
    places: int = Field(description="Layers and positions at which it is among the first.")


class ActivationDifferenceLensResult(MethodResult):
    """Mean activation differences by layer and position, and what they read as."""

    identical: bool = Field(description="Whether every number is exactly the same in both models.")
    words: list[LensWord] = Field(
        description="Content words that several positions promote: candidates for a topic, not proof of one."
    )
    rows: list[PositionRow]
    position_zero: str = Field(description="What position 0 is.")
    stored: str | None = Field(
        None, description="Stored activations that were read, and what they leave out; None: a corpus."
    )
    samples: int
    lens_side: Side
    random_directions: int

    def evidence_words(self) -> list[EvidenceWord]:
        """Words that the lens promotes, for `overview`; a score of 1 is where words that mean nothing end."""
        from diffing_mcp.methods.directions.lens_words import NULL_Z

        return [EvidenceWord(word=row.word, score=row.z / NULL_Z) for row in self.words]

    def as_text(self) -> str:
        lines = [self.headline]
        if self.words:
            lines.append(
                "words promoted (highest z, places): "
                + ", ".join(f"{row.word} {row.z:.1f}x{row.places}" for row in self.words)
            )
        lines.append("layer:position count |diff|/|act| stability snr | promoted tokens (z) | suppressed")
        for row in self.rows:
            stability = "-" if row.stability is None else f"{row.stability:.3f}"
            noise = "-" if row.signal_to_noise is None else f"{row.signal_to_noise:.1f}"
            promoted = " ".join(f"{token.token!r} {token.z:.1f}" for token in row.promoted)
            suppressed = " ".join(repr(token.token) for token in row.suppressed)
            lines.append(
                f"{row.layer}:{row.position} {row.count} {row.relative_norm:.3g} {stability} {noise} | {promoted} | "
                f"{suppressed}"
            )
        if self.stored:
            lines.append(f"read from {self.stored}")
        lines.append(
            f"{self.samples} samples; position 0 is the {self.position_zero}; `all` pools later positions; lens of the "
            f"{self.lens_side} side, z against {self.random_directions} random directions; read further with "
            "patchscope or steering: vector=RUN/LAYER:POSITION:difference"
        )
        return "\n".join(lines)


class ActivationDifferenceLens(CorpusMethod[ActivationDifferenceLensParams, ActivationDifferenceLensResult]):
    """Activation difference lens: the mean difference of the two models' residual streams on unrelated text, at chosen
    layers and the first positions (and pooled over later ones), with its norm, spread and stability over halves of the
    samples. Each mean is read through the logit lens (`promoted`) and so is its negative (`suppressed`); a token's
    score is standardised against random directions of the same norm (z), because raw lens lists are topped by rare
    tokens. Content words that several positions promote point at what was taught; single ones point at nothing. Late
    layers read best through the lens; the lens of a middle layer is often unreadable: give
    RUN/LAYER:POSITION:difference to `patchscope`, which usually reads it, to `steering` or to `causal_effect`. In chats
    (corpus=chat_exchanges) position 0 is the answer's first token, and -3 to -1 the three before it: a manner taught in
    chats reads best at -1 and 0 of a late layer. Reads stored `activations` too. Views: `lens` (any layer, position,
    source and ranking; the means of base and finetuned are the controls), `positions` (norm profile)."""

    name: ClassVar[str] = "activation_difference_lens"
    title: ClassVar[str] = "Activation difference lens"
    version: ClassVar[int] = 3
    Params: ClassVar[type[BaseModel]] = ActivationDifferenceLensParams
    Result: ClassVar[type[MethodResult]] = ActivationDifferenceLensResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "lens": View(
            "lens",
            "One lens list: layer, position, difference or control, promoted or suppressed, by z or probability.",
            views.LensParams,
            views.lens,
        ),
        "positions": View(
            "positions",
            "Norms, spread and stability of every layer and position.",
            views.PositionsParams,
            views.positions,
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("norms", "Size of the mean difference by position", figures.norms),
        Figure("lens", "Tokens promoted by the mean difference", figures.lens),
    )

    def accumulator(
        self, pair: LoadedPair, params: ActivationDifferenceLensParams, corpus: TokenizedCorpus
    ) -> ActivationDifferenceAccumulator:
        from diffing_mcp.methods.activation_difference_lens.accumulator import (
            POOLED_FROM,
            ActivationDifferenceAccumulator,
        )
        from diffing_mcp.model_pairs.layers import resolve_layers

        before = corpus.before_answer
        layers = tuple(reference.absolute for reference in resolve_layers(params.layers, pair.num_layers))
        labels = [str(place - before) for place in range(before + params.positions)]
        return ActivationDifferenceAccumulator(
            layers,
            labels,
            before + POOLED_FROM,
            pair.d_model,
            pair.device,
            samples=len(corpus.ids),
            position_zero=_position_zero(corpus),
            stored=corpus.stored,
        )

    def token_lists(self, record: RunRecord) -> Sequence[TokenList]:
        return views.token_lists(record)

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return [row["vector"] for row in record.table("positions").to_pylist()]

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        return views.read_vector(record, name)

    def summarise(
        self, accumulator: Any, pair: LoadedPair, params: ActivationDifferenceLensParams, run: RunWriter
    ) -> ActivationDifferenceLensResult:
        from diffing_mcp.methods.activation_difference_lens.summary import summarise

        return summarise(accumulator, pair, params, run)


def _position_zero(corpus: TokenizedCorpus) -> str:
    return "answer's first token" if corpus.before_answer else corpus.position_origin
