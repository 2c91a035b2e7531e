"""The declaration of `causal_effect`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.causal_effect.schema import CausalEffectParams, CausalEffectResult, SampleRow
from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, PairSize, View
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.preprocessing.corpora import corpus_identity
from diffing_mcp.preprocessing.text_sources import corpus_part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


_NAMES = {"tested": "tested directions", "difference": "differences of activations", "random": "Gaussian directions"}


class SamplesParams(BaseModel):
    """Which samples."""

    model_config = ConfigDict(extra="forbid")

    row: int = Field(0, ge=0, description="Row of the result.")
    order: Literal["change", "as_read"] = Field("change", description="`change`: largest loss change first.")
    offset: int = Field(0, ge=0)
    limit: int = Field(15, ge=1, le=100)


class SamplesView(BaseModel):
    """Losses of single texts."""

    vector: str
    rows: list[SampleRow]
    total: int


class NullsParams(BaseModel):
    """Which nulls."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["random", "difference"] = Field(
        "difference", description="Gaussian directions, or differences of random base activations."
    )
    layer: int | None = Field(None, description="Absolute layer; None: all layers of the run.")


class NullsView(BaseModel):
    """Loss changes, nats a token."""

    changes: list[float]


def samples(record: RunRecord, params: SamplesParams) -> SamplesView:
    """Losses of each text with one tested direction changed. Raises UnknownName for a row that is not there."""
    candidates = record.table("candidates").to_pylist()
    tested = [index for index, row in enumerate(candidates) if row["kind"] == "tested"]
    if params.row >= len(tested):
        raise UnknownName(f"Run {record.id} has {len(tested)} rows; they are counted from 0.")
    index = tested[params.row]
    tokens, target, other = (record.array(name) for name in ("tokens", "target_nats", "other_nats"))
    changed = record.array("changed_nats")[index]
    order = (
        np.argsort(-np.abs((changed - target) / tokens), kind="stable")
        if params.order == "change"
        else np.arange(len(tokens))
    )
    rows = [
        SampleRow(
            sample=int(sample),
            tokens=int(tokens[sample]),
            target_loss=round(float(target[sample] / tokens[sample]), 4),
            other_loss=round(float(other[sample] / tokens[sample]), 4),
            changed_loss=round(float(changed[sample] / tokens[sample]), 4),
        )
        for sample in order[params.offset : params.offset + params.limit]
    ]
    return SamplesView(vector=candidates[index]["label"], rows=rows, total=len(tokens))


def nulls(record: RunRecord, params: NullsParams) -> NullsView:
    """Loss changes of the null directions of one kind, largest in size first."""
    rows = [row for row in record.table("candidates").to_pylist() if row["kind"] == params.kind]
    layers = sorted({row["layer"] for row in rows})
    if params.layer is not None and params.layer not in layers:
        raise UnknownName(
            f"Run {record.id} tested no direction of layer {params.layer}; layers: "
            f"{', '.join(map(str, layers)) or 'none'}."
        )
    rows = [row for row in rows if params.layer in (None, row["layer"])]
    return NullsView(changes=sorted((round(row["loss_change"], 5) for row in rows), key=lambda change: -abs(change)))


def effects_figure(record: RunRecord) -> dict[str, Any]:
    """Loss changes of the tested directions over those of the nulls."""
    rows = record.table("candidates").to_pylist()
    data = [
        {
            "type": "box",
            "boxpoints": "all",
            "name": name,
            "x": [row["loss_change"] for row in rows if row["kind"] == kind],
            "text": [row["label"] for row in rows if row["kind"] == kind],
        }
        for kind, name in _NAMES.items()
    ]
    return {"data": data, "layout": {"xaxis": {"title": {"text": "change of the loss, nats a token"}}}}


class CausalEffect(DiffingMethod[CausalEffectParams, CausalEffectResult]):
    """Causal effect: whether a direction carries what the finetune changed."""

    name: ClassVar[str] = "causal_effect"
    title: ClassVar[str] = "Causal effect of directions"
    for_agents: ClassVar[str] = (
        "Causal effect: whether a direction carries what the finetune changed. In one model the projection of "
        "every activation on the direction is set to that of the other model on the same text (or to zero), and "
        "the change of the loss is compared with the gap between the models and with two nulls: random Gaussian "
        "directions and differences of random base activations. A direction that matters on text about what was "
        "taught and not on unrelated text belongs to the finetune: run it on both (`texts` takes your own). Small "
        "p-values come easily, because any direction along which the models differ does something; read the share "
        "of the gap and the size first. In chats the loss is that of the answer. Views: `samples` (losses of each "
        "text), `nulls` (loss changes of all null directions)."
    )
    version: ClassVar[int] = 3
    Params: ClassVar[type[BaseModel]] = CausalEffectParams
    Result: ClassVar[type[MethodResult]] = CausalEffectResult
    cost: ClassVar[Cost] = "long"
    needs_vector: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "samples": View("samples", "Losses of each text with one of the directions changed.", SamplesParams, samples),
        "nulls": View("nulls", "Loss changes of the null directions, largest first.", NullsParams, nulls),
    }
    figures: ClassVar[Sequence[Figure]] = (Figure("effects", "Loss changes beside their nulls", effects_figure),)

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
