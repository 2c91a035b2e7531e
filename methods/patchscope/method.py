"""The declaration of `patchscope`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import CostEstimate, DiffingMethod, Figure, PairSize, TokenList, by_name, view
from diffing_mcp.methods.patchscope.schema import PatchscopeParams, PatchscopeResult, PatchscopeToken, Sign
from diffing_mcp.methods.views.figures import figure, trace
from diffing_mcp.methods.views.pages import ViewParams
from diffing_mcp.methods.views.rows import grouped, held, highest_first, matching

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair


class ScaleParams(ViewParams):
    """Which list to read."""

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


@view("Tokens at one scale, promoted or suppressed, by probability, z or shared lift.", ScaleParams)
def scale(record: RunRecord, params: ScaleParams) -> ScaleView:
    """The list; empty for a zero direction.

    Raises:
        UnknownName: the run did not read at that scale.
    """
    rows = record.rows("tokens", sign=params.sign)
    chosen = params.scale
    if chosen is None:
        chosen = record.result_json()["scale" if params.sign == "promoted" else "suppressed_scale"]
    if chosen is None:
        return ScaleView(scale=None, sign=params.sign, tokens=[])
    held(record, "scale", chosen, sorted({row["scale"] for row in rows}))
    rows = matching(rows, scale=chosen, content=params.content_only or None)
    tokens = [
        PatchscopeToken(
            token=row["token"],
            probability=float(f"{row['probability']:.3g}"),
            z=round(row["z"], 2),
            content=row["content"],
        )
        for row in highest_first(rows, params.ranked_by)[: params.k]
    ]
    return ScaleView(scale=chosen, sign=params.sign, tokens=tokens)


def lists_by_scale(record: RunRecord, sign: Sign, k: int) -> dict[float, list[str]]:
    """The first `k` tokens of every scale of the run by probability, each as `scale` shows it; empty for a zero
    direction.
    """
    scales = sorted({row["scale"] for row in record.rows("tokens", ["scale"])})
    return {
        each: [row.token for row in scale(record, ScaleParams(scale=each, sign=sign, k=k)).tokens] for each in scales
    }


def agreement_figure(record: RunRecord) -> dict[str, Any]:
    """Agreement of the prompts on content words by scale, beside the best random direction."""
    by_sign = grouped(record.rows("scales") if "scales" in record.manifest.tables else [], "sign")
    signs = [by_sign.get(sign, []) for sign in ("promoted", "suppressed")]
    return figure(
        [
            trace("curve", signs[0], "promoted", x="scale", y="agreement"),
            trace("curve", signs[1], "suppressed", x="scale", y="agreement"),
            trace("curve", signs[0], "best random direction", x="scale", y="null_agreement", line={"dash": "dot"}),
        ],
        x={"title": "norm, in norms of the replaced activations", "type": "log"},
        y="shared probability",
    )


_PROMPT_TOKENS = 20


class Patchscope(DiffingMethod[PatchscopeParams, PatchscopeResult]):
    """Patchscope: what a direction of the residual stream says when a model is made to repeat it."""

    name = "patchscope"
    title = "Patchscope"
    no_verdict = "whether the direction can be read"
    papers = (
        "Ghandeharioun et al. 2024, arXiv 2401.06102",
        "Minder et al. 2025, arXiv 2510.13900",
    )
    for_agents = (
        "Short identity prompts (`man -> man`) end in a token whose activation at the direction's layer is "
        "replaced by the direction, at several norms and with both signs; the next-token probabilities are "
        "averaged over prompts. The scale is chosen without a language model: where all prompts agree most on "
        "content words, relative to random directions of the same norm. Works on any vector named RUN/NAME (mean "
        "differences, components, latents), on a token, or on a contrast of texts. Often reads topics where the "
        "logit lens shows fragments. `stands_out` says that the direction is readable, not that finetuning made "
        "it so: read a mean of the base, or another direction of the same layer, as a control. Views: `scale` "
        "(the whole list at one scale and sign)."
    )
    Params = PatchscopeParams
    Result = PatchscopeResult
    cost = "seconds"
    in_overview = True
    needs_vector = True
    views = by_name(scale)
    figures = (Figure("agreement", "How readable the direction is by scale", agreement_figure),)

    def run(self, pair: LoadedPair, params: PatchscopeParams, run: RunWriter, progress: Progress) -> PatchscopeResult:
        from diffing_mcp.methods.patchscope.measure import read_direction

        return read_direction(pair, params, run, progress)

    def token_lists(self, record: RunRecord) -> Sequence[TokenList]:
        """What the direction reads as at the chosen scale."""
        shown = scale(record, ScaleParams(k=100))
        if shown.scale is None:
            return []
        weights = [row.probability for row in shown.tokens]
        return [TokenList(name=f"scale {shown.scale:g}", tokens=[row.token for row in shown.tokens], weights=weights)]

    def interactions(self, params: PatchscopeParams) -> int:
        return len(params.prompts or ())

    def estimate(self, pair: PairSize, params: PatchscopeParams) -> CostEstimate:
        prompts = 3 if params.prompts is None else len(params.prompts)
        rows = (2 + params.random_directions) * len(params.scales)
        return pair.cost(
            prompts * (rows + _PROMPT_TOKENS), 2 * prompts * len(params.scales), bytes=40_000 * len(params.scales)
        )
