"""The declaration of `contrastive_decoding`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from diffing_mcp.methods.contract import CostEstimate, DiffingMethod, Figure, PairSize, TextGroup, by_name, view
from diffing_mcp.methods.contrastive_decoding.schema import (
    BUNDLED_STARTS,
    AmplifiedText,
    ContrastiveDecodingParams,
    ContrastiveDecodingResult,
)
from diffing_mcp.methods.texts.amplified import group_of
from diffing_mcp.methods.texts.prompts import digest_of
from diffing_mcp.methods.views.figures import figure, trace
from diffing_mcp.methods.views.pages import TextPageParams, TextPageView
from diffing_mcp.methods.views.rows import grouped, highest_first, near

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class TextsView(TextPageView[AmplifiedText]):
    """A page of texts."""

    alphas: list[float] = Field(description="Alphas of the run.")


@view("Page through all texts by alpha, controls included, filtered by text.", TextsParams)
def texts(record: RunRecord, params: TextsParams) -> TextsView:
    table = record.rows("texts")
    rows = near(table, "alpha", params.alpha)
    if params.order == "difference":
        rows = highest_first(rows, "difference")
    alphas = sorted({row["alpha"] for row in table})
    return TextsView.of(rows, params, searched=("prompt", "text"), cut=("text",), alphas=alphas)


def differences(record: RunRecord) -> dict[str, Any]:
    """How much more the finetuned model expects the texts than the base, by alpha: a finetune that taught nothing stays
    near zero.
    """
    by_alpha = grouped(record.rows("texts", ["alpha", "difference", "prompt"]), "alpha")
    return figure(
        [trace("boxes", by_alpha[alpha], f"{alpha:+.3g}", y="difference", text="prompt") for alpha in sorted(by_alpha)],
        x="alpha (0: finetuned, -1: base)",
        y="log-probability, finetuned minus base, nats a token",
        showlegend=False,
    )


class ContrastiveDecoding(DiffingMethod[ContrastiveDecodingParams, ContrastiveDecodingResult]):
    """Contrastive decoding (logit amplification): text is sampled from log p_ft + alpha (log p_ft - log p_base), so
    that what the finetune made more probable is written out, often in the words that were taught, even when plain
    samples show it rarely.
    """

    name = "contrastive_decoding"
    title = "Contrastive decoding"
    papers = (
        "arXiv 2605.25902 (amplified differences)",
        "Li et al. 2022, arXiv 2210.15097 (contrastive decoding)",
    )
    for_agents = (
        "Works from neutral beginnings and questions, from no prompt, or from own prompts. Amplified texts are "
        "compared with the same amplification in the opposite direction and with the base: under a finetune that "
        "taught nothing both directions look alike. Amplified text exaggerates: read it as what the finetune "
        "pushes towards, and confirm what the plain model says with ask_models. Own prompts cost one interaction "
        "a text. Views: `texts`."
    )
    version = 3
    Params = ContrastiveDecodingParams
    Result = ContrastiveDecodingResult
    in_overview = True
    views = by_name(texts)
    figures = (Figure("differences", "How much more the finetuned model expects the texts", differences),)

    def run(
        self, pair: LoadedPair, params: ContrastiveDecodingParams, run: RunWriter, progress: Progress
    ) -> ContrastiveDecodingResult:
        from diffing_mcp.methods.contrastive_decoding.measure import decode

        return decode(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        """The texts of each alpha: above 0 amplified, 0 the plain finetuned model, below it the base and the opposite
        direction.
        """
        coherent = {row["alpha"]: row["coherent"] for row in record.result_json()["alphas"]}
        return [
            group_of(
                rows,
                "text",
                name=f"alpha {alpha:+g}" if alpha else "finetuned",
                role="amplified" if alpha > 0 else "finetuned" if alpha == 0 else "control",
                strength=alpha,
                series="finetuned +" if alpha > 0 else None,
                coherent=coherent.get(alpha),
            )
            for alpha, rows in grouped(record.rows("texts"), "alpha").items()
        ]

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
