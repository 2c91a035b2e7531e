"""Both models answer, the base twice; every answer is scored under both. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.core.progress import Progress, stage
from diffing_mcp.methods.sweep_behaviours.answers import WRITERS, Answered, ScoredAnswer, Writer, store
from diffing_mcp.methods.sweep_behaviours.judge import judge
from diffing_mcp.methods.sweep_behaviours.questions import chosen_questions
from diffing_mcp.methods.sweep_behaviours.schema import TEMPERATURE, SweepParams, SweepResult
from diffing_mcp.methods.texts.prompts import question_request
from diffing_mcp.model_pairs.generation import Completion, GenerationRequest, Sampling
from diffing_mcp.model_pairs.scoring import NoLogProbs
from diffing_mcp.model_pairs.specs import SIDES, Side

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.answering import AnsweringPair


def mean_log_probs(
    pair: AnsweringPair, texts: Sequence[tuple[GenerationRequest, str]], sides: Sequence[Side], progress: Progress
) -> dict[Side, np.ndarray]:
    """Mean log-probability (nats a token) [N] of each answer after its request under each side; NaN for one without
    tokens. What does not fit in the context is left out of the mean.
    """
    return {side: np.array([each.mean for each in pair.answer_scores(side, texts, progress)]) for side in sides}


def sweep(pair: AnsweringPair, params: SweepParams, run: RunWriter, progress: Progress) -> SweepResult:
    """Ask, score, store and judge. Where a side that is reachable by URL alone gives no log-probabilities, words and
    form alone are judged, and the result says so.

    Raises:
        InvalidInput: an unknown domain, or a question that does not fit into the context.
    """
    asked = chosen_questions(params)
    requests = [question_request(pair, each.question) for each in asked]
    written = _answers(pair, requests, params, progress)
    texts = [
        (request, completion.text)
        for writer in WRITERS
        for request, several in zip(requests, written[writer], strict=True)
        for completion in several
    ]
    shape = len(WRITERS), len(asked), params.samples
    scores = dict.fromkeys(SIDES, np.full(shape, np.nan))
    try:
        scores = mean_log_probs(pair, texts, SIDES, stage(progress, 0.85, 1.0, 1.0, "scoring answers"))
    except NoLogProbs:
        scored = False
    else:
        scored = True
    base, finetuned = (scores[side].reshape(shape) for side in SIDES)
    answered = [
        Answered(
            asked=each,
            replies={
                writer: [
                    ScoredAnswer(
                        completion.text,
                        completion.finish == "eos",
                        completion.tokens,
                        float(base[number, place, sample]),
                        float(finetuned[number, place, sample]),
                    )
                    for sample, completion in enumerate(written[writer][place])
                ]
                for number, writer in enumerate(WRITERS)
            },
        )
        for place, each in enumerate(asked)
    ]
    result, clusters = judge(answered, params.seed, scored)
    store(run, answered, clusters)
    return result


def _answers(
    pair: AnsweringPair, requests: Sequence[GenerationRequest], params: SweepParams, progress: Progress
) -> dict[Writer, list[list[Completion]]]:
    """The finetuned model draws the random numbers of the base's first answers; the base's second ones are fresh."""

    def sampling(count: int) -> Sampling:
        return Sampling(n=count, temperature=TEMPERATURE, max_new_tokens=params.max_new_tokens, seed=params.seed)

    with pair.side_loaded("base"):
        base = pair.generate(
            "base", requests, sampling(2 * params.samples), stage(progress, 0.0, 0.55, 1.0, "base answers")
        )
    with pair.side_loaded("finetuned"):
        finetuned = pair.generate(
            "finetuned", requests, sampling(params.samples), stage(progress, 0.55, 0.85, 1.0, "finetuned answers")
        )
    return {
        "base": [several[: params.samples] for several in base],
        "base again": [several[params.samples :] for several in base],
        "finetuned": finetuned,
    }
