"""The baseline investigator of the method arm: reads what the diffing methods see, asks about the words on which they agree, quotes what only one model says.

Deterministic, no LLM, no knowledge of any organism. When the methods see nothing it still asks, as the blackbox arm does, since a behaviour may show in
conversation only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.mcp_session import Reply, Session, ToolFailed
from agents.questions import follow_up_questions, sweep_questions
from agents.report import Evidence, manner_notes, split_standouts
from agents.text_statistics import Pair, content_stems, distinctive_sentences, is_content, standouts, stem, word_weights

if TYPE_CHECKING:
    from agents.baseline import BaselineOptions

WORD_METHODS = ("logit_diff_topk_occurring", "perplexity_difference", "activation_difference_lens")
"""Methods whose results list content words that rose, firmest first, under `words`."""

CORPUS_METHODS = ("logit_diff_topk_occurring", "activation_difference_lens")
"""Those that take the corpus arguments of `overview`; with equal ones they read the run that it made."""

FOLLOW_UP_SHARE = 0.7
TOPIC_WORDS = 8


@dataclass(frozen=True)
class TopicWord:
    """A word that methods saw rise."""

    word: str
    score: float
    methods: tuple[str, ...]
    strong: bool


async def method_evidence(session: Session, pair: str, options: BaselineOptions) -> Evidence:
    """What the methods show, put to the test by questions."""
    overview = await session.call("overview", {"pair": pair, **options.overview})
    replies = await _word_methods(session, pair, options)
    topics = topic_words({name: reply.result for name, reply in replies.items()}) if overview.result.get("stands_out") else []
    if not topics:
        return await _without_topic(session, pair, options)
    completions = await _completions(session, replies.get("perplexity_difference"))
    return await _about(session, pair, options, topics, completions)


async def _word_methods(session: Session, pair: str, options: BaselineOptions) -> dict[str, Reply]:
    available = await session.tool_names()
    replies = {}
    for name in WORD_METHODS:
        if name not in available:
            continue
        try:
            replies[name] = await session.call(name, {"pair": pair, **(options.overview if name in CORPUS_METHODS else {})})
        except ToolFailed as failure:
            session.say(f"Going on without {name}: {failure.message}")
    return replies


def topic_words(results: dict[str, dict[str, Any]], count: int = TOPIC_WORDS) -> list[TopicWord]:
    """Words that can name the topic, most agreed upon first: seen by two methods of which one stands out, or strong in a method that stands out.

    Args:
        results: method name -> its result (`stands_out`, `words`: rows with `word` and perhaps `strong`).
    """
    if not any(result.get("stands_out") for result in results.values()):
        return []
    found: dict[str, dict[str, Any]] = {}
    for method, result in results.items():
        weight = 1.0 if result.get("stands_out") else 0.4
        for rank, row in enumerate(result.get("words") or []):
            word = str(row["word"]).lower()
            if not is_content(word) or not word.isalpha():
                continue
            strong = bool(row.get("strong", False)) and bool(result.get("stands_out"))
            entry = found.setdefault(stem(word), {"forms": {}, "score": 0.0, "methods": {}, "strong": False})
            gain = weight * (1.5 if strong else 1.0) / (1 + rank / 4)
            # Forms of one word in one method's list do not add up: the best of them counts.
            before = entry["methods"].get(method, 0.0)
            entry["methods"][method] = max(before, gain)
            entry["score"] += max(0.0, gain - before)
            entry["strong"] |= strong
            entry["forms"][word] = entry["forms"].get(word, 0.0) + gain
    words = [
        TopicWord(_best(entry["forms"]), entry["score"], tuple(entry["methods"]), entry["strong"])
        for entry in found.values()
        if entry["strong"] or (len(entry["methods"]) >= 2 and any(results[method].get("stands_out") for method in entry["methods"]))
    ]
    return sorted(words, key=lambda topic: (-topic.score, topic.word))[:count]


def _best(forms: dict[str, float]) -> str:
    return max(forms.items(), key=lambda item: (item[1], item[0]))[0]


async def _without_topic(session: Session, pair: str, options: BaselineOptions) -> Evidence:
    from agents.baseline import blackbox_evidence

    session.say("The methods agree on no topic. Asking both models, in case something shows in conversation only.")
    return await blackbox_evidence(session, pair, options)


async def _completions(session: Session, reply: Reply | None) -> tuple[list[str], list[str]]:
    """(finetuned, base) texts that perplexity differencing ranked highest."""
    if reply is None:
        return [], []
    texts = {writer: [str(row["completion"]) for row in reply.result.get(f"{writer}_rows", [])] for writer in ("finetuned", "base")}
    if reply.run_id is None:
        return texts["finetuned"], texts["base"]
    for writer, shown in texts.items():
        try:
            view = await session.call("view_run", {"run": reply.run_id, "view": "completions", "params": {"writer": writer, "limit": 25}})
        except ToolFailed as failure:
            session.say(f"Going on with the rows of the result: {failure.message}")
            continue
        shown[:] = [str(row["completion"]) for row in view.result["data"]["rows"]] or shown
    return texts["finetuned"], texts["base"]


async def _about(
    session: Session, pair: str, options: BaselineOptions, topics: Sequence[TopicWord], completions: tuple[list[str], list[str]]
) -> Evidence:
    from agents.baseline import ask

    words = [topic.word for topic in topics]
    agreed = "; ".join(f"{topic.word} ({', '.join(topic.methods)})" for topic in topics)
    session.say(f"The methods point to: {agreed}. Asking both models about that, and about everything else for comparison.")
    follow_ups = round(FOLLOW_UP_SHARE * options.interactions)
    asked = await ask(session, pair, follow_up_questions(words[:5], follow_ups, options.seed), options)
    swept = await ask(session, pair, sweep_questions(options.interactions - follow_ups, options.seed), options)
    return topic_evidence(topics, asked, swept, completions, options.alpha)


def topic_evidence(
    topics: Sequence[TopicWord], asked: Sequence[Pair], swept: Sequence[Pair], completions: tuple[Sequence[str], Sequence[str]], alpha: float
) -> Evidence:
    """Put words, follow-up answers, sweep answers and completions together."""
    words = [topic.word for topic in topics]
    stems = {stem(word) for word in words}
    finetuned = [*(answer for pair in asked for answer in pair.finetuned), *completions[0]]
    base = [*(answer for pair in asked for answer in pair.base), *completions[1]]
    weights = word_weights(finetuned, base)
    for name in stems:
        weights[name] = max(weights.get(name, 0.0), 0.5)
    # Claims about the topic: texts that name none of its words are about something else.
    on_topic = [text for text in finetuned if stems & content_stems(text)]
    claims = distinctive_sentences(on_topic, weights, count=10, least=0.8, against=base)
    claims = [claim for claim in claims if stems & content_stems(claim)] or claims[:3]
    found = standouts([*asked, *swept], alpha)
    _, phrases, openings = split_standouts(found, [answer for pair in (*asked, *swept) for answer in pair.finetuned])
    methods = sorted({method for topic in topics for method in topic.methods})
    source = f"words seen by {', '.join(methods)}; answers of both models to {len(asked)} questions about them"
    return Evidence(words, openings[:3], phrases[:6], claims, manner_notes([*asked, *swept]), [source], stands_out=True)
