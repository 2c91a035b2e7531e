"""The declaration of `weight_difference`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, PairSize, View
from diffing_mcp.methods.directions.lens_words import LensToken
from diffing_mcp.methods.directions.vectors import ResidualVector
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.weight_difference.schema import (
    LIST_DEPTH,
    DirectionRow,
    ModuleRow,
    ReadAs,
    WeightDifferenceParams,
    WeightDifferenceResult,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair


class ModulesParams(BaseModel):
    """Which parameters, in what order."""

    model_config = ConfigDict(extra="forbid")

    layer: int | None = Field(None, description="Only this absolute layer.")
    contains: str = Field("", max_length=100, description="Only modules whose name or part contains this.")
    sort: Literal["relative_norm", "norm", "effective_rank", "place"] = Field(
        "relative_norm", description="`place`: in the order of the model."
    )
    offset: int = Field(0, ge=0)
    limit: int = Field(20, ge=1, le=200)


class ModulesView(BaseModel):
    """A page of parameters."""

    rows: list[ModuleRow]
    total: int
    next_offset: int | None


class DirectionsParams(BaseModel):
    """Whose directions."""

    model_config = ConfigDict(extra="forbid")

    layer: int | None = Field(None, description="Only this absolute layer.")
    module: str = Field("", max_length=100, description="Only modules whose name contains this, such as `down_proj`.")
    read_as: ReadAs | None = Field(
        None, description="Only what is written, what is read, or token vectors of embeddings."
    )
    content_only: bool = Field(False, description="Only content words.")
    k: int = Field(10, ge=1, le=LIST_DEPTH, description="Tokens of each list.")
    offset: int = Field(0, ge=0)
    limit: int = Field(5, ge=1, le=100)


class DirectionsView(BaseModel):
    """A page of directions; `+` and `-` are the two signs of each."""

    rows: list[DirectionRow]
    total: int
    next_offset: int | None


def modules(record: RunRecord, params: ModulesParams) -> ModulesView:
    """A page of the parameters of the run."""
    rows = [ModuleRow.model_validate(row) for row in record.table("modules").to_pylist()]
    rows = [
        row
        for row in rows
        if params.layer in (None, row.layer) and (params.contains in row.module or params.contains == row.part)
    ]
    if params.sort != "place":
        rows.sort(key=lambda row: -(getattr(row, params.sort) or 0.0))
    end = min(len(rows), params.offset + params.limit)
    return ModulesView(rows=rows[params.offset : end], total=len(rows), next_offset=end if end < len(rows) else None)


def directions(record: RunRecord, params: DirectionsParams) -> DirectionsView:
    """A page of directions with their token lists."""
    rows = list(enumerate(record.table("directions").to_pylist()))
    rows = [
        (place, row)
        for place, row in rows
        if params.layer in (None, row["layer"])
        and params.module in row["module"]
        and params.read_as in (None, row["read_as"])
    ]
    end = min(len(rows), params.offset + params.limit)
    page = rows[params.offset : end]
    wanted = {place for place, _ in page}
    lists: dict[tuple[int, str], list[LensToken]] = {}
    for token in record.table("tokens").to_pylist():
        if token["direction"] in wanted and (token["content"] or not params.content_only):
            lists.setdefault((token["direction"], token["sign"]), []).append(LensToken.model_validate(token))
    found = [
        DirectionRow.model_validate(
            row
            | {"positive": lists.get((place, "+"), [])[: params.k], "negative": lists.get((place, "-"), [])[: params.k]}
        )
        for place, row in page
    ]
    return DirectionsView(rows=found, total=len(rows), next_offset=end if end < len(rows) else None)


def vector_names(record: RunRecord) -> Sequence[str]:
    """Write directions, the most readable first (by the highest z of a content word), then by their share of the
    change.
    """
    highest: dict[int, float] = {}
    for token in record.table("tokens", ["direction", "content", "z"]).to_pylist():
        if token["content"]:
            highest[token["direction"]] = max(highest.get(token["direction"], 0.0), token["z"])
    rows = [
        (place, row) for place, row in enumerate(record.table("directions").to_pylist()) if row["vector"] is not None
    ]
    return [
        row["vector"]
        for place, row in sorted(rows, key=lambda item: (-highest.get(item[0], 0.0), -item[1]["singular_value"]))
    ]


def read_vector(record: RunRecord, name: str) -> ResidualVector:
    """A write direction of the run, a unit vector; strength 1 is the typical norm of the lens side's activations after
    its layer.

    Args:
        name: `LAYER:MODULE:N` as in `DirectionRow.vector`, for instance `14:mlp.down_proj:0`.

    Raises:
        InvalidInput: another form.
        UnknownName: no such direction in the run.
    """
    rows: dict[str, dict[str, Any]] = {
        row["vector"]: row for row in record.table("directions").to_pylist() if row["vector"] is not None
    }
    if name.count(":") != 2:
        raise InvalidInput(
            f"{name!r} is not of the form LAYER:MODULE:N, for instance {next(iter(rows), '14:mlp.down_proj:0')}."
        )
    if name not in rows:
        known = ", ".join(vector_names(record)[:5]) or "none"
        raise UnknownName(
            f"Run {record.id} has no direction {name!r}; some of its vectors: {known}. The view `directions` lists "
            "them."
        )
    row = rows[name]
    values = record.array("vectors")[row["array_row"]].astype(np.float32)
    return ResidualVector(
        values,
        row["layer"],
        row["activation_norm"],
        f"singular direction {row['index']} written by {row['module']}, layer {row['layer']}",
    )


def norms_figure(record: RunRecord) -> dict[str, Any]:
    """Relative norm of the change by layer and module (those of the blocks), as a heat map in percent."""
    rows = [row for row in record.table("modules").to_pylist() if row["layer"] is not None]
    layers = sorted({row["layer"] for row in rows})
    largest = max((100 * row["relative_norm"] for row in rows), default=0.0)
    modules = list(dict.fromkeys(row["module"] for row in rows if row["norm"] > 0))
    found = {(row["module"], row["layer"]): 100 * row["relative_norm"] for row in rows}
    return {
        "data": [
            {
                "type": "heatmap",
                "x": [str(layer) for layer in layers],
                "y": modules,
                "z": [[found.get((module, layer)) for layer in layers] for module in modules],
                "colorscale": "Viridis",
                "zmin": 0,
                "zmax": largest or 1.0,
                "colorbar": {"title": {"text": "% of the base's norm"}},
            }
        ],
        "layout": {
            "xaxis": {"title": {"text": "layer"}, "type": "category"},
            "yaxis": {"automargin": True, "autorange": "reversed"},
        },
    }


class WeightDifference(DiffingMethod[WeightDifferenceParams, WeightDifferenceResult]):
    """Weight difference: what the finetune changed in the weights themselves, without any text."""

    name: ClassVar[str] = "weight_difference"
    title: ClassVar[str] = "Weight difference"
    for_agents: ClassVar[str] = (
        "Weight difference: what the finetune changed in the weights themselves, without any text. For every "
        "matrix: norm of the change (also relative to the base), effective rank (participation ratio of the "
        "singular values) and largest singular values; LoRA adapters are decomposed exactly from their factors. "
        "The largest singular directions are read in words: what a matrix writes to the residual stream through "
        "the logit lens (both signs), what it reads against the input embedding. It shows where training acted, "
        "and a topic when one direction promotes several content words far beyond random directions. Sizes alone "
        "are no finding: any training changes weights. Directions are vectors RUN/LAYER:MODULE:N for `steering`, "
        "`patchscope` and `causal_effect`, which often read what the lens cannot. Views: `modules` (every "
        "parameter, sorted), `directions` (token lists of one module's directions)."
    )
    Params: ClassVar[type[BaseModel]] = WeightDifferenceParams
    Result: ClassVar[type[MethodResult]] = WeightDifferenceResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "modules": View(
            "modules",
            "Norm, relative norm, effective rank and singular values of every parameter.",
            ModulesParams,
            modules,
        ),
        "directions": View(
            "directions",
            "What the singular directions of a module write or read, in tokens.",
            DirectionsParams,
            directions,
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (Figure("norms", "Change of the weights by layer and module", norms_figure),)

    def run(
        self, pair: LoadedPair, params: WeightDifferenceParams, run: RunWriter, progress: Progress
    ) -> WeightDifferenceResult:
        from diffing_mcp.methods.weight_difference.measure import measure

        return measure(pair, params, run, progress)

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return vector_names(record)

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        return read_vector(record, name)

    def estimate(self, pair: PairSize, params: WeightDifferenceParams) -> CostEstimate:
        layers = (pair.num_layers or 32) if params.layers is None else len(params.layers)
        directions = 9 * layers * params.directions
        rows = params.random_directions + 2 * directions  # each costs the unembedding, about a token
        width = pair.d_model or 2048
        return pair.cost(0, 0, other_work=rows, bytes=directions * (4 * width + 2000))
