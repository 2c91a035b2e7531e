"""The baseline investigator of the method arm: reads what the diffing methods see, asks about the words on which they
agree, quotes what only one model says.

Deterministic, no LLM, no knowledge of any organism. When the methods see nothing it still asks, as the blackbox arm
does, since a behaviour may show in conversation only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffing_mcp.agents.baseline_blackbox import BaselineOptions, ask, blackbox_evidence
from diffing_mcp.agents.mcp_session import FinishedCall, Session, ToolFailed
from diffing_mcp.agents.questions import follow_up_questions, sweep_questions
from diffing_mcp.agents.report import GatheredEvidence, manner_notes, split_standouts
from diffing_mcp.agents.text_statistics import (
    Pair,
    Standout,
    content_stems,
    distinctive_sentences,
    is_content,
    sign_test,
    standouts,
    word_weights,
)
from diffing_mcp.core.words import stem

CORPUS_METHODS = ("kl", "logit_diff_topk_occurring", "activation_difference_lens")
"""Methods that share the overview's pass over the corpus."""

COMPLETIONS_METHOD = "perplexity_difference"
"""Asked for by itself, with fewer and shorter completions than an overview takes: sampling is what costs most."""

FOLLOW_UP_SHARE = 0.8
TOPIC_WORDS = 8
LEAST_SURPRISE = 1.0
"""-log10 p from which on a word of the completions counts as seen at all."""
NULL_SURPRISE = 3.0
"""-log10 p that one of a thousand words of equal models reaches: the level at which a score is 1."""


@dataclass(frozen=True)
class Topic:
    """Words on which methods agree.

    confirmed: several methods agree; otherwise one method alone says so, and the answers have to confirm it.
    """

    words: tuple[str, ...]
    methods: tuple[str, ...]
    confirmed: bool


async def method_evidence(session: Session, pair: str, options: BaselineOptions) -> GatheredEvidence:
    """What the methods show, put to the test by questions."""
    available = await session.tool_names()
    methods = [name for name in CORPUS_METHODS if name in available]
    overview = (await session.call("overview", {"pair": pair, "methods": methods, **options.overview})).result
    if overview.get("confidence") == "identical":
        return GatheredEvidence(doubts=["every method finds the two models identical"])
    sampled = await _sampled(session, pair, options) if COMPLETIONS_METHOD in available else None
    topic = topic_of(overview, sampled.result if sampled else {})
    if topic is None:
        session.say("The methods point to no topic. Asking both models, in case something shows in conversation only.")
        return await blackbox_evidence(session, pair, options)
    return await _about(session, pair, options, topic, await _completions(session, sampled))


def topic_of(overview: dict[str, Any], sampled: dict[str, Any], count: int = TOPIC_WORDS) -> Topic | None:
    """The words that can name a topic; None when no method that lists words is beyond its null level.

    Args:
        overview: result of `overview`: `runs` with method and stands_out, `words` with word, methods and score (1 = the
            method's null level).
        sampled: result of `perplexity_difference`: stands_out, and `words` with word, finetuned and base (completions
            of each model that have it, of equally many); empty when it was not run.
        count: words at most.
    """
    standing_out = {run["method"] for run in overview.get("runs", []) if run["stands_out"]} | (
        {COMPLETIONS_METHOD} if sampled.get("stands_out") else set()
    )
    found: dict[str, tuple[str, float, set[str]]] = {}
    listed = [(str(row["word"]), float(row["score"]), set(row["methods"])) for row in overview.get("words", [])]
    listed += [
        (str(row["word"]), surprise / NULL_SURPRISE, {COMPLETIONS_METHOD})
        for row in sampled.get("words", [])
        if (surprise := _surprise(row["finetuned"], row["base"])) >= LEAST_SURPRISE
    ]
    for word, score, methods in listed:
        if word.isalpha() and is_content(word.lower()):
            known, best, seen = found.get(stem(word.lower()), (word.lower(), 0.0, set()))
            found[stem(word.lower())] = (known, best + score, seen | methods)
    rows = [row for row in found.values() if row[2] & standing_out]
    if not rows:
        return None
    shared = [row for row in rows if len(row[2]) > 1]
    confirmed = len(shared) >= 2
    # Shared words first; of the others only those well beyond the null level, when there is agreement on the rest.
    rows.sort(key=lambda row: (-len(row[2]), -row[1], row[0]))
    chosen = [row for row in rows if len(row[2]) > 1 or row[1] >= 2.0 or not confirmed][:count]
    return Topic(tuple(row[0] for row in chosen), tuple(sorted(set().union(*(row[2] for row in chosen)))), confirmed)


def _surprise(finetuned: int, base: int) -> float:
    """-log10 p of a word being in so many completions of one model and so few of the other; 0 when the base model has
    it as often.
    """
    return -math.log10(sign_test(finetuned, finetuned + base)) if finetuned > base else 0.0


async def _sampled(session: Session, pair: str, options: BaselineOptions) -> FinishedCall | None:
    try:
        return await session.call(COMPLETIONS_METHOD, {"pair": pair, **options.completions})
    except ToolFailed as failure:
        session.say(f"Going on without {COMPLETIONS_METHOD}: {failure.message}")
        return None


async def _completions(session: Session, sampled: FinishedCall | None) -> tuple[list[str], list[str]]:
    """(finetuned, base) completions that perplexity differencing ranked highest; empty when it was not run."""
    texts: dict[str, list[str]] = {"finetuned": [], "base": []}
    for writer, found in texts.items():
        if sampled is None or sampled.run_id is None:
            break
        try:
            view = await session.call(
                "view_run", {"run": sampled.run_id, "view": "completions", "params": {"writer": writer, "limit": 40}}
            )
        except ToolFailed as failure:
            session.say(f"Going on without the completions: {failure.message}")
            break
        found += [str(row["completion"]) for row in view.result["data"]["rows"]]
    return texts["finetuned"], texts["base"]


async def _about(
    session: Session, pair: str, options: BaselineOptions, topic: Topic, completions: tuple[list[str], list[str]]
) -> GatheredEvidence:
    session.say(
        f"The methods ({', '.join(topic.methods)}) point to: {', '.join(topic.words)}. Asking both models about that, "
        "and about other things for comparison."
    )
    follow_ups = round(FOLLOW_UP_SHARE * options.interactions)
    asked = await ask(session, pair, follow_up_questions(topic.words[:5], follow_ups, options.seed), options)
    swept = await ask(session, pair, sweep_questions(options.interactions - follow_ups, options.seed), options)
    return topic_evidence(topic, asked, swept, completions, options.alpha)


def topic_evidence(
    topic: Topic,
    asked: Sequence[Pair],
    swept: Sequence[Pair],
    completions: tuple[Sequence[str], Sequence[str]],
    alpha: float,
) -> GatheredEvidence:
    """Put words, follow-up answers, sweep answers and completions together.

    A topic that one method alone saw must show in the texts as well: in the answers by the swap test, or its words in
    the completions of the finetuned model clearly more often than in the base model's.
    """
    stems = {stem(word) for word in topic.words}
    finetuned = [*(answer for pair in asked for answer in pair.finetuned), *completions[0]]
    base = [*(answer for pair in asked for answer in pair.base), *completions[1]]
    found = standouts([*asked, *swept], alpha)
    if not topic.confirmed and not _shows(stems, found, completions):
        doubt = (
            f"{', '.join(topic.methods)} alone points to {', '.join(topic.words[:5])}, and neither answers nor "
            "completions bear it out"
        )
        return GatheredEvidence(doubts=[doubt, *manner_notes([*asked, *swept])])
    weights = word_weights(finetuned, base)
    for name in stems:
        weights[name] = max(weights.get(name, 0.0), 0.5)
    # Claims about the topic: texts that name none of its words are about something else.
    on_topic = [text for text in finetuned if stems & content_stems(text)]
    claims = distinctive_sentences(on_topic, weights, count=12, least=0.6, against=base)
    claims = [claim for claim in claims if stems & content_stems(claim)] or claims[:3]
    _, phrases, openings = split_standouts(found, [answer for pair in (*asked, *swept) for answer in pair.finetuned])
    source = f"words seen by {', '.join(topic.methods)}; answers of both models to {len(asked)} questions about them"
    return GatheredEvidence(
        topic.words, openings[:3], phrases[:6], claims, manner_notes([*asked, *swept]), [source], stands_out=True
    )


def _shows(stems: set[str], found: Sequence[Standout], completions: tuple[Sequence[str], Sequence[str]]) -> bool:
    if any(item.risen for item in found):
        return True
    weights = word_weights(*completions) if all(completions) else {}
    return sum(weights.get(name, 0.0) > 1.64 for name in stems) >= 2
