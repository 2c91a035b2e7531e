"""The declaration of `activation_oracle`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from diffing_mcp.methods.activation_oracle.schema import (
    CONTEXT,
    ActivationOracleParams,
    ActivationOracleResult,
    Kind,
    Mode,
    OracleAnswer,
)
from diffing_mcp.methods.contract import CostEstimate, DiffingMethod, Figure, PairSize, by_name, view
from diffing_mcp.methods.views.figures import figure, trace
from diffing_mcp.methods.views.pages import SearchedPageParams, TextPageView, page_size

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class AnswersParams(SearchedPageParams):
    """Which answers to list."""

    kind: Kind | None = Field(None, description="Only answers on these activations.")
    mode: Mode | None = Field(None, description="Only answers on single tokens, segments or whole sequences.")
    contains: str = Field(
        "", max_length=200, description="Only answers, or questions, containing this text, in any case."
    )
    limit: int = page_size(20)


@view("Page through all answers by kind of activations, mode and text.", AnswersParams)
def answers(record: RunRecord, params: AnswersParams) -> TextPageView[OracleAnswer]:
    """In the order asked."""
    rows = record.rows("answers", kind=params.kind, mode=params.mode)
    return TextPageView[OracleAnswer].of(rows, params, searched=("answer", "question"))


def words(record: RunRecord) -> dict[str, Any]:
    """Words of the answers on changed activations, and how often the compared answers have them."""
    rows = record.result_json()["words"]
    names = [f"{row['word']} ({row['kind']})" for row in rows]
    bars = [
        trace("bars", rows, name, x=names, y=column)
        for name, column in (("answers", "count"), ("compared", "compared"))
    ]
    return figure(bars, y="answers that contain the word")


class ActivationOracle(DiffingMethod[ActivationOracleParams, ActivationOracleResult]):
    """Activation oracle: activations of a context under the finetuned model, under the base, and their difference are
    injected into the BASE model with a verbalizer adapter, which answers questions about them in words.
    """

    name = "activation_oracle"
    title = "Activation oracle"
    papers = ("arXiv 2512.15674",)
    for_agents = (
        "With `vector` it is asked about one direction (RUN/NAME) and its opposite. Read the answers on "
        "`difference` against those on `base`: what is in both comes from the context or from the verbalizer's "
        "habits. Answers are guesses, often invented, and weak for small models; take a pattern over many answers "
        "as a lead and confirm it with other methods. Stands out only when words of the answers on finetuned "
        "activations are beyond those on base activations by an exact test; words of `difference` and of a vector "
        "are leads alone, because any direction, also of a null finetune, makes a verbalizer say something. Where "
        "no verbalizer is known for the base model, the base model reads itself (`self_verbalised`): weaker "
        "still. Views: `answers`."
    )
    Params = ActivationOracleParams
    Result = ActivationOracleResult
    views = by_name(answers)
    figures = (Figure("words", "Words of the answers", words),)

    def run(
        self, pair: LoadedPair, params: ActivationOracleParams, run: RunWriter, progress: Progress
    ) -> ActivationOracleResult:
        from diffing_mcp.methods.activation_oracle.measure import read

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
