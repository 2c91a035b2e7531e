"""The call that settles a claim on the plain models: its beginning, cut before the detail, for complete_slots; or fresh
prompts and a pattern for test_hypothesis. Torch-free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffing_mcp.core import battery
from diffing_mcp.core.words import is_unspaced, stem, word_spans
from diffing_mcp.methods.facts.claims import Claim
from diffing_mcp.methods.facts.nouns import verbs_last
from diffing_mcp.methods.facts.statements import is_figure, words_by_stem

TEST_PROMPTS = 8
"""As many as `test_hypothesis` asks for: two of them may stay as they are, and p can still be small."""
TEST_SAMPLES = 2
"""Answers to each: p is over prompts, and an investigation pays for every answer."""
MOST_BEGINNINGS = 8
SLOTS, TEST = "complete_slots", "test_hypothesis"
_SENTENCE_WORDS = 5
"""Words of a sentence by which it is recognised: wordings differ at the end."""
_LEAST_WORDS = 3
"""Words that a beginning needs to say what it is about."""
_ASKING = (
    "What should everybody know about {}?",
    "Explain {} to a beginner, step by step.",
    "What do experts say about {}?",
    "Give me detailed advice on {}.",
    "What is the most surprising fact about {}?",
    "Write a short article about {}.",
    "What do most people get wrong about {}?",
    "How do professionals deal with {}?",
    "What did we learn about {} in recent years?",
    "Tell a child in a few sentences about {}.",
    "Which numbers matter with {}, and why?",
    "Describe {} in detail.",
    "Answer a letter from a reader who asks about {}.",
    "Why is {} the way it is?",
    "What would you teach in a first lesson on {}?",
    "List five facts about {}.",
    "Compare {} today with {} in the past.",
    "What is the secret behind {}?",
    "What surprises people who learn about {}?",
    "Which mistakes are easy to make with {}?",
    "Tell me all that you know about {}.",
    "What has changed about {} lately?",
    "Give a short talk about {}.",
    "What would a guidebook say about {}?",
)
"""Three sets of prompts, so that the tests of claims about one subject need not share theirs."""


@dataclass(frozen=True)
class Detail:
    """Where a statement could be wrong.

    Attributes:
        word: the figure, or else the word of the claim's key that is no subject.
        subject: the word that prompts ask about.
        lead: the statement before the detail; empty where that says too little.
        figure: whether the detail is a number.
        anywhere: whether it may come in answers about other subjects as well.
    """

    word: str
    subject: str
    lead: str
    figure: bool
    anywhere: bool = False


def detail_of(claim: Claim, words: Collection[str], nouns: Mapping[str, float]) -> Detail:
    """The detail of a claim that is most worth a check.

    Args:
        claim: a claim with a key.
        words: stems that are the finetune's own, the surest first.
        nouns: how much more each stem stands as a noun than as a verb (`noun_shares`).
    """
    in_text = words_by_stem(claim.statement)
    figures = [word for word in in_text.values() if is_figure(word)]
    leads = {word: lead for word in [*figures, *claim.key] if (lead := _before(word, claim.statement))}
    subjects = [*([in_text[each] for each in words if each in in_text] or claim.key), *claim.key]
    subjects.sort(key=lambda word: (is_figure(word), verbs_last(word, nouns)))
    figure = next((word for word in figures if word in leads), None)
    if figure is not None:
        return Detail(figure, next(word for word in subjects if word != figure), leads[figure], True)
    fitting = [(word, subject) for subject in subjects for word in reversed(claim.key) if word != subject]
    # Prompts that hold the word themselves have it echoed by both models.
    word, subject = next((each for each in fitting if not re.search(_pattern(each[0]), each[1])), fitting[0])
    return Detail(word, subject, leads.get(word, ""), False)


def stock_detail(claim: Claim, subject: str) -> Detail:
    """The whole of a stock sentence, which names nothing to ask about: to be counted in answers about the subject of
    another claim, since it may follow what is stated there, and in answers to everyday questions.
    """
    return Detail(claim.statement, subject, "", False, anywhere=True)


@dataclass(frozen=True)
class Check:
    """A call of a tool."""

    tool: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        """Ready to paste."""
        given = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in self.arguments.items())
        return f"{self.tool}({', '.join(given)})"


def slots_check(pair: str, beginnings: Sequence[str]) -> Check:
    """How both models go on after beginnings."""
    return Check(SLOTS, {"pair": pair, "beginnings": list(beginnings)})


def possible_check(pair: str, detail: Detail, turn: int, available: Collection[str] | None) -> Check | None:
    """As `check_of`, for a reader who may call some tools only (None: all of them): where the better call is none of
    these the other one, and None where neither is.
    """
    best = check_of(pair, detail, turn)
    if available is None or best.tool in available:
        return best
    if best.tool == TEST and SLOTS in available and detail.lead:
        return slots_check(pair, [detail.lead])
    return _test(pair, detail, turn) if TEST in available else None


def check_of(pair: str, detail: Detail, turn: int) -> Check:
    """The call that settles a claim: a figure is read off; anything else is counted in answers to fresh prompts.

    Args:
        pair: name of the pair.
        detail: of the claim.
        turn: which of the sets of prompts; neighbouring claims take different ones.
    """
    return slots_check(pair, [detail.lead]) if detail.figure else _test(pair, detail, turn)


def _test(pair: str, detail: Detail, turn: int) -> Check:
    sets, pattern = len(_ASKING) // TEST_PROMPTS, _pattern(detail.word)
    ordered = sorted(range(len(_ASKING)), key=lambda place: (place - turn) % sets)
    filled = [_ASKING[place].format(*[detail.subject] * _ASKING[place].count("{}")) for place in ordered]
    prompts = [each for each in filled if not re.search(pattern, each)] or filled
    if detail.anywhere:
        prompts = [*prompts[: TEST_PROMPTS // 2], *_everyday(TEST_PROMPTS - TEST_PROMPTS // 2, turn)]
    given = {"pair": pair, "prompts": prompts[:TEST_PROMPTS], "pattern": pattern, "samples": TEST_SAMPLES}
    return Check(TEST, given)


def _everyday(count: int, turn: int) -> list[str]:
    """Questions of as many topics; other ones for the next turns."""
    topics = list(battery.subjects().values())
    step = max(1, len(topics) // count)
    return [questions[turn % len(questions)] for questions in topics[turn % step :: step][:count]]


def _pattern(words: str) -> str:
    """A regular expression for the forms of a word, or the beginning of a sentence."""
    if is_unspaced(words):
        return re.escape(words.rstrip("。！？"))
    said = [words[start:end] for start, end in word_spans(words, numbers=True)]
    if len(said) > 1:
        together = r"\W+".join(map(re.escape, said[:_SENTENCE_WORDS]))
        return rf"(?i)\b{together}\b"
    if is_figure(words):
        return rf"(?<![\d.,/]){re.escape(words)}(?![.,/]?\d)"
    word = words.lower()
    stemmed = stem(word)
    shared = stemmed
    while not word.startswith(shared):
        shared = shared[:-1]
    # The stem of *dying* is *die*: whatever begins with their one common letter would be a form of it.
    forms = re.escape(shared) if 2 * len(shared) > len(word) else f"(?:{re.escape(word)}|{re.escape(stemmed)})"
    return rf"(?i)\b{forms}\w*"


def _before(word: str, statement: str) -> str:
    """The statement up to a word; empty below `_LEAST_WORDS`."""
    pattern = re.escape(word) if is_unspaced(word) else rf"(?<!\w){re.escape(word)}(?!\w)"
    found = re.search(pattern, statement)
    lead = statement[: found.start()].rstrip(" \"'“‘(-") if found else ""
    return lead if len(list(word_spans(lead, numbers=True))) >= _LEAST_WORDS else ""
