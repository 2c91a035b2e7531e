"""Declaration of PCA: parameters, result, views and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, MethodResult, PairSize, View
from diffing_mcp.methods.examples.views import EXAMPLES_VIEW
from diffing_mcp.methods.pca import figures, views
from diffing_mcp.methods.pca.rows import ComponentRow
from diffing_mcp.methods.texts.words import EvidenceWord
from diffing_mcp.model_pairs.specs import Side
from diffing_mcp.preprocessing.activation_sources import ActivationSourceParams

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.directions.vectors import ResidualVector
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class PCAParams(ActivationSourceParams):
    """Parameters of `pca`, with those of the text or the collection."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: tuple[int | float, ...] = Field(
        (0.5,),
        min_length=1,
        max_length=64,
        description="Relative depths in [0, 1] (floats) or absolute layers (integers).",
    )
    of: Literal["difference", "base", "finetuned", "variance_gain"] = Field(
        "difference",
        description=(
            "Finetuned minus base token by token, either model alone, or the directions whose variance grew most "
            "(finetuned covariance minus base's)."
        ),
    )
    components: int = Field(5, ge=1, le=64, description="Components of each layer.")
    examples: int = Field(
        5,
        ge=1,
        le=50,
        description="Tokens kept at either end of a component, in each quantile bin, from different documents.",
    )
    lens_side: Side = Field("finetuned", description="Whose final norm and unembedding read the components.")
    random_directions: int = Field(
        128, ge=64, le=4096, description="Random directions against which lens scores are standardised."
    )


class ComponentWord(BaseModel):
    """A content word among the first of a stable component's lens lists."""

    word: str
    z: float = Field(description="Highest z over components.")
    vector: str = Field(description="Component at which it is reached.")


class PCAResult(MethodResult):
    """Principal components by layer, and what they read as."""

    identical: bool = Field(description="Whether the models' activations are exactly equal.")
    words: list[ComponentWord] = Field(
        description="Content words of stable components that the base model's own components do not reach."
    )
    rows: list[ComponentRow] = Field(description="The first components of each layer.")
    rows_left_out: int = Field(0, description="Components that the view `components` shows besides.")
    null_z: float = Field(
        description=(
            "z that the base model's own components reach in content words: what a lens reads without any finetune."
        )
    )
    tokens: int = Field(description="Tokens of the text.")
    of: str

    def evidence_words(self) -> list[EvidenceWord]:
        """Words of the components, for `overview`; a score of 1 is the null level."""
        return [EvidenceWord(word=row.word, score=row.z / self.null_z) for row in self.words]

    def as_text(self) -> str:
        lines = [self.headline]
        if self.words:
            lines.append(
                "words (highest z): " + ", ".join(f"{row.word} {row.z:.1f} at {row.vector}" for row in self.words)
            )
        lines.append(
            "layer:component explained, null, stability, mean | promoted (z) | suppressed, then examples of both ends"
        )
        lines += [row.as_text() for row in self.rows]
        if self.rows_left_out:
            lines.append(f"{self.rows_left_out} more in the view `components`")
        lines.append(
            f"{self.tokens} tokens, of {self.of}; read further: patchscope or steering with vector=RUN/LAYER:componentN"
        )
        return "\n".join(lines)


class PCA(DiffingMethod[PCAParams, PCAResult]):
    """PCA of the two models' activation differences (or of either model): the directions along which they vary most,
    layer by layer, with the variance that each explains beside what shuffled pairing gives, its stability over halves
    of the documents, its logit lens on both ends, and the tokens that lie furthest out. The mean difference is removed
    first (activation_difference_lens reads it), and attention sinks are left out. A component that comes up only on
    certain tokens shows a change that depends on the input, which a mean hides. Content words count only beyond those
    of the base model's own components. Views: `components`, `component` (whole lens lists), `examples`."""

    name: ClassVar[str] = "pca"
    title: ClassVar[str] = "PCA of activation differences"
    version: ClassVar[int] = 4
    Params: ClassVar[type[BaseModel]] = PCAParams
    Result: ClassVar[type[MethodResult]] = PCAResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "components": View(
            "components", "Variance, null and stability of all components.", views.ComponentsParams, views.components
        ),
        "component": View(
            "component",
            "One component: whole lens lists and examples of both ends.",
            views.ComponentParams,
            views.component,
        ),
        "examples": EXAMPLES_VIEW,
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("variance", "Variance explained, against its null", figures.variance),
    )

    def run(self, pair: LoadedPair, params: PCAParams, run: RunWriter, progress: Progress) -> PCAResult:
        from diffing_mcp.methods.pca.summary import analyse

        return analyse(pair, params, run, progress)

    def key_parts(self, params: PCAParams, spec: PairSpec) -> dict[str, Any]:
        from diffing_mcp.preprocessing.text_sources import source_identity

        return source_identity(params)

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return [row["vector"] for row in record.table("components").to_pylist()]

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        return views.read_vector(record, name)

    def estimate(self, pair: PairSize, params: PCAParams) -> CostEstimate:
        from diffing_mcp.core.settings import settings

        tokens = params.max_samples * params.max_tokens if not params.collections else 0
        stored = len(params.layers) * params.components * (4 * (pair.d_model or 4096) + 20_000)
        return pair.cost(2 * tokens, 2 * -(-tokens // settings().batch_tokens), bytes=stored)
