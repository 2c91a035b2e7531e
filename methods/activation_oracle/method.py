"""Declaration of the activation oracle. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.activation_oracle.schema import CONTEXT, ActivationOracleParams, ActivationOracleResult
from diffing_mcp.methods.activation_oracle.views import AnswersParams, answers, words
from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, MethodResult, PairSize, View

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class ActivationOracle(DiffingMethod[ActivationOracleParams, ActivationOracleResult]):
    """Activation oracle: activations of a context under the finetuned model, under the base, and their difference are
    injected into the BASE model with a verbalizer adapter, which answers questions about them in words.
    """

    name: ClassVar[str] = "activation_oracle"
    title: ClassVar[str] = "Activation oracle"
    for_agents: ClassVar[str] = (
        "Activation oracle: activations of a context under the finetuned model, under the base, and their "
        "difference are injected into the BASE model with a verbalizer adapter, which answers questions about "
        "them in words. With `vector` it is asked about one direction (RUN/NAME) and its opposite. Read the "
        "answers on `difference` against those on `base`: what is in both comes from the context or from the "
        "verbalizer's habits. Answers are guesses, often invented, and weak for small models; take a pattern over "
        "many answers as a lead and confirm it with other methods. Stands out only when words of the answers on "
        "finetuned activations are beyond those on base activations by an exact test; words of `difference` and "
        "of a vector are leads alone, because any direction, also of a null finetune, makes a verbalizer say "
        "something. Where no verbalizer is known for the base model, the base model reads itself "
        "(`self_verbalised`): weaker still. Views: `answers`."
    )
    Params: ClassVar[type[BaseModel]] = ActivationOracleParams
    Result: ClassVar[type[MethodResult]] = ActivationOracleResult
    cost: ClassVar[Cost] = "minutes"
    views: ClassVar[Mapping[str, View]] = {
        "answers": View(
            "answers",
            "Page through all answers by kind of activations, mode and text.",
            AnswersParams,
            answers,
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (Figure("words", "Words of the answers", words),)

    def run(
        self, pair: LoadedPair, params: ActivationOracleParams, run: RunWriter, progress: Progress
    ) -> ActivationOracleResult:
        from diffing_mcp.methods.activation_oracle.reading import read

        return read(pair, params, run, progress)

    def interactions(self, params: ActivationOracleParams) -> int:
        return len(params.contexts) if params.contexts and params.vector is None else 0

    def operator_only(self, params: ActivationOracleParams) -> str | None:
        from diffing_mcp.methods.activation_oracle.verbalizers import known_names

        if params.verbalizer is None or params.verbalizer in known_names():
            return None
        return f"verbalizer must be one of {', '.join(known_names())}"

    def key_parts(self, params: ActivationOracleParams, spec: PairSpec) -> dict[str, Any]:
        from diffing_mcp.methods.activation_oracle.verbalizers import verbalizer_key

        return {"verbalizer": verbalizer_key(params.verbalizer)}

    def estimate(self, pair: PairSize, params: ActivationOracleParams) -> CostEstimate:
        each = {"token": params.token_positions, "segment": params.samples, "sequence": params.samples}
        per_context = params.samples if params.vector is not None else sum(each[mode] for mode in set(params.modes))
        kinds, contexts = (2, 1) if params.vector is not None else (3, len(params.contexts or (CONTEXT,)))
        answers = kinds * contexts * len(params.questions) * per_context
        passes = -(-answers // 64) * params.max_new_tokens
        return pair.cost(30 * answers, passes, generated_tokens=answers * params.max_new_tokens, bytes=200 * answers)
