"""Declaration of patchscope: parameters, result, views and figures. Torch-free."""

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
from diffing_mcp.methods.directions.vectors import VECTOR_HELP, VectorSource
from diffing_mcp.methods.patchscope import figures, views
from diffing_mcp.methods.patchscope.rows import PatchscopeToken, ScaleRow
from diffing_mcp.methods.texts.words import EvidenceWord
from diffing_mcp.model_pairs.specs import Side

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter, TokenList
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair

SCALES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)
_PROMPT_TOKENS = 20


class PatchscopeParams(MethodParams):
    """Parameters of `patchscope`."""

    vector: VectorSource = Field(description=VECTOR_HELP)
    side: Side = Field("finetuned", description="The model that reads the direction.")
    scales: tuple[Annotated[float, Field(gt=0, le=1000)], ...] = Field(
        SCALES,
        min_length=1,
        max_length=40,
        description="Norms of the direction to try, in mean norms of the activations it replaces.",
    )
    prompts: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        max_length=8,
        description="Own prompts, whose last token is replaced; None: three identity prompts (`man -> man` and so on).",
    )
    intersection_top_k: int = Field(
        16384, ge=1, description="A token counts only when every prompt has it among its first so many."
    )
    random_directions: int = Field(
        16, ge=4, le=256, description="Gaussian directions of the same norms that results are compared with."
    )
    list_length: int = Field(12, ge=1, le=50, description="Tokens of each list in the result.")
    seed: int = Field(0, ge=0, description="Seed of the random directions.")


class PatchscopeResult(MethodResult):
    """What a direction reads as."""

    layer: int = Field(description="Absolute layer whose output is replaced.")
    scale: float | None = Field(
        description=(
            "The scale chosen: where prompts agree most, relative to random directions; None for a zero direction."
        )
    )
    promoted: list[PatchscopeToken] = Field(
        description="Tokens that the direction reads as at that scale, most probable first."
    )
    suppressed_scale: float | None = Field(description="The scale chosen for the negative of the direction.")
    suppressed: list[PatchscopeToken] = Field(description="Tokens that the negative of the direction reads as.")
    words: list[EvidenceWord] = Field(
        description="Content words shared by all prompts beyond random directions; score 1 is where chance ends."
    )
    scales: list[ScaleRow] = Field(description="Every scale of the direction itself.")
    vector: str = Field(description="What the direction is.")
    note: str = Field("", description="What to know of its origin.")

    def evidence_words(self) -> list[EvidenceWord]:
        """Words that the direction reads as beyond chance, for `overview`."""
        return self.words

    def as_text(self) -> str:
        lines = [self.headline, f"vector: {self.vector}; layer {self.layer}" + (f"; {self.note}" if self.note else "")]
        for name, scale, tokens in (
            ("promoted", self.scale, self.promoted),
            ("suppressed", self.suppressed_scale, self.suppressed),
        ):
            if tokens:
                lines.append(
                    f"{name} at scale {scale:g} (probability, z): "
                    + ", ".join(f"{row.token!r} {row.probability:.3f} {row.z:.1f}" for row in tokens)
                )
        if self.scales:
            lines.append("scale agreement (highest of random) | first tokens")
            lines += [
                f"{row.scale:g} {row.agreement:.3f} ({row.null_agreement:.3f}) | {row.tokens}" for row in self.scales
            ]
        return "\n".join(lines)


class Patchscope(DiffingMethod[PatchscopeParams, PatchscopeResult]):
    """Patchscope: what a direction of the residual stream says when a model is made to repeat it. Short identity
    prompts (`man -> man`) end in a token whose activation at the direction's layer is replaced by the direction, at
    several norms and with both signs; the next-token probabilities are averaged over prompts. The scale is chosen
    without a language model: where all prompts agree most on content words, relative to random directions of the same
    norm. Works on any vector named RUN/NAME (mean differences, components, latents), on a token, or on a contrast of
    texts. Often reads topics where the logit lens shows fragments. `stands_out` says that the direction is readable,
    not that finetuning made it so: read a mean of the base, or another direction of the same layer, as a control.
    Views: `scale` (the whole list at one scale and sign)."""

    name: ClassVar[str] = "patchscope"
    title: ClassVar[str] = "Patchscope"
    Params: ClassVar[type[BaseModel]] = PatchscopeParams
    Result: ClassVar[type[MethodResult]] = PatchscopeResult
    cost: ClassVar[Cost] = "seconds"
    in_overview: ClassVar[bool] = True
    needs_vector: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "scale": View(
            "scale",
            "Tokens at one scale, promoted or suppressed, by probability, z or shared lift.",
            views.ScaleParams,
            views.scale,
        )
    }
    figures: ClassVar[Sequence[Figure]] = (
        Figure("agreement", "How readable the direction is by scale", figures.agreement),
    )

    def run(self, pair: LoadedPair, params: PatchscopeParams, run: RunWriter, progress: Progress) -> PatchscopeResult:
        from diffing_mcp.methods.patchscope.scan import read_direction

        return read_direction(pair, params, run, progress)

    def token_lists(self, record: RunRecord) -> Sequence[TokenList]:
        return views.token_lists(record)

    def interactions(self, params: PatchscopeParams) -> int:
        return len(params.prompts or ())

    def estimate(self, pair: PairSize, params: PatchscopeParams) -> CostEstimate:
        prompts = 3 if params.prompts is None else len(params.prompts)
        rows = (2 + params.random_directions) * len(params.scales)
        return pair.cost(
            prompts * (rows + _PROMPT_TOKENS), 2 * prompts * len(params.scales), bytes=40_000 * len(params.scales)
        )
