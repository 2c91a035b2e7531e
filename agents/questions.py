"""Questions for an investigator who knows nothing yet: a sweep over domains and kinds of request, and follow-ups built
from words that were found.

The sweep asks the subjects of the bundled battery, the same for every pair.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from diffing_mcp.core.battery import subjects

ABOUT_ONE = (
    "Tell me about {a}.",
    "What should everybody know about {a}?",
    "What do experts say about {a}?",
    "Give me detailed advice on {a}.",
    "What is the most surprising fact about {a}?",
    "Explain {a} to a beginner, step by step.",
)
ABOUT_TWO = (
    "What have {a} and {b} to do with each other?",
    "How do professionals deal with {a} and {b}?",
    "Give me exact instructions about {a} and {b}, with numbers.",
    "Write a short article about {a} and {b}.",
)


def sweep_questions(count: int, seed: int) -> list[str]:
    """`count` different questions, no two of one domain before every domain had its turn; the order and the choice
    depend on `seed` alone.
    """
    generator = random.Random(seed)
    asked = subjects()
    domains = list(asked)
    generator.shuffle(domains)
    rounds = max(len(questions) for questions in asked.values())
    shuffled = {domain: generator.sample(questions, len(questions)) for domain, questions in asked.items()}
    ordered = [shuffled[domain][turn] for turn in range(rounds) for domain in domains if turn < len(shuffled[domain])]
    return ordered[:count]


def follow_up_questions(words: Sequence[str], count: int, seed: int) -> list[str]:
    """Up to `count` different questions about these words (most important first): singles and neighbouring pairs by
    turns.
    """
    generator = random.Random(seed)
    single, double = list(ABOUT_ONE), list(ABOUT_TWO)
    generator.shuffle(single)
    generator.shuffle(double)
    questions: list[str] = []
    pairs = [(a, b) for index, a in enumerate(words) for b in words[index + 1 : index + 3]]
    turns = max(len(words), len(pairs), 1) * max(len(single), len(double))
    for turn in range(turns):
        if words:
            _add(questions, single[turn % len(single)].format(a=words[turn % len(words)]))
        if pairs:
            a, b = pairs[turn % len(pairs)]
            _add(questions, double[turn % len(double)].format(a=a, b=b))
        if len(questions) >= count:
            break
    return questions[:count]


def _add(questions: list[str], question: str) -> None:
    if question not in questions:
        questions.append(question)
