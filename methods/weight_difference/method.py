"""The declaration of `weight_difference`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.contract import CostEstimate, DiffingMethod, Figure, PairSize, by_name, view
from diffing_mcp.methods.directions.vectors import ResidualVector
from diffing_mcp.methods.views.figures import figure, trace
from diffing_mcp.methods.views.pages import PageParams, PageView, SearchedPageParams, page_size
from diffing_mcp.methods.views.rows import containing, highest_first, matching
from diffing_mcp.methods.weight_difference.schema import (
    LIST_DEPTH,
    DirectionRow,
    ModuleRow,
    ReadAs,
    WeightDifferenceParams,
    WeightDifferenceResult,
)

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair


class ModulesParams(SearchedPageParams):
    """Which parameters, in what order."""

    layer: int | None = Field(None, description="Only this absolute layer.")
    contains: str = Field("", max_length=100, description="Only modules whose name or part contains this.")
    sort: Literal["relative_norm", "norm", "effective_rank", "place"] = Field(
        "relative_norm", description="`place`: in the order of the model."
    )
    limit: int = page_size(20, 200)


@view("Norm, relative norm, effective rank and singular values of every parameter.", ModulesParams)
def modules(record: RunRecord, params: ModulesParams) -> PageView[ModuleRow]:
    rows = record.rows("modules", layer=params.layer)
    if params.sort != "place":
        rows = highest_first(rows, params.sort)
    return PageView[ModuleRow].of(rows, params, searched=("module", "part"))


class DirectionsParams(PageParams):
    """Whose directions."""

    layer: int | None = Field(None, description="Only this absolute layer.")
    module: str = Field("", max_length=100, description="Only modules whose name contains this, such as `down_proj`.")
    read_as: ReadAs | None = Field(
        None, description="Only what is written, what is read, or token vectors of embeddings."
    )
    content_only: bool = Field(False, description="Only content words.")
    k: int = Field(10, ge=1, le=LIST_DEPTH, description="Tokens of each list.")
    limit: int = page_size(5)


@view("What the singular directions of a module write or read, in tokens.", DirectionsParams)
def directions(record: RunRecord, params: DirectionsParams) -> PageView[DirectionRow]:
    """`+` and `-` are the two signs of each."""
    lists: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for token in record.rows("tokens", content=params.content_only or None):
        lists.setdefault((token["direction"], token["sign"]), []).append(token)
    rows = [
        row | {name: lists.get((place, sign), [])[: params.k] for name, sign in (("positive", "+"), ("negative", "-"))}
        for place, row in enumerate(record.rows("directions"))
    ]
    found = matching(containing(rows, ("module",), params.module), layer=params.layer, read_as=params.read_as)
    return PageView[DirectionRow].of(found, params)


def norms_figure(record: RunRecord) -> dict[str, Any]:
    """Relative norm of the change by layer and module (those of the blocks), as a heat map in percent."""
    rows = [row for row in record.rows("modules") if row["layer"] is not None]
    layers = sorted({row["layer"] for row in rows})
    largest = max((100 * row["relative_norm"] for row in rows), default=0.0)
    modules = list(dict.fromkeys(row["module"] for row in rows if row["norm"] > 0))
    found = {(row["module"], row["layer"]): 100 * row["relative_norm"] for row in rows}
    heat = trace(
        "heatmap",
        x=[str(layer) for layer in layers],
        y=modules,
        z=[[found.get((module, layer)) for layer in layers] for module in modules],
        colorscale="Viridis",
        zmin=0,
        zmax=largest or 1.0,
        colorbar={"title": {"text": "% of the base's norm"}},
    )
    return figure([heat], x={"title": "layer", "type": "category"}, y={"automargin": True, "autorange": "reversed"})


class WeightDifference(DiffingMethod[WeightDifferenceParams, WeightDifferenceResult]):
    """Weight difference: what the finetune changed in the weights themselves, without any text."""

    name = "weight_difference"
    title = "Weight difference"
    for_agents = (
        "For every matrix: norm of the change (also relative to the base), effective rank (participation ratio of "
        "the singular values) and largest singular values; LoRA adapters are decomposed exactly from their "
        "factors. The largest singular directions are read in words: what a matrix writes to the residual stream "
        "through the logit lens (both signs), what it reads against the input embedding. It shows where training "
        "acted, and a topic when one direction promotes several content words far beyond random directions. Sizes "
        "alone are no finding: any training changes weights. Directions are vectors RUN/LAYER:MODULE:N for "
        "`steering`, `patchscope` and `causal_effect`, which often read what the lens cannot. Views: `modules` "
        "(every parameter, sorted), `directions` (token lists of one module's directions)."
    )
    version = 2
    Params = WeightDifferenceParams
    Result = WeightDifferenceResult
    in_overview = True
    views = by_name(modules, directions)
    figures = (Figure("norms", "Change of the weights by layer and module", norms_figure),)

    def run(
        self, pair: LoadedPair, params: WeightDifferenceParams, run: RunWriter, progress: Progress
    ) -> WeightDifferenceResult:
        from diffing_mcp.methods.weight_difference.measure import measure

        return measure(pair, params, run, progress)

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        """Write directions, the most readable first (by the highest z of a content word), then by their share of the
        change.
        """
        highest: dict[int, float] = {}
        for token in record.rows("tokens", ["direction", "content", "z"], content=True):
            highest[token["direction"]] = max(highest.get(token["direction"], 0.0), token["z"])
        rows = [(place, row) for place, row in enumerate(record.rows("directions")) if row["vector"] is not None]
        rows.sort(key=lambda item: (-highest.get(item[0], 0.0), -item[1]["singular_value"]))
        return [row["vector"] for _, row in rows]

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        """A write direction of the run, a unit vector; strength 1 is the typical norm of the lens side's activations
        after its layer.

        Args:
            name: `LAYER:MODULE:N` as in `DirectionRow.vector`, for instance `14:mlp.down_proj:0`.

        Raises:
            InvalidInput: another form.
            UnknownName: no such direction in the run.
        """
        rows = {row["vector"]: row for row in record.rows("directions") if row["vector"] is not None}
        if name.count(":") != 2:
            raise InvalidInput(
                f"{name!r} is not of the form LAYER:MODULE:N, for instance {next(iter(rows), '14:mlp.down_proj:0')}."
            )
        if name not in rows:
            known = ", ".join(self.vector_names(record)[:5]) or "none"
            raise UnknownName(
                f"Run {record.id} has no direction {name!r}; some of its vectors: {known}. The view `directions` lists "
                "them."
            )
        row = rows[name]
        values = record.array("vectors")[row["array_row"]].astype(np.float32)
        what = f"singular direction {row['index']} written by {row['module']}, layer {row['layer']}"
        return ResidualVector(values, row["layer"], row["activation_norm"], what)

    def estimate(self, pair: PairSize, params: WeightDifferenceParams) -> CostEstimate:
        layers = (pair.num_layers or 32) if params.layers is None else len(params.layers)
        directions = 9 * layers * params.directions
        rows = params.random_directions + 2 * directions  # each costs the unembedding, about a token
        width = pair.d_model or 2048
        return pair.cost(0, 0, other_work=rows, bytes=directions * (4 * width + 2000))
