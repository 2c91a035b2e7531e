"""The declaration of `patchscope`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, PairSize, TokenList, View
from diffing_mcp.methods.patchscope.schema import PatchscopeParams, PatchscopeResult, PatchscopeToken, Sign
from diffing_mcp.methods.results import MethodResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair


class ScaleParams(BaseModel):
    """Which list to read."""

    model_config = ConfigDict(extra="forbid")

    scale: float | None = Field(None, description="A scale of the run; None: the one that was chosen for this sign.")
    sign: Sign = Field("promoted", description="`suppressed`: what the negative of the direction reads as.")
    ranked_by: Literal["probability", "z", "lift"] = Field(
        "probability",
        description=(
            "`z`: against random directions; `lift`: probability beyond random directions that every prompt gives."
        ),
    )
    k: int = Field(20, ge=1, le=100)
    content_only: bool = Field(False, description="Only content words.")


class ScaleView(BaseModel):
    """A list at one scale."""

    scale: float | None
    sign: Sign
    tokens: list[PatchscopeToken]


def scale(record: RunRecord, params: ScaleParams) -> ScaleView:
    """The list; empty for a zero direction.

    Raises:
        UnknownName: the run did not read at that scale.
    """
    rows = [row for row in record.table("tokens").to_pylist() if row["sign"] == params.sign]
    known = sorted({row["scale"] for row in rows})
    chosen = (
        params.scale
        if params.scale is not None
        else record.result_json()["scale" if params.sign == "promoted" else "suppressed_scale"]
    )
    if chosen is None:
        return ScaleView(scale=None, sign=params.sign, tokens=[])
    if chosen not in known:
        raise UnknownName(
            f"Run {record.id} read at no scale {chosen:g}; scales: {', '.join(f'{each:g}' for each in known)}."
        )
    rows = [row for row in rows if row["scale"] == chosen and (row["content"] or not params.content_only)]
    rows.sort(key=lambda row: -row[params.ranked_by])
    tokens = [
        PatchscopeToken(
            token=row["token"],
            probability=float(f"{row['probability']:.3g}"),
            z=round(row["z"], 2),
            content=row["content"],
        )
        for row in rows[: params.k]
    ]
    return ScaleView(scale=chosen, sign=params.sign, tokens=tokens)


def token_lists(record: RunRecord) -> list[TokenList]:
    """What the direction reads as at the chosen scale."""
    shown = scale(record, ScaleParams(k=100))
    if shown.scale is None:
        return []
    weights = [row.probability for row in shown.tokens]
    return [TokenList(name=f"scale {shown.scale:g}", tokens=[row.token for row in shown.tokens], weights=weights)]


def lists_by_scale(record: RunRecord, sign: Sign, k: int) -> dict[float, list[str]]:
    """The first `k` tokens of every scale of the run by probability, each as `scale` shows it; empty for a zero
    direction.
    """
    scales = sorted(set(record.table("tokens", ["scale"]).column("scale").to_pylist()))
    return {
        each: [row.token for row in scale(record, ScaleParams(scale=each, sign=sign, k=k)).tokens] for each in scales
    }


def agreement_figure(record: RunRecord) -> dict[str, Any]:
    """Agreement of the prompts on content words by scale, beside the best random direction."""
    rows = record.table("scales").to_pylist() if "scales" in record.manifest.tables else []
    data = []
    for sign in ("promoted", "suppressed"):
        chosen = [row for row in rows if row["sign"] == sign]
        data.append(
            {
                "type": "scatter",
                "name": sign,
                "x": [row["scale"] for row in chosen],
                "y": [row["agreement"] for row in chosen],
            }
        )
    chosen = [row for row in rows if row["sign"] == "promoted"]
    null = {
        "type": "scatter",
        "name": "best random direction",
        "x": [row["scale"] for row in chosen],
        "y": [row["null_agreement"] for row in chosen],
    }
    axes = {
        "xaxis": {"title": {"text": "norm, in norms of the replaced activations"}, "type": "log"},
        "yaxis": {"title": {"text": "shared probability"}},
    }
    return {"data": [*data, {**null, "line": {"dash": "dot"}}], "layout": axes}


_PROMPT_TOKENS = 20


class Patchscope(DiffingMethod[PatchscopeParams, PatchscopeResult]):
    """Patchscope: what a direction of the residual stream says when a model is made to repeat it."""

    name: ClassVar[str] = "patchscope"
    title: ClassVar[str] = "Patchscope"
    for_agents: ClassVar[str] = (
        "Patchscope: what a direction of the residual stream says when a model is made to repeat it. Short "
        "identity prompts (`man -> man`) end in a token whose activation at the direction's layer is replaced by "
        "the direction, at several norms and with both signs; the next-token probabilities are averaged over "
        "prompts. The scale is chosen without a language model: where all prompts agree most on content words, "
        "relative to random directions of the same norm. Works on any vector named RUN/NAME (mean differences, "
        "components, latents), on a token, or on a contrast of texts. Often reads topics where the logit lens "
        "shows fragments. `stands_out` says that the direction is readable, not that finetuning made it so: read "
        "a mean of the base, or another direction of the same layer, as a control. Views: `scale` (the whole list "
        "at one scale and sign)."
    )
    Params: ClassVar[type[BaseModel]] = PatchscopeParams
    Result: ClassVar[type[MethodResult]] = PatchscopeResult
    cost: ClassVar[Cost] = "seconds"
    in_overview: ClassVar[bool] = True
    needs_vector: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "scale": View(
            "scale",
            "Tokens at one scale, promoted or suppressed, by probability, z or shared lift.",
            ScaleParams,
            scale,
        )
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("agreement", "How readable the direction is by scale", agreement_figure),
    )

    def run(self, pair: LoadedPair, params: PatchscopeParams, run: RunWriter, progress: Progress) -> PatchscopeResult:
        from diffing_mcp.methods.patchscope.measure import read_direction

        return read_direction(pair, params, run, progress)

    def token_lists(self, record: RunRecord) -> Sequence[TokenList]:
        return token_lists(record)

    def interactions(self, params: PatchscopeParams) -> int:
        return len(params.prompts or ())

    def estimate(self, pair: PairSize, params: PatchscopeParams) -> CostEstimate:
        prompts = 3 if params.prompts is None else len(params.prompts)
        rows = (2 + params.random_directions) * len(params.scales)
        return pair.cost(
            prompts * (rows + _PROMPT_TOKENS), 2 * prompts * len(params.scales), bytes=40_000 * len(params.scales)
        )
