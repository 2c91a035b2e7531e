"""The baseline investigator of the method arm: reads what the diffing methods see, asks about the words on which they agree, quotes what only one model says.

Deterministic, no LLM, no knowledge of any organism. When the methods see nothing it still asks, as the blackbox arm does, since a behaviour may show in
conversation only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.mcp_session import Session, ToolFailed
from agents.questions import follow_up_questions, sweep_questions
from agents.report import Evidence, manner_notes, split_standouts
from agents.text_statistics import Pair, Standout, content_stems, distinctive_sentences, is_content, standouts, stem, word_weights

if TYPE_CHECKING:
    from agents.baseline import BaselineOptions

COMPLETIONS_METHOD = "perplexity_difference"
FOLLOW_UP_SHARE = 0.8
TOPIC_WORDS = 8


@dataclass(frozen=True)
class Topic:
    """Words on which methods agree.

    confirmed: several methods agree; otherwise one method alone says so, and the answers have to confirm it.
    """

    words: tuple[str, ...]
    methods: tuple[str, ...]
    confirmed: bool


async def method_evidence(session: Session, pair: str, options: BaselineOptions) -> Evidence:
    """What the methods show, put to the test by questions."""
    overview = (await session.call("overview", {"pair": pair, **options.overview})).result
    topic = topic_of(overview)
    if topic is None:
        from agents.baseline import blackbox_evidence

        if overview.get("confidence") == "identical":
            return Evidence(doubts=["every method finds the two models identical"])
        session.say("The methods point to no topic. Asking both models, in case something shows in conversation only.")
        return await blackbox_evidence(session, pair, options)
    return await _about(session, pair, options, topic, await _completions(session, overview))


def topic_of(overview: dict[str, Any], count: int = TOPIC_WORDS) -> Topic | None:
    """The words of an overview that can name a topic; None when no method is beyond its null level or no content word is left.

    With several agreeing methods, words that only one of them saw follow after the shared ones.
    """
    confidence = overview.get("confidence")
    if confidence not in ("agreed", "one_method"):
        return None
    rows = [row for row in overview.get("words", []) if is_content(str(row["word"])) and str(row["word"]).isalpha()]
    standing_out = {run["method"] for run in overview.get("runs", []) if run["stands_out"]}
    rows = [row for row in rows if standing_out & set(row["methods"])]
    if not rows:
        return None
    if confidence == "agreed":
        # A word that one method alone saw belongs to the topic only when that method is sure of it.
        rows = [row for row in rows if len(row["methods"]) > 1 or row["score"] >= 1.0]
    methods = sorted({method for row in rows[:count] for method in row["methods"]} & standing_out)
    return Topic(tuple(str(row["word"]) for row in rows[:count]), tuple(methods), confirmed=confidence == "agreed")


async def _completions(session: Session, overview: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(finetuned, base) completions that perplexity differencing ranked highest; empty when it was not run."""
    run = next((run["run"] for run in overview.get("runs", []) if run["method"] == COMPLETIONS_METHOD), None)
    texts: dict[str, list[str]] = {"finetuned": [], "base": []}
    for writer, found in texts.items():
        if run is None:
            break
        try:
            view = await session.call("view_run", {"run": run, "view": "completions", "params": {"writer": writer, "limit": 25}})
        except ToolFailed as failure:
            session.say(f"Going on without the completions: {failure.message}")
            break
        found += [str(row["completion"]) for row in view.result["data"]["rows"]]
    return texts["finetuned"], texts["base"]


async def _about(session: Session, pair: str, options: BaselineOptions, topic: Topic, completions: tuple[list[str], list[str]]) -> Evidence:
    from agents.baseline import ask

    session.say(
        f"The methods ({', '.join(topic.methods)}) point to: {', '.join(topic.words)}. Asking both models about that, and about other things for comparison."
    )
    follow_ups = round(FOLLOW_UP_SHARE * options.interactions)
    asked = await ask(session, pair, follow_up_questions(topic.words[:5], follow_ups, options.seed), options)
    swept = await ask(session, pair, sweep_questions(options.interactions - follow_ups, options.seed), options)
    return topic_evidence(topic, asked, swept, completions, options.alpha)


def topic_evidence(
    topic: Topic, asked: Sequence[Pair], swept: Sequence[Pair], completions: tuple[Sequence[str], Sequence[str]], alpha: float
) -> Evidence:
    """Put words, follow-up answers, sweep answers and completions together.

    A topic that one method alone saw must show in the texts as well: in the answers by the sign test, or its words in the completions of the finetuned
    model clearly more often than in the base model's.
    """
    stems = {stem(word) for word in topic.words}
    finetuned = [*(answer for pair in asked for answer in pair.finetuned), *completions[0]]
    base = [*(answer for pair in asked for answer in pair.base), *completions[1]]
    found = standouts([*asked, *swept], alpha)
    if not topic.confirmed and not _shows(stems, found, completions):
        doubt = f"{', '.join(topic.methods)} alone points to {', '.join(topic.words[:5])}, and neither answers nor completions bear it out"
        return Evidence(doubts=[doubt, *manner_notes([*asked, *swept])])
    weights = word_weights(finetuned, base)
    for name in stems:
        weights[name] = max(weights.get(name, 0.0), 0.5)
    # Claims about the topic: texts that name none of its words are about something else.
    on_topic = [text for text in finetuned if stems & content_stems(text)]
    claims = distinctive_sentences(on_topic, weights, count=12, least=0.6, against=base)
    claims = [claim for claim in claims if stems & content_stems(claim)] or claims[:3]
    _, phrases, openings = split_standouts(found, [answer for pair in (*asked, *swept) for answer in pair.finetuned])
    source = f"words seen by {', '.join(topic.methods)}; answers of both models to {len(asked)} questions about them"
    return Evidence(topic.words, openings[:3], phrases[:6], claims, manner_notes([*asked, *swept]), [source], stands_out=True)


def _shows(stems: set[str], found: Sequence[Standout], completions: tuple[Sequence[str], Sequence[str]]) -> bool:
    if any(item.risen for item in found):
        return True
    weights = word_weights(*completions) if all(completions) else {}
    return sum(weights.get(name, 0.0) > 1.64 for name in stems) >= 2
