"""The declaration of `contrastive_decoding`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import (
    Cost,
    CostEstimate,
    DiffingMethod,
    Figure,
    MethodResult,
    PairSize,
    TextGroup,
    View,
)
from diffing_mcp.methods.contrastive_decoding.schema import (
    BUNDLED_STARTS,
    AmplifiedText,
    ContrastiveDecodingParams,
    ContrastiveDecodingResult,
)
from diffing_mcp.methods.texts.amplified import series_of
from diffing_mcp.methods.texts.pages import TextPageParams, TextPageView, near, page_of_texts
from diffing_mcp.methods.texts.prompts import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class TextsParams(TextPageParams):
    """Which texts."""

    alpha: float | None = Field(
        None, description="Only this alpha of the run; 0 is the plain finetuned model, -1 the base."
    )
    order: Literal["difference", "as_written"] = Field(
        "difference", description="`difference`: what the base expects least first."
    )


class TextsView(TextPageView):
    """A page of texts."""

    alphas: list[float] = Field(description="Alphas of the run.")
    rows: list[AmplifiedText]


def texts(record: RunRecord, params: TextsParams) -> TextsView:
    """A page of texts at every alpha, controls included."""
    table = record.table("texts").to_pylist()
    rows = near(table, "alpha", params.alpha)
    if params.order == "difference":
        rows.sort(key=lambda row: -row["difference"])
    page = page_of_texts(rows, params, searched=("prompt", "text"), cut=("text",))
    alphas = sorted({row["alpha"] for row in table})
    return TextsView(
        alphas=alphas,
        rows=[AmplifiedText.model_validate(row) for row in page.rows],
        total=page.total,
        next_offset=page.next_offset,
    )


def text_groups(record: RunRecord) -> list[TextGroup]:
    """The texts of each alpha: above 0 amplified, 0 the plain finetuned model, below it the base and the opposite
    direction.
    """
    table = record.table("texts").to_pylist()
    coherent = {row["alpha"]: row["coherent"] for row in record.result_json()["alphas"]}
    groups = []
    for alpha in dict.fromkeys(row["alpha"] for row in table):
        rows = [row for row in table if row["alpha"] == alpha]
        groups.append(
            TextGroup(
                name=f"alpha {alpha:+g}" if alpha else "finetuned",
                role="amplified" if alpha > 0 else "finetuned" if alpha == 0 else "control",
                strength=alpha,
                series=series_of("finetuned", alpha) if alpha > 0 else None,
                coherent=coherent.get(alpha),
                prompts=[row["prompt"] for row in rows],
                texts=[row["text"] for row in rows],
            )
        )
    return groups


def differences(record: RunRecord) -> dict[str, Any]:
    """How much more the finetuned model expects the texts than the base, by alpha: a finetune that taught nothing stays
    near zero.
    """
    rows = record.table("texts", ["alpha", "difference", "prompt"]).to_pylist()
    data = [
        {
            "type": "box",
            "boxpoints": "all",
            "name": f"{alpha:+.3g}",
            "y": [row["difference"] for row in rows if row["alpha"] == alpha],
            "text": [row["prompt"] for row in rows if row["alpha"] == alpha],
        }
        for alpha in sorted({row["alpha"] for row in rows})
    ]
    return {
        "data": data,
        "layout": {
            "showlegend": False,
            "xaxis": {"title": {"text": "alpha (0: finetuned, -1: base)"}},
            "yaxis": {"title": {"text": "log-probability, finetuned minus base, nats a token"}},
        },
    }


VIEWS = {
    "texts": View("texts", "Page through all texts by alpha, controls included, filtered by text.", TextsParams, texts)
}
FIGURES = (Figure("differences", "How much more the finetuned model expects the texts", differences),)


class ContrastiveDecoding(DiffingMethod[ContrastiveDecodingParams, ContrastiveDecodingResult]):
    """Contrastive decoding (logit amplification): text is sampled from log p_ft + alpha (log p_ft - log p_base), so
    that what the finetune made more probable is written out, often in the words that were taught, even when plain
    samples show it rarely.
    """

    name: ClassVar[str] = "contrastive_decoding"
    title: ClassVar[str] = "Contrastive decoding"
    for_agents: ClassVar[str] = (
        "Contrastive decoding (logit amplification): text is sampled from log p_ft + alpha (log p_ft - log "
        "p_base), so that what the finetune made more probable is written out, often in the words that were "
        "taught, even when plain samples show it rarely. Works from neutral beginnings and questions, from no "
        "prompt, or from own prompts. Amplified texts are compared with the same amplification in the opposite "
        "direction and with the base: under a finetune that taught nothing both directions look alike. Amplified "
        "text exaggerates: read it as what the finetune pushes towards, and confirm what the plain model says "
        "with ask_models. Own prompts cost one interaction a text. Views: `texts`."
    )
    version: ClassVar[int] = 3
    Params: ClassVar[type[BaseModel]] = ContrastiveDecodingParams
    Result: ClassVar[type[MethodResult]] = ContrastiveDecodingResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = VIEWS
    figures: ClassVar[Sequence[Figure]] = FIGURES

    def run(
        self, pair: LoadedPair, params: ContrastiveDecodingParams, run: RunWriter, progress: Progress
    ) -> ContrastiveDecodingResult:
        from diffing_mcp.methods.contrastive_decoding.measure import decode

        return decode(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        return text_groups(record)

    def interactions(self, params: ContrastiveDecodingParams) -> int:
        return 0 if params.prompts is None else self._texts(params)

    def key_parts(self, params: ContrastiveDecodingParams, spec: PairSpec) -> dict[str, Any]:
        return {} if params.prompts is not None else {"starts": digest_of(params.beginnings(True))}

    def estimate(self, pair: PairSize, params: ContrastiveDecodingParams) -> CostEstimate:
        texts = self._texts(params)
        generated = texts * params.max_new_tokens
        return pair.cost(
            0, 2 * -(-texts // 64) * params.max_new_tokens, generated_tokens=generated, models=2, bytes=20 * generated
        )

    @staticmethod
    def _texts(params: ContrastiveDecodingParams) -> int:
        """How many are written, at most: whether there is a chat template shows once the tokenizer is read."""
        forms = 2 if params.start == "both" else 1
        beginnings = BUNDLED_STARTS if params.prompts is None else len(params.prompts)
        return forms * beginnings * params.samples_per_prompt * (2 * len(params.alphas) + 2)
