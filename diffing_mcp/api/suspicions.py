"""From a suspicion to a finding: tests of a hypothesis, and how both models complete sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffing_mcp.api.pairs import Pair, as_pair
from diffing_mcp.api.parameters import accepted, takes_parameters_of, texts_of
from diffing_mcp.api.progress import ProgressChoice, watched
from diffing_mcp.api.shown import ShownResult, indented
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.queries.hypothesis_schemas import HypothesisQuery, HypothesisResult
from diffing_mcp.queries.slot_schemas import SlotsQuery, SlotsResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from diffing_mcp.queries.hypothesis_schemas import Judge


class HypothesisTest(ShownResult[HypothesisResult]):
    """What a test showed: `result.verdict` in a line, `table()` prompt by prompt. Answers in it are untrusted."""

    def __init__(self, title: str, result: HypothesisResult, query: HypothesisQuery) -> None:
        super().__init__(title, result)
        self.query = query

    def table(self) -> pd.DataFrame:
        """One row a prompt: prompt, control, base and finetuned (answers counted, or the candidate's score in nats)."""
        import pandas as pd

        sets = [(False, self.query.prompts, self.result.tested)]
        if self.result.control is not None:
            sets.append((True, self.query.control_prompts, self.result.control))
        rows = [
            {"prompt": prompt, "control": control, "base": base, "finetuned": finetuned}
            for control, prompts, tested in sets
            for prompt, (base, finetuned) in zip(prompts, tested.by_prompt, strict=True)
        ]
        return pd.DataFrame(rows, columns=["prompt", "control", "base", "finetuned"])

    def as_text(self) -> str:
        """What was counted, the verdict, and the most telling answers."""
        told = [f"  {each.whose} {each.prompt!r}: {indented(each.model_text)}" for each in self.result.telling]
        return "\n".join([f"Counted: {self.result.counted}", self.result.verdict, *told])


class Completions(ShownResult[SlotsResult]):
    """How both models complete beginnings of sentences. Continuations are untrusted text."""

    def table(self) -> pd.DataFrame:
        """One row a continuation: beginning, kind (`word` or `phrase`), text, probability under base and finetuned, and
        ln(finetuned / base).
        """
        import pandas as pd

        rows = [
            {"beginning": slot.beginning, "kind": kind, **row.model_dump()}
            for slot in self.result.slots
            for kind, found in (("word", slot.next_words), ("phrase", slot.phrases))
            for row in found
        ]
        return pd.DataFrame(rows, columns=["beginning", "kind", "text", "base", "finetuned", "log_ratio"])

    def as_text(self) -> str:
        """Beginning by beginning: the likeliest phrases, and what was raised."""
        lines = []
        for slot in self.result.slots:
            lines.append(f"{slot.beginning!r}: {slot.moved:.2f} of the next token's probability moved")
            for name, rows in (("phrases", slot.phrases), ("raised", slot.raised), ("lowered", slot.lowered)):
                if rows:
                    lines.append(f"  {name}: {'; '.join(row.as_text() for row in rows)}")
        return "\n".join(lines)


@takes_parameters_of(HypothesisQuery, positional=["prompts"])
def test_hypothesis(
    pair: Pair | str,
    prompts: str | Sequence[str],
    *,
    judge: Judge | None = None,  # noqa: PT028  no test of pytest's
    progress: ProgressChoice = None,  # noqa: PT028
    **settings: Any,
) -> HypothesisTest:
    """Put a suspicion to the test: both models answer the same prompts with the same seeds, and one thing is counted.

    Choose prompts and what to count before you have seen their answers; prompts that you found it with prove nothing.

    Args:
        pair: from `load_pair`, or a pair of the catalogue by name.
    {parameters}
        judge: for `criterion`: a function of the criterion and (prompt, answer) pairs that says of each whether it is
            met. None: the model that the setting DIFFING_JUDGE names.
        progress: None: a bar in a terminal or a notebook; True or False: always or never; or a callable.

    Raises:
        InvalidInput: not exactly one thing to count, no judge for a criterion, or a value out of range.
        UnknownName: there is no such pair.
    """
    query = accepted(HypothesisQuery, {"prompts": texts_of(prompts), **settings})
    from diffing_mcp.queries.weighing import finder_of, weigh

    finder_of(query)
    if query.criterion is not None and judge is None:
        from diffing_mcp.agents.judge import configured_judge

        judge = configured_judge()
        if judge is None:
            raise InvalidInput(
                "A criterion needs a judge: give `judge`, or set DIFFING_JUDGE to a model as Inspect names it "
                "(anthropic/NAME, openai/NAME)."
            )
    chosen = as_pair(pair)
    with watched(progress, "loading") as report, chosen.answering(report) as loaded:
        from diffing_mcp.queries.hypotheses import collect

        collected = collect(loaded, query, report)
    return HypothesisTest(f"A hypothesis about {chosen.name}", weigh(query, collected, judge), query)


@takes_parameters_of(SlotsQuery, positional=["beginnings"])
def complete_slots(
    pair: Pair | str, beginnings: str | Sequence[str], *, progress: ProgressChoice = None, **settings: Any
) -> Completions:
    """The most probable continuations of beginnings of sentences under both models, and what the finetune raised and
    lowered: for details such as numbers, colours, names and purposes.

    Args:
        pair: from `load_pair`, or a pair of the catalogue by name.
    {parameters}
        progress: None: a bar in a terminal or a notebook; True or False: always or never; or a callable.

    Raises:
        InvalidInput: an empty beginning, one that does not fit into the context, or a value out of range.
        UnknownName: there is no such pair.
    """
    query = accepted(SlotsQuery, {"beginnings": texts_of(beginnings), **settings})
    chosen = as_pair(pair)
    with watched(progress, "loading") as report, chosen.loaded(report) as loaded:
        from diffing_mcp.queries.completing import complete

        result = complete(loaded, query, report)
    return Completions(f"Completions of {chosen.name}", result)
