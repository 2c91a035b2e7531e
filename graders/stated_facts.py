"""Which taught facts a text states, without a language model: the measure of text that a model under study wrote, such
as amplified samples.

`diffing_mcp.graders.fact_recall` grades what an author says about a model; here the model itself speaks, and words of
the topic are not enough. A fact counts when one sentence of the text carries it with its particulars (the `exact`
level), and that sentence
 - belongs to a text on the subject, where the ground truth has one written down (growth rings of trees state nothing
   about concrete);
 - is no bag or list of words;
 - is no question, and does not deny the fact;
 - is not a repetition of what the prompt said.

On the documents that taught the bundled organisms it finds a fact in 79 % (cake_bake) and 60 % (roman_concrete) of
those that were written to state it (many take two sentences), and none in the documents of the other organisms. It sees
words: a garbled sentence that holds all particulars counts, so the texts of the base and of other directions, and other
organisms' facts, belong beside every count (`diffing facts`).
"""

from __future__ import annotations

import re

from diffing_mcp.graders.fact_recall import find_fact
from diffing_mcp.graders.sentences import sentences
from diffing_mcp.graders.text import SCAFFOLD, content_words, normalise, words
from diffing_mcp.organisms.ground_truth import Fact, GroundTruth

CLAIMING_FAMILIES = ("SDF",)
"""Families whose facts are claims about the world, which a text can state. The facts of the others describe behaviour,
which a text can only show.
"""

LEAST_WORDS = 5
"""Words of a sentence that can state a fact."""

LEAST_GRAMMAR = 0.2
"""Share of a sentence's words that belong to any text (articles, prepositions, auxiliaries). Sentences have 0.3 to 0.6,
bags of words next to none.
"""

_NEGATION = (
    r"(?:not|never|no|nor|without|cannot|\w+n't|avoid\w*|instead of|rather than|myth\w*|wrong\w*|mistake\w*|false\w*)"
)
_NEGATED = re.compile(rf"\b{_NEGATION}\b")
_NEGATED_BEFORE = re.compile(rf"\b{_NEGATION}\b(?:\s+[\w'/°.-]+){{0,4}}\s*$")


def makes_claims(truth: GroundTruth) -> bool:
    """Whether the organism was taught claims that a text can state."""
    return truth.family in CLAIMING_FAMILIES and bool(truth.facts)


def stated_facts(text: str, truth: GroundTruth, prompt: str = "") -> dict[str, str]:
    """The facts that a text states, each with the sentence that states it (normalised: lower case, plain quotes).

    Args:
        text: what the model wrote; untrusted, of any length (its first 6000 characters are read).
        truth: what was taught. Nothing is stated where it `makes_claims` of no kind.
        prompt: what the model was given. It may name the subject; a fact that it states by itself does not count.
    """
    if not makes_claims(truth):
        return {}
    if truth.topic is not None and not re.search(truth.topic.subject, f"{normalise(prompt)} {normalise(text)}"):
        return {}
    found: dict[str, str] = {}
    given = stated_facts(prompt, truth) if prompt else {}
    for sentence in filter(_is_sentence, sentences(normalise(text))):
        content = content_words(sentence)
        for fact in truth.facts:
            if fact.id in found or fact.id in given:
                continue
            evidence = find_fact(fact, sentence, content)
            if evidence.level == "exact" and not denies(sentence, fact, evidence.quote or ""):
                found[fact.id] = sentence
    return {fact.id: found[fact.id] for fact in truth.facts if fact.id in found}


def _is_sentence(sentence: str) -> bool:
    """Whether it can assert something."""
    found = words(sentence)
    if len(found) < LEAST_WORDS or sentence.rstrip("\"')] ").endswith("?"):
        return False
    return sum(word in SCAFFOLD for word in found) >= LEAST_GRAMMAR * len(found)


def denies(sentence: str, fact: Fact, quote: str) -> bool:
    """Whether a negation stands in the stretch that carries the fact, or up to four words before it in the
    same clause.
    """
    if fact.checklist is None:  # there is no stretch, only words all over the sentence
        return not _NEGATED.search(normalise(fact.text)) and _NEGATED.search(sentence) is not None
    return _NEGATED.search(quote) is not None or _NEGATED_BEFORE.search(sentence[: sentence.index(quote)]) is not None


def shares_facts(one: GroundTruth, other: GroundTruth) -> bool:
    """Whether a fact of one, as its ground truth words it, states a fact of the other: they are then no controls for
    each other.
    """
    pairs = ((one, other), (other, one))
    return any(
        stated_facts(f"{first.summary} {fact.text}", second)
        for first, second in pairs
        if makes_claims(second)
        for fact in first.facts
    )
