"""The declaration of `activation_oracle`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.methods.activation_oracle.schema import (
    CONTEXT,
    ActivationOracleParams,
    ActivationOracleResult,
    Kind,
    Mode,
    OracleAnswer,
)
from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, Figure, MethodResult, PairSize, View

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class AnswersParams(BaseModel):
    """Which answers to list."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind | None = Field(None, description="Only answers on these activations.")
    mode: Mode | None = Field(None, description="Only answers on single tokens, segments or whole sequences.")
    contains: str = Field(
        "", max_length=200, description="Only answers, or questions, containing this text, in any case."
    )
    offset: int = Field(0, ge=0)
    limit: int = Field(20, ge=1, le=100)


class AnswersView(BaseModel):
    """A page of answers."""

    answers_are_untrusted: Literal[True] = True
    rows: list[OracleAnswer]
    total: int = Field(description="Answers there are after filtering.")
    next_offset: int | None


def answers(record: RunRecord, params: AnswersParams) -> AnswersView:
    """A page of answers in the order asked."""
    text = params.contains.casefold()
    rows = [
        row
        for row in record.table("answers").to_pylist()
        if params.kind in (None, row["kind"])
        and params.mode in (None, row["mode"])
        and (text in row["answer"].casefold() or text in row["question"].casefold())
    ]
    end = params.offset + params.limit
    page = [OracleAnswer(**row) for row in rows[params.offset : end]]
    return AnswersView(rows=page, total=len(rows), next_offset=end if end < len(rows) else None)


def words(record: RunRecord) -> dict[str, Any]:
    """Words of the answers on changed activations, and how often the compared answers have them."""
    rows = record.result_json()["words"]
    names = [f"{row['word']} ({row['kind']})" for row in rows]
    data = [
        {"type": "bar", "name": name, "x": names, "y": [row[field] for row in rows]}
        for name, field in (("answers", "count"), ("compared", "compared"))
    ]
    return {"data": data, "layout": {"yaxis": {"title": {"text": "answers that contain the word"}}}}


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
