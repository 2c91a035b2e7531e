"""Both models answer, the base twice; every answer is scored under both. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffing_mcp.core.battery import Question
from diffing_mcp.core.progress import Progress
from diffing_mcp.methods.sweep_behaviours.answers import WRITERS, Answered, Reply, Writer, store
from diffing_mcp.methods.sweep_behaviours.judge import judge
from diffing_mcp.methods.sweep_behaviours.questions import chosen_questions
from diffing_mcp.methods.sweep_behaviours.schema import TEMPERATURE, SweepParams, SweepResult
from diffing_mcp.methods.texts.answer_scores import mean_log_probs
from diffing_mcp.model_pairs.chat import ChatMessage
from diffing_mcp.model_pairs.generation import Completion, GenerationRequest, Sampling
from diffing_mcp.model_pairs.specs import SIDES

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair


def sweep(pair: LoadedPair, params: SweepParams, run: RunWriter, progress: Progress) -> SweepResult:
    """Ask, score, store and judge.

    Raises:
        InvalidInput: an unknown domain, or a question that does not fit into the context.
    """
    asked = chosen_questions(params)
    requests = [_request(pair, each.question) for each in asked]
    written = _answers(pair, requests, params, progress)
    texts = [
        (request, completion.text)
        for writer in WRITERS
        for request, several in zip(requests, written[writer], strict=True)
        for completion in several
    ]
    scores = mean_log_probs(pair, texts, SIDES, _part(progress, 0.85, 1.0))
    shape = len(WRITERS), len(asked), params.samples
    base, finetuned = (scores[side].reshape(shape) for side in SIDES)
    answered = [
        Answered(
            asked=each,
            replies={
                writer: [
                    Reply(
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
    result, clusters = judge(answered, params.seed)
    store(run, answered, clusters)
    return result


def _request(pair: LoadedPair, question: Question) -> GenerationRequest:
    """The conversation; raw text where the pair has no chat template."""
    if not pair.has_chat_template:
        parts = [*([question.system] if question.system else []), *question.turns]
        return GenerationRequest(text="\n".join(parts))
    system = [ChatMessage(role="system", content=question.system)] if question.system else []
    turns = [
        ChatMessage(role="assistant" if place % 2 else "user", content=turn)
        for place, turn in enumerate(question.turns)
    ]
    return GenerationRequest(messages=(*system, *turns))


def _answers(
    pair: LoadedPair, requests: Sequence[GenerationRequest], params: SweepParams, progress: Progress
) -> dict[Writer, list[list[Completion]]]:
    """The finetuned model draws the random numbers of the base's first answers; the base's second ones are fresh."""

    def sampling(count: int) -> Sampling:
        return Sampling(n=count, temperature=TEMPERATURE, max_new_tokens=params.max_new_tokens, seed=params.seed)

    with pair.side_loaded("base"):
        base = pair.generate("base", requests, sampling(2 * params.samples), _part(progress, 0.0, 0.55, "base answers"))
    with pair.side_loaded("finetuned"):
        finetuned = pair.generate(
            "finetuned", requests, sampling(params.samples), _part(progress, 0.55, 0.85, "finetuned answers")
        )
    return {
        "base": [several[: params.samples] for several in base],
        "base again": [several[params.samples :] for several in base],
        "finetuned": finetuned,
    }


def _part(progress: Progress, begin: float, end: float, name: str = "scoring answers") -> Progress:
    """Progress of a part of the work, on the scale of the whole."""

    def report(done: float, total: float | None = None, message: str = "") -> None:
        progress(begin + (end - begin) * (done / total if total else 0.0), 1.0, name)

    return report
