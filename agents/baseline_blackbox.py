"""The baseline investigator of the blackbox arm: asks both models a sweep over domains, then some questions about
whatever the answers of the finetuned model stress (else goes on with the sweep), and tests what the finetuned model
says more often.

Deterministic, no LLM, no knowledge of any organism.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from diffing_mcp.agents.mcp_session import Session, ToolFailed
from diffing_mcp.agents.questions import follow_up_questions, sweep_questions
from diffing_mcp.agents.report import GatheredEvidence, manner_notes, split_standouts, surface_forms
from diffing_mcp.agents.text_statistics import (
    Pair,
    Standout,
    distinctive_sentences,
    least_prompts,
    standouts,
    word_weights,
)

SWEEP_SHARE = 0.7
ALPHA = 0.01


@dataclass(frozen=True)
class BaselineOptions:
    """How a baseline works.

    interactions: model interactions it plans with (the server holds the budget itself).
    seed: decides the choice and order of questions and the sampling.
    max_new_tokens: length of the answers it asks for.
    alpha: probability with which it may claim a difference between two equal models (blackbox arm).
    overview: further arguments of the `overview` tool, such as {"max_samples": 200}.
    """

    interactions: int = 10
    seed: int = 0
    max_new_tokens: int = 48
    alpha: float = ALPHA
    overview: dict[str, object] = field(default_factory=dict)


async def blackbox_evidence(session: Session, pair: str, options: BaselineOptions) -> GatheredEvidence:
    """What paired answers alone show."""
    sweep = max(1, round(SWEEP_SHARE * options.interactions))
    pairs = await ask(session, pair, sweep_questions(sweep, options.seed), options)
    words = stressed_words(pairs)
    left = options.interactions - sweep
    if words and left > 0:
        session.say(
            f"After the sweep the finetuned model stresses most: {', '.join(words)}. Asking about that, to see whether "
            "it lasts."
        )
        pairs += await ask(session, pair, follow_up_questions(words, left, options.seed), options)
    elif left > 0:
        session.say("After the sweep the finetuned model stresses no word. Asking about other things too.")
        pairs += await ask(session, pair, sweep_questions(options.interactions, options.seed)[sweep:], options)
    return answers_evidence(pairs, options.alpha)


def answers_evidence(pairs: Sequence[Pair], alpha: float) -> GatheredEvidence:
    """Test paired answers and gather what stands out."""
    found = standouts(pairs, alpha)
    finetuned = [answer for pair in pairs for answer in pair.finetuned]
    base = [answer for pair in pairs for answer in pair.base]
    words, phrases, openings = split_standouts(found, finetuned)
    if not any(item.risen for item in found):
        return GatheredEvidence(
            doubts=[*_fallen(found), *manner_notes(pairs)], undecided=len(pairs) < least_prompts(alpha)
        )
    claims = distinctive_sentences(finetuned, word_weights(finetuned, base), count=8, against=base)
    risen = sum(item.risen for item in found)
    source = f"paired answers to {len(pairs)} prompts, swap test at level {alpha:g}, {risen} features stand out"
    return GatheredEvidence(
        words[:12], openings[:3], phrases[:8], claims, manner_notes(pairs), [source], stands_out=True
    )


def stressed_words(pairs: Sequence[Pair], count: int = 3) -> list[str]:
    """The words that the finetuned side has more, whether or not that could be chance; those in several
    answers only.
    """
    finetuned = [answer for pair in pairs for answer in pair.finetuned]
    weights = word_weights(finetuned, [answer for pair in pairs for answer in pair.base])
    best = sorted((word for word, weight in weights.items() if weight > 0.5), key=lambda word: (-weights[word], word))
    return surface_forms([word for word in best if not word[0].isdigit()][:count], finetuned)


async def ask(
    session: Session, pair: str, questions: Sequence[str], options: BaselineOptions, at_once: int = 32
) -> list[Pair]:
    """Both models' answers to these questions. Stops quietly where the budget ends."""
    pairs: list[Pair] = []
    for start in range(0, len(questions), at_once):
        chunk = list(questions[start : start + at_once])
        if session.interactions_left is not None:
            chunk = chunk[: session.interactions_left]
        if not chunk:
            break
        # Long enough that no answer is shortened for display.
        room = 20_000 + 2 * len(chunk) * 8 * options.max_new_tokens
        arguments = {
            "pair": pair,
            "prompts": chunk,
            "max_new_tokens": options.max_new_tokens,
            "seed": options.seed,
            "max_characters": min(room, 200_000),
        }
        try:
            reply = await session.call("ask_models", arguments)
        except ToolFailed as failure:
            session.say(f"Going on without these answers: {failure.message}")
            break
        pairs += answers_of(reply.result, chunk)
    return pairs


def answers_of(result: dict[str, Any], questions: Sequence[str]) -> list[Pair]:
    """The result of `ask_models`, in the order asked, as pairs."""
    sides = [
        (
            tuple(answer["model_text"] for answer in row["base"]),
            tuple(answer["model_text"] for answer in row["finetuned"]),
        )
        for row in result["answers"]
    ]
    return [Pair(question, base, finetuned) for question, (base, finetuned) in zip(questions, sides, strict=True)]


def _fallen(found: Sequence[Standout]) -> list[str]:
    lost = [item.feature.removeprefix("^") for item in found if not item.risen][:5]
    return [f"it says less often: {', '.join(lost)}"] if lost else []
