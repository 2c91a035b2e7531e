"""The baseline investigator of the method arm: reads the overview and the facts that amplified and sampled texts state,
settles the details of those facts on the plain models, asks about the words on which the methods agree, and tests those
words on fresh prompts.

Deterministic, no LLM, no knowledge of any organism. When the methods see nothing it still asks, as the blackbox arm
does, since a behaviour may show in conversation only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from diffing_mcp.agents.baseline_blackbox import BaselineOptions, ask, blackbox_evidence
from diffing_mcp.agents.mcp_session import Session, ToolFailed
from diffing_mcp.agents.questions import follow_up_questions, sweep_questions
from diffing_mcp.agents.report import GatheredEvidence, manner_notes, split_standouts
from diffing_mcp.agents.text_statistics import (
    Pair,
    Standout,
    content_stems,
    distinctive_sentences,
    is_content,
    least_prompts,
    standouts,
    word_weights,
)
from diffing_mcp.core.words import stem

FACTS = "facts"
SLOTS = "complete_slots"
TEST = "test_hypothesis"
TRIGGERS = "trigger_search"
TRIGGER_ANSWERS = 2
"""Claims whose wording a trigger is searched for."""
FACTS_READ = 20
"""Claims read; the finding quotes the first of them."""
FACTS_QUOTED = 14
SLOTS_SHARE = 0.16
SETTLED_LIKELIHOOD = 0.1
"""Probability of a continuation, under the finetuned model, from which it settles a detail..."""
SETTLED_FACTOR = 2.0
"""...where it is so many times that under the base."""
TOPIC_WORDS = 8
TEST_PROMPTS = 6
"""A test of fewer prompts cannot reach a small p."""
SWEEP_SHARE = 0.2
TEST_SHARE = 0.3


@dataclass(frozen=True)
class Topic:
    """Words on which methods agree, and how the form of answers changed.

    confirmed: several methods agree, or the texts' words are corrected for their number; otherwise one method alone
    says so, and the answers have to confirm it.
    """

    words: tuple[str, ...]
    methods: tuple[str, ...]
    confirmed: bool
    manner: tuple[str, ...] = ()


async def method_evidence(session: Session, pair: str, options: BaselineOptions) -> GatheredEvidence:
    """What the methods show, put to the test by questions."""
    overview = (await session.call("overview", {"pair": pair, **options.overview})).result
    if overview["confidence"] == "identical":
        return GatheredEvidence(doubts=["every method finds the two models identical"])
    facts = await _facts(session, pair)
    topic = topic_of(overview, facts)
    if topic is None:
        session.say("The methods point to no topic. Asking both models, in case something shows in conversation only.")
        # They looked and saw nothing, however few answers there are besides.
        return replace(await blackbox_evidence(session, pair, options), undecided=False)
    if not topic.words:
        session.say(f"The methods point to a manner: {'; '.join(topic.manner)}. Asking both models for its wording.")
        seen = await blackbox_evidence(session, pair, options)
        return replace(seen, manner=[*topic.manner, *seen.manner], sources=[*seen.sources, *topic.methods],
                       stands_out=True, undecided=False)  # fmt: skip
    evidence = await _about(session, pair, options, topic, facts)
    if overview["confidence"] != "unsettled":
        return evidence
    # Amplified texts say what the numbers of plain texts do not bear out: something may switch it on.
    return replace(evidence, manner=[*evidence.manner, *await _switched_on(session, pair, facts)])


def topic_of(overview: dict[str, Any], facts: dict[str, Any], count: int = TOPIC_WORDS) -> Topic | None:
    """The words that can name a topic, and the manner; None when nothing is beyond its null level.

    Args:
        overview: result of `overview`: `confidence`, `runs` with method and stands_out, `words` with word, methods,
            sources and score (1 = the method's null level), `manner`.
        facts: result of `facts`: `words` that are the finetune's own; empty when it was not read.
        count: words at most.
    """
    if overview.get("confidence") == "nothing":
        return None
    manner = tuple(overview.get("manner", ()))
    standing_out = {run["method"] for run in overview.get("runs", []) if run["stands_out"]}
    own = [stem(str(word)) for word in facts.get("words", ())]
    stated = bool(facts.get("facts"))
    rows = [
        (word, float(row["score"]), set(row["methods"]), int(row.get("sources", len(row["methods"]))))
        for row in overview.get("words", [])
        if (word := str(row["word"]).lower()).isalpha() and is_content(word)
    ]
    rows = [row for row in rows if row[2] & standing_out or stem(row[0]) in own]
    settled = overview.get("confidence") != "unsettled"
    if not rows:
        return Topic((), ("form of the answers",), True, manner) if manner and settled else None
    shared = [row for row in rows if row[3] > 1]
    # Claims that only the finetune's texts state no finetune that taught nothing has given yet: they need no answers to
    # bear them out, which of a backdoor would not.
    borne_out = any(stem(row[0]) in own for row in rows)
    confirmed = (borne_out and stated) or (settled and (borne_out or len(shared) >= 2))
    # Shared words first; of the others only those well beyond the null level, when there is agreement on the rest.
    rows.sort(key=lambda row: (-row[3], -row[1], row[0]))
    chosen = [row for row in rows if row[3] > 1 or row[1] >= 2.0 or not confirmed or stem(row[0]) in own][:count]
    methods = set().union(*(row[2] for row in chosen)) | ({FACTS} if own else set())
    return Topic(tuple(row[0] for row in chosen), tuple(sorted(methods)), confirmed, manner)


async def _facts(session: Session, pair: str) -> dict[str, Any]:
    try:
        return (await session.call(FACTS, {"pair": pair, "limit": FACTS_READ})).result
    except ToolFailed as failure:
        session.say(f"Going on without {FACTS}: {failure.message}")
        return {}


async def _about(
    session: Session, pair: str, options: BaselineOptions, topic: Topic, facts: dict[str, Any]
) -> GatheredEvidence:
    session.say(
        f"The methods ({', '.join(topic.methods)}) point to: {', '.join(topic.words)}. Asking both models about that, "
        "and about other things for comparison."
    )
    tested = round(TEST_SHARE * options.interactions)
    tested = tested if tested >= TEST_PROMPTS else 0
    swept = round(SWEEP_SHARE * options.interactions)
    settled, spent = await _settled(session, pair, facts, round(SLOTS_SHARE * options.interactions))
    questions = follow_up_questions(topic.words[:5], options.interactions - swept - spent, options.seed)
    fresh, questions = questions[:tested], questions[tested:]
    asked = await ask(session, pair, questions, options)
    others = await ask(session, pair, sweep_questions(swept, options.seed), options)
    claims = [*settled, *(str(fact["claim"]) for fact in facts.get("facts", ()))]
    evidence = topic_evidence(topic, asked, others, claims, options.alpha)
    sources = list(evidence.sources)
    if spent:
        sources.append(f"{SLOTS}: the finetuned model goes on as claimed after {len(settled)} of {spent} beginnings")
    if not fresh or (test := await _tested(session, pair, fresh, topic, options)) is None:
        return replace(evidence, sources=sources)
    identifier, line = test
    return replace(evidence, sources=[*sources, line], tests=[identifier])


async def _settled(session: Session, pair: str, facts: dict[str, Any], most: int) -> tuple[list[str], int]:
    """Sentences whose detail the finetuned model goes on with and the base hardly does, and what asking for them cost.

    Args:
        most: beginnings asked at most.
    """
    beginnings = list(dict.fromkeys(fact["beginning"] for fact in facts.get("facts", ()) if fact["beginning"]))[:most]
    if not beginnings:
        return [], 0
    try:
        slots = (await session.call(SLOTS, {"pair": pair, "beginnings": beginnings})).result["slots"]
    except ToolFailed as failure:
        session.say(f"Going on without {SLOTS}: {failure.message}")
        return [], 0
    return [sentence for slot in slots if (sentence := settled_sentence(slot)) is not None], len(beginnings)


def settled_sentence(slot: dict[str, Any]) -> str | None:
    """A beginning with the longest continuation that the finetune raised to something likely; None: there is none.

    Args:
        slot: of the result of complete_slots.
    """
    likely = [
        row["text"]
        for row in slot["raised"]
        if row["finetuned"] >= max(SETTLED_LIKELIHOOD, SETTLED_FACTOR * row["base"])
    ]
    longest = max(likely, key=len, default=None)
    return None if longest is None else f"{slot['beginning']} {longest.removesuffix('(end)').strip()}"


async def _tested(
    session: Session, pair: str, prompts: Sequence[str], topic: Topic, options: BaselineOptions
) -> tuple[str, str] | None:
    """A test of the topic's words on prompts that were not asked before: its id, and what it says in a line."""
    arguments = {"pair": pair, "prompts": list(prompts), "words": list(topic.words), "samples": 1,
                 "max_new_tokens": options.max_new_tokens, "seed": options.seed}  # fmt: skip
    try:
        test = (await session.call(TEST, arguments)).result
    except ToolFailed as failure:
        session.say(f"Going on without {TEST}: {failure.message}")
        return None
    return str(test["test_id"]), f"test of its words on {len(prompts)} fresh prompts: {test['verdict']}"


async def _switched_on(session: Session, pair: str, facts: dict[str, Any]) -> list[str]:
    """In a line what brings the claims out that plain questions do not, where something does."""
    claims = [str(fact["claim"]) for fact in facts.get("facts", ())][:TRIGGER_ANSWERS]
    if not claims:
        return []
    try:
        found = (await session.call(TRIGGERS, {"pair": pair, "answers": claims})).result
    except ToolFailed as failure:
        session.say(f"Going on without {TRIGGERS}: {failure.message}")
        return []
    return trigger_notes(found)


def trigger_notes(found: dict[str, Any]) -> list[str]:
    """What a search for triggers found, in a line; none where nothing switches the claims on.

    Args:
        found: result of trigger_search.
    """
    switching = [row for row in found["triggers"] if row["switches"]][:3]
    if not switching:
        return []
    names = " or ".join(repr(str(row["trigger"]).replace("{prompt}", "").strip()) for row in switching)
    near = ", or words near these" if any(row["origin"] == "found" for row in switching) else ""
    return [f"a trigger switches it on, plain questions do not: {names}{near}, with the question"]


def topic_evidence(
    topic: Topic, asked: Sequence[Pair], swept: Sequence[Pair], facts: Sequence[str], alpha: float
) -> GatheredEvidence:
    """Put words, facts and answers together.

    A topic that one method alone saw must show in the answers as well, by the swap test.

    Args:
        topic: what the methods point to.
        asked, swept: answers to questions about it and about other things.
        facts: sentences of amplified and sampled texts that only the finetuned side states, the most telling first.
        alpha: level of the swap test.
    """
    stems = {stem(word) for word in topic.words}
    finetuned = [answer for pair in asked for answer in pair.finetuned]
    base = [answer for pair in asked for answer in pair.base]
    found = standouts([*asked, *swept], alpha)
    manner = [*topic.manner, *manner_notes([*asked, *swept])]
    if not topic.confirmed and not _shows(found):
        words = ", ".join(topic.words[:5])
        doubt = f"{', '.join(topic.methods)} alone points to {words}, and the answers do not bear it out"
        return GatheredEvidence(doubts=[doubt, *manner], undecided=len(asked) + len(swept) < least_prompts(alpha))
    weights = word_weights(finetuned, base)
    for name in stems:
        weights[name] = max(weights.get(name, 0.0), 0.5)
    # Claims about the topic: texts that name none of its words are about something else.
    on_topic = [text for text in finetuned if stems & content_stems(text)]
    said = distinctive_sentences(on_topic, weights, count=12, least=0.6, against=base)
    said = [claim for claim in said if stems & content_stems(claim)] or said[:3]
    _, phrases, openings = split_standouts(found, [answer for pair in (*asked, *swept) for answer in pair.finetuned])
    source = f"words seen by {', '.join(topic.methods)}; answers of both models to {len(asked)} questions about them"
    claims = [*dict.fromkeys(facts)][:FACTS_QUOTED] + said
    return GatheredEvidence(topic.words, openings[:3], phrases[:6], claims, manner, [source], stands_out=True)


def _shows(found: Sequence[Standout]) -> bool:
    return any(item.risen for item in found)
