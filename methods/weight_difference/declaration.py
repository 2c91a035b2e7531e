"""Declaration of the weight difference: parameters, result, views and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

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
from diffing_mcp.methods.texts.words import EvidenceWord
from diffing_mcp.methods.weight_difference import figures, views
from diffing_mcp.methods.weight_difference.rows import DirectionRow, DirectionWord, ModuleRow, PartRow
from diffing_mcp.model_pairs.specs import Side

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.directions.vectors import ResidualVector
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair

Name = Annotated[str, Field(min_length=1, max_length=100)]


class WeightDifferenceParams(MethodParams):
    """Parameters of `weight_difference`."""

    layers: tuple[int | float, ...] | None = Field(
        None,
        min_length=1,
        description=(
            "Relative depths in [0, 1] (floats) or absolute layers (integers); None: every weight of the model."
        ),
    )
    modules: tuple[Name, ...] | None = Field(
        None,
        min_length=1,
        max_length=32,
        description="Only these: `attention`, `mlp`, `norm`, `embedding`, `unembedding`, or names such as `down_proj`.",
    )
    directions: int = Field(3, ge=1, le=16, description="Largest singular directions read of each matrix.")
    lens_side: Side = Field("finetuned", description="Whose norm, unembedding and input embedding read the directions.")
    random_directions: int = Field(
        128, ge=64, le=4096, description="Random directions against which lens scores are standardised."
    )
    list_length: int = Field(6, ge=1, le=20, description="Tokens of each list in the result.")


class WeightDifferenceResult(MethodResult):
    """How far the weights moved, where, in how many directions, and what those read as."""

    identical: bool = Field(description="Whether every weight is exactly the same.")
    relative_norm: float = Field(
        description="Norm of the whole difference over that of the base's weights, of the chosen modules."
    )
    words: list[DirectionWord] = Field(
        description="Content words of the directions that are written, those of readable directions first."
    )
    parts: list[PartRow]
    modules: list[ModuleRow] = Field(description="The parameters that moved most, relative to the base.")
    directions: list[DirectionRow] = Field(description="The most readable directions.")
    lens_side: Side

    def evidence_words(self) -> list[EvidenceWord]:
        """Words of readable write directions, for `overview`; a score of 1 is where words that mean nothing end."""
        from diffing_mcp.methods.directions.lens_words import NULL_Z
        from diffing_mcp.methods.weight_difference.judgement import NEEDED_STRONG_WORDS

        return [
            EvidenceWord(word=row.word, score=row.z / NULL_Z)
            for row in self.words
            if row.together >= NEEDED_STRONG_WORDS
        ]

    def as_text(self) -> str:
        lines = [self.headline]
        if self.identical:
            return self.headline
        if self.words:
            listed = (
                f"{row.word} {row.z:.1f} ({row.direction}{f', {row.together} strong together' if row.together else ''})"
                for row in self.words
            )
            lines.append("words written (highest z): " + ", ".join(listed))
        lines += [
            (
                f"{row.part}: {row.changed} of {row.parameters} tensors changed, {100 * row.relative_norm:.3g} % of "
                f"the base's norm, {100 * row.share:.0f} % of the change"
            )
            for row in self.parts
        ]
        lines.append("moved most: " + "; ".join(row.as_text() for row in self.modules))
        lines += [row.as_text() for row in self.directions]
        lines.append(
            "signs of directions mean nothing by themselves; read on with patchscope or steering: "
            "vector=RUN/LAYER:MODULE:N"
        )
        return "\n".join(lines)


class WeightDifference(DiffingMethod[WeightDifferenceParams, WeightDifferenceResult]):
    """Weight difference: what the finetune changed in the weights themselves, without any text. For every matrix: norm
    of the change (also relative to the base), effective rank (participation ratio of the singular values) and largest
    singular values; LoRA adapters are decomposed exactly from their factors. The largest singular directions are read
    in words: what a matrix writes to the residual stream through the logit lens (both signs), what it reads against the
    input embedding. It shows where training acted, and a topic when one direction promotes several content words far
    beyond random directions. Sizes alone are no finding: any training changes weights. Directions are vectors
    RUN/LAYER:MODULE:N for `steering`, `patchscope` and `causal_effect`, which often read what the lens cannot. Views:
    `modules` (every parameter, sorted), `directions` (token lists of one module's directions)."""

    name: ClassVar[str] = "weight_difference"
    title: ClassVar[str] = "Weight difference"
    Params: ClassVar[type[BaseModel]] = WeightDifferenceParams
    Result: ClassVar[type[MethodResult]] = WeightDifferenceResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "modules": View(
            "modules",
            "Norm, relative norm, effective rank and singular values of every parameter.",
            views.ModulesParams,
            views.modules,
        ),
        "directions": View(
            "directions",
            "What the singular directions of a module write or read, in tokens.",
            views.DirectionsParams,
            views.directions,
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (Figure("norms", "Change of the weights by layer and module", figures.norms),)

    def run(
        self, pair: LoadedPair, params: WeightDifferenceParams, run: RunWriter, progress: Progress
    ) -> WeightDifferenceResult:
        from diffing_mcp.methods.weight_difference.measure import measure

        return measure(pair, params, run, progress)

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return views.vector_names(record)

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        return views.read_vector(record, name)

    def estimate(self, pair: PairSize, params: WeightDifferenceParams) -> CostEstimate:
        layers = (pair.num_layers or 32) if params.layers is None else len(params.layers)
        directions = 9 * layers * params.directions
        rows = params.random_directions + 2 * directions  # each costs the unembedding, about a token
        width = pair.d_model or 2048
        return pair.cost(0, 0, other_work=rows, bytes=directions * (4 * width + 2000))
