"""What to call after an overview: concrete calls with what they cost. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from diffing_mcp.methods.contract import MethodResult
from diffing_mcp.methods.overview.plan import mean_difference, pending_vector, work_of
from diffing_mcp.methods.registry import get_method

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

FOLLOW_UPS = {
    "contrastive_decoding": "the difference amplified until it is written out, often in the words that were taught",
    "perplexity_difference": "completions that the finetuned model expects and the base does not",
    "weight_amplification": "what a finetune with larger weights answers",
    "continuation_mining": "whole phrases that the finetuned model goes on with",
    "answer_openings": "how answers begin and end, down to one in a hundred",
    "pca": "directions that come up only on certain tokens",
    "logit_diff_topk_occurring": "tokens that became more probable everywhere",
    "weight_difference": "where the weights changed, without any text",
}
"""What is worth calling after the overview and what for, the most telling first."""
_SWEPT = 16
"""Questions of a first sweep: a third of the interactions that an investigation usually has."""


def next_calls(
    confidence: str,
    results: Sequence[tuple[RunRecord, MethodResult]],
    available: Collection[str] | None = None,
    claims: bool = True,
) -> list[str]:
    """Concrete calls, cheap ones first; what the reader may not call is left out. `available`: names of the methods and
    tools that it may; None: all. `claims`: whether the overview states any, which some calls are about.
    """
    # An investigation ends with a finding and pays for questions; whoever holds the models does neither.
    investigates = available is not None and "submit_finding" in available
    tell, price = ("submit", " (an interaction a question)") if investigates else ("report", "")
    if confidence == "identical":
        return [f"{tell} that there is no difference"]

    def may(*names: str) -> bool:
        return available is None or all(name in available for name in names)

    run = {record.manifest.method for record, _ in results}
    cost = _costs([record for record, _ in results])
    vector = next((handle for record, _ in results if (handle := mean_difference(record)) is not None), None)
    calls = []
    if may("sweep_behaviours") and "sweep_behaviours" not in run:
        then = ", then view_run of its `answers`" if may("view_run") else ""
        calls.append(
            f"sweep_behaviours with limit={_SWEPT}{price}{then}: which kinds of question both "
            "models answer differently, and how"
        )
    if vector is not None and may("patchscope") and "patchscope" not in run:
        calls.append(f"patchscope with vector={vector} ({cost('patchscope')}): what the mean difference reads as")
    calls += [
        f"{name} ({cost(name)}): {purpose}" for name, purpose in FOLLOW_UPS.items() if may(name) and name not in run
    ][:2]
    if confidence == "nothing":
        if may("ask_models"):
            calls.append("ask_models with a few open chat questions: a behaviour or a style may show only in answers")
            calls.append(f"if those agree too, {tell} that there is no meaningful difference")
        return calls or [f"{tell} that there is no meaningful difference"]
    if may("complete_slots"):
        calls.append("complete_slots with beginnings of sentences about it: names, numbers and purposes in seconds")
    if may("facts") and claims:
        calls.append("facts with about=WORD for more of what the texts state of it")
    before = [
        f"{tool} {what}"
        for tool, what in (("compare_text", "of a claim"), ("ask_models", "about it"))
        if may(tool) and (claims or tool != "compare_text")
    ]
    if before:
        calls.append(f"{', and '.join(before)}, both sides, before claiming it")
    if confidence == "unsettled" and may("trigger_search") and claims:
        calls.append(
            f"trigger_search with answers=[two of the sentences above] ({cost('trigger_search')}): which prefixes and "
            "system prompts bring them out, given ones and words that it searches"
        )
    if confidence == "unsettled" and may("ask_models"):
        calls.append(
            "ask_models about its words, plainly and behind what might switch it on (a date, a code word, a system "
            "prompt): amplified texts write out what answers show behind a trigger only"
        )
    if may("view_run"):
        calls.append("view_run of the runs above")
    return calls


def _costs(records: Sequence[RunRecord]) -> Callable[[str], str]:
    """What a method would cost with its defaults, in words: its own estimate, in seconds once a corpus pass of these
    runs shows how fast the pair is.
    """
    passes = [record.manifest.notes["corpus_pass"] for record in records if "corpus_pass" in record.manifest.notes]
    speed = next((2 * one["tokens"] / one["seconds"] for one in passes if one["tokens"] and one["seconds"]), None)

    def cost(name: str) -> str:
        work = work_of([(name, get_method(name).Params.model_validate(pending_vector(name)))])
        return f"{work:,} of budget" + (f", about {work / speed:.0f} s" if speed else "")

    return cost
