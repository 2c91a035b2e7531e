"""The method `contrastive_decoding`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, MethodResult, PairSize, View
from diffing_mcp.methods.contrastive_decoding.schema import (
    BUNDLED_STARTS,
    ContrastiveDecodingParams,
    ContrastiveDecodingResult,
)
from diffing_mcp.methods.contrastive_decoding.views import FIGURES, VIEWS, text_groups
from diffing_mcp.methods.texts.beginnings import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter, TextGroup
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


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
