"""The declaration of `pca`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.contract import CostEstimate, DiffingMethod, Figure, PairSize, by_name, view
from diffing_mcp.methods.directions.lens_words import LensToken
from diffing_mcp.methods.directions.vectors import ResidualVector
from diffing_mcp.methods.examples.views import example_row, examples
from diffing_mcp.methods.pca.schema import ENDS, ComponentRow, PCAParams, PCAResult, ProjectionExample, feature_name
from diffing_mcp.methods.views.figures import figure, trace
from diffing_mcp.methods.views.pages import ViewParams
from diffing_mcp.methods.views.rows import grouped, held, matching

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class ComponentsParams(ViewParams):
    """Which components."""

    layer: int | None = Field(None, description="Absolute layer; None: all layers of the run.")
    min_stability: float = Field(0.0, ge=0, le=1)


class ComponentsView(BaseModel):
    """Figures of the components, without tokens and examples."""

    rows: list[ComponentRow]


@view("Variance, null and stability of all components.", ComponentsParams)
def components(record: RunRecord, params: ComponentsParams) -> ComponentsView:
    empty: dict[str, list[str]] = {"promoted": [], "suppressed": [], "positive": [], "negative": []}
    rows = [ComponentRow.model_validate(row | empty) for row in record.rows("components")]
    if params.layer is not None:
        held(record, "layer", params.layer, sorted({row.layer for row in rows}))
    return ComponentsView(
        rows=[row for row in rows if params.layer in (None, row.layer) and row.stability >= params.min_stability]
    )


class ComponentParams(ViewParams):
    """Which component."""

    layer: int | None = Field(None, description="Absolute layer; None: the first one of the run.")
    component: int = Field(1, ge=1, description="Counted from 1.")
    sign: Literal["both", "promoted", "suppressed"] = Field("both", description="Ends to list.")
    k: int = Field(20, ge=1, le=50, description="Lens tokens of each end.")


class ComponentView(BaseModel):
    """One component in full."""

    row: ComponentRow


@view("One component: whole lens lists and examples of both ends.", ComponentParams)
def component(record: RunRecord, params: ComponentParams) -> ComponentView:
    row = _find(record, params.layer, params.component)
    lens = record.rows("lens", layer=row.layer, component=row.component)
    update: dict[str, list[LensToken] | list[ProjectionExample]] = {}
    for sign, end in zip(("promoted", "suppressed"), ENDS, strict=True):
        if params.sign in ("both", sign):
            update[sign] = [LensToken.model_validate(each) for each in matching(lens, sign=sign)[: params.k]]
            update[end] = _examples(record, row, end)
    return ComponentView(row=row.model_copy(update=update))


def _find(record: RunRecord, layer: int | None, component: int) -> ComponentRow:
    rows = components(record, ComponentsParams()).rows
    wanted = layer if layer is not None or not rows else rows[0].layer
    for row in rows:
        if (row.layer, row.component) == (wanted, component):
            return row
    known = ", ".join(row.vector for row in rows) or "none: the models are identical"
    raise UnknownName(f"Run {record.id} holds no component {component} at layer {wanted}; it holds {known}.")


def _examples(record: RunRecord, row: ComponentRow, end: str) -> list[ProjectionExample]:
    """The furthest tokens of one end; none when no token lies there."""
    try:
        page = record.examples().examples(
            feature_name(row.layer, row.component, end), limit=record.manifest.params["examples"]
        )
    except UnknownName:
        return []
    sign = 1 if end == ENDS[0] else -1
    return [
        ProjectionExample(projection=round(sign * example.score, 4), context=example_row(example).text)
        for example in page.rows
    ]


def variance_figure(record: RunRecord) -> dict[str, Any]:
    """Share of variance by component, beside its null, one pair of traces a layer."""
    data = []
    for layer, rows in grouped(record.rows("components"), "layer").items():
        stable = [f"stability {row['stability']:.2f}" for row in rows]
        data.append(trace("bars", rows, f"layer {layer}", x="component", y="explained", text=stable))
        data.append(trace("line", rows, f"null, layer {layer}", x="component", y="null_explained"))
    return figure(data, x="component", y="share of variance")


class PCA(DiffingMethod[PCAParams, PCAResult]):
    """PCA of the two models' activation differences (or of either model): the directions along which they vary most,
    layer by layer, with the variance that each explains beside what shuffled pairing gives, its stability over
    halves of the documents, its logit lens on both ends, and the tokens that lie furthest out.
    """

    name = "pca"
    title = "PCA of activation differences"
    for_agents = (
        "The mean difference is removed first (activation_difference_lens reads it), and attention sinks are left "
        "out. A component that comes up only on certain tokens shows a change that depends on the input, which a "
        "mean hides. Content words count only beyond those of the base model's own components. Views: "
        "`components`, `component` (whole lens lists), `examples`."
    )
    version = 5
    Params = PCAParams
    Result = PCAResult
    views = by_name(components, component, examples)
    figures = (Figure("variance", "Variance explained, against its null", variance_figure),)

    def run(self, pair: LoadedPair, params: PCAParams, run: RunWriter, progress: Progress) -> PCAResult:
        from diffing_mcp.methods.pca.measure import analyse

        return analyse(pair, params, run, progress)

    def key_parts(self, params: PCAParams, spec: PairSpec) -> dict[str, Any]:
        from diffing_mcp.preprocessing.text_sources import source_identity

        return source_identity(params)

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return [row["vector"] for row in record.rows("components", ["vector"])]

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        """A component of the run, of unit length; strength 1 is the mean of its furthest projections, of either sign.

        Args:
            name: `LAYER:componentN` as in `ComponentRow.vector`, for instance `14:component1`.

        Raises:
            InvalidInput: another form.
            UnknownName: a layer or component that the run does not hold.
        """
        found = re.fullmatch(r"(\d+):component(\d+)", name)
        if found is None:
            raise InvalidInput(f"{name!r} is not of the form LAYER:componentN, for instance 14:component1.")
        row = component(record, ComponentParams(layer=int(found[1]), component=max(1, int(found[2])))).row
        lengths = [abs(example.projection) for example in (*row.positive, *row.negative)]
        strength = sum(lengths) / len(lengths) if lengths else 1.0
        values = record.array(f"components_{row.layer}")[row.component - 1]
        return ResidualVector(values, row.layer, strength, f"principal component {row.component}, layer {row.layer}")

    def estimate(self, pair: PairSize, params: PCAParams) -> CostEstimate:
        from diffing_mcp.core.settings import settings

        tokens = params.max_samples * params.max_tokens if not params.collections else 0
        stored = len(params.layers) * params.components * (4 * (pair.d_model or 4096) + 20_000)
        return pair.cost(2 * tokens, 2 * -(-tokens // settings().batch_tokens), bytes=stored)
