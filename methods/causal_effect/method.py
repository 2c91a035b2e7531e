"""The declaration of `causal_effect`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.causal_effect.schema import CausalEffectParams, CausalEffectResult, SampleRow
from diffing_mcp.methods.contract import CostEstimate, DiffingMethod, Figure, PairSize, by_name, view
from diffing_mcp.methods.views.figures import figure, trace
from diffing_mcp.methods.views.pages import PageParams, PageView, ViewParams, page_size
from diffing_mcp.methods.views.rows import grouped, held, matching
from diffing_mcp.preprocessing.corpora import corpus_identity
from diffing_mcp.preprocessing.text_sources import corpus_part

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


_NAMES = {"tested": "tested directions", "difference": "differences of activations", "random": "Gaussian directions"}


class SamplesParams(PageParams):
    """Which samples."""

    row: int = Field(0, ge=0, description="Row of the result.")
    order: Literal["change", "as_read"] = Field("change", description="`change`: largest loss change first.")
    limit: int = page_size(15)


class SamplesView(PageView[SampleRow]):
    """Losses of single texts."""

    vector: str


@view("Losses of each text with one of the directions changed.", SamplesParams)
def samples(record: RunRecord, params: SamplesParams) -> SamplesView:
    """Raises UnknownName for a row that is not there."""
    candidates = record.rows("candidates")
    tested = [index for index, row in enumerate(candidates) if row["kind"] == "tested"]
    if params.row >= len(tested):
        raise UnknownName(f"Run {record.id} has {len(tested)} rows; they are counted from 0.")
    index = tested[params.row]
    tokens = record.array("tokens")
    target, other, changed = (
        nats / tokens
        for nats in (record.array("target_nats"), record.array("other_nats"), record.array("changed_nats")[index])
    )
    order = np.argsort(-np.abs(changed - target), kind="stable") if params.order == "change" else np.arange(len(tokens))

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        losses = {"target_loss": target, "other_loss": other, "changed_loss": changed}
        rounded = {name: round(float(nats[row["sample"]]), 4) for name, nats in losses.items()}
        return row | rounded | {"tokens": int(tokens[row["sample"]])}

    rows = [{"sample": sample} for sample in order.tolist()]
    return SamplesView.of(rows, params, shown=shown, vector=candidates[index]["label"])


class NullsParams(ViewParams):
    """Which nulls."""

    kind: Literal["random", "difference"] = Field(
        "difference", description="Gaussian directions, or differences of random base activations."
    )
    layer: int | None = Field(None, description="Absolute layer; None: all layers of the run.")


class NullsView(BaseModel):
    """Loss changes, nats a token."""

    changes: list[float]


@view("Loss changes of the null directions, largest first.", NullsParams)
def nulls(record: RunRecord, params: NullsParams) -> NullsView:
    rows = record.rows("candidates", kind=params.kind)
    if params.layer is not None:
        held(record, "layer", params.layer, sorted({row["layer"] for row in rows}))
    changes = [round(row["loss_change"], 5) for row in matching(rows, layer=params.layer)]
    return NullsView(changes=sorted(changes, key=lambda change: -abs(change)))


def effects_figure(record: RunRecord) -> dict[str, Any]:
    """Loss changes of the tested directions over those of the nulls."""
    by_kind = grouped(record.rows("candidates"), "kind")
    boxes = [
        trace("boxes", by_kind.get(kind, []), name, x="loss_change", text="label") for kind, name in _NAMES.items()
    ]
    return figure(boxes, x="change of the loss, nats a token")


class CausalEffect(DiffingMethod[CausalEffectParams, CausalEffectResult]):
    """Causal effect: whether a direction carries what the finetune changed."""

    name = "causal_effect"
    title = "Causal effect of directions"
    for_agents = (
        "In one model the projection of every activation on the direction is set to that of the other model on "
        "the same text (or to zero), and the change of the loss is compared with the gap between the models and "
        "with two nulls: random Gaussian directions and differences of random base activations. A direction that "
        "matters on text about what was taught and not on unrelated text belongs to the finetune: run it on both "
        "(`texts` takes your own). Small p-values come easily, because any direction along which the models "
        "differ does something; read the share of the gap and the size first. In chats the loss is that of the "
        "answer. Views: `samples` (losses of each text), `nulls` (loss changes of all null directions)."
    )
    version = 4
    Params = CausalEffectParams
    Result = CausalEffectResult
    cost = "long"
    needs_vector = True
    views = by_name(samples, nulls)
    figures = (Figure("effects", "Loss changes beside their nulls", effects_figure),)

    def run(
        self, pair: LoadedPair, params: CausalEffectParams, run: RunWriter, progress: Progress
    ) -> CausalEffectResult:
        from diffing_mcp.methods.causal_effect.measure import measure

        return measure(pair, params, run, progress)

    def interactions(self, params: CausalEffectParams) -> int:
        return len(params.texts or ())

    def key_parts(self, params: CausalEffectParams, spec: PairSpec) -> dict[str, Any]:
        return {} if params.texts is not None else {"corpus": corpus_identity(corpus_part(params))}

    def estimate(self, pair: PairSize, params: CausalEffectParams) -> CostEstimate:
        samples = params.max_samples if params.texts is None else len(params.texts)
        tested = 1 if params.subspace else len(params.vectors)
        # Vectors may lie in different layers, each with nulls of its own; how many is known only once they are looked
        # up.
        passes = 2 + tested + 2 * params.random_directions
        batches = -(-samples * params.max_tokens // settings().batch_tokens)
        return pair.cost(samples * params.max_tokens * passes, passes * batches, bytes=16 * samples * passes)
