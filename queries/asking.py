"""The same prompts put to both sides. Imports torch: only jobs and notebooks import this module."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.core.progress import Progress, stage
from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.wanted_models import state_of_files
from diffing_mcp.queries.schemas import AskQuery, ChatTurn, SideName

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.answering import AnsweringPair
    from diffing_mcp.model_pairs.generation import Completion
    from diffing_mcp.queries.answer_memory import AnswerMemory

WrittenBySide = Callable[[SideName, int, int, str], None]
"""Told now and then how far an answer is: side, prompt, sample, text so far."""


def answers(
    pair: AnsweringPair,
    arguments: AskQuery,
    sides: Sequence[SideName],
    progress: Progress,
    written: WrittenBySide | None = None,
    memory: AnswerMemory | None = None,
) -> dict[SideName, list[list[Completion]]]:
    """Completions of every prompt and conversation by each side: side -> prompt -> sample, all prompts of a side in one
    batched generation. `written` is told of them while they are written; what a `memory` holds of an equal call is not
    written again.
    """
    requests = generation_requests(arguments)
    sampling = Sampling(
        n=arguments.samples,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
        thinking=arguments.thinking,
    )
    return completions(pair, requests, sampling, sides, progress, written, memory)


def completions(
    pair: AnsweringPair,
    requests: Sequence[GenerationRequest],
    sampling: Sampling,
    sides: Sequence[SideName],
    progress: Progress,
    written: WrittenBySide | None = None,
    memory: AnswerMemory | None = None,
) -> dict[SideName, list[list[Completion]]]:
    """What each side writes after the same requests with the same random numbers: side -> request -> sample."""
    found: dict[SideName, list[list[Completion]]] = {}
    for place, side in enumerate(sides):
        key = None if memory is None else _decided_by(pair, side, requests, sampling)
        known = None if memory is None or key is None else memory.get(key)
        if known is None:
            shown = stage(progress, place, place + 1, len(sides), f"{side} answers")
            told = None if written is None else partial(written, side)
            known = pair.generate(side, requests, sampling, shown, written=told)
            if memory is not None and key is not None:
                memory.keep(key, known)
        found[side] = known
    return found


def _decided_by(
    pair: AnsweringPair, side: SideName, requests: Sequence[GenerationRequest], sampling: Sampling
) -> Hashable | None:
    """All that decides what a side of models in memory writes; None for other pairs, which may answer anew."""
    if not isinstance(pair, LoadedPair):
        return None
    reader = pair.finetuned_tokenizer if side == "finetuned" else None
    switch = pair.spec.base.files.thinking_switch
    source = pair.spec.base if side == "base" else pair.spec.finetuned
    ends = source.files.end_of_turn_token, pair.stops
    # The same weights are another model under another configuration, which lies in the files.
    model = pair.weight_digest(side), state_of_files(source.files, source.adapter), source.files.attn_implementation
    backend = settings().generation_backend
    return model, pair.tokenizer, reader, switch, ends, pair.context_length, backend, tuple(requests), sampling


def generation_requests(arguments: AskQuery) -> list[GenerationRequest]:
    """One request a prompt, then one a conversation, with the system prompt put before those that have none."""
    turns = [chat_of(each) for each in arguments.conversations]
    requests = [
        *requests_of(arguments.prompts, arguments.raw_text, arguments.system_prompt),
        *(GenerationRequest(messages=_under(arguments.system_prompt, each)) for each in turns),
    ]
    return [
        request.model_copy(update={"prefill": prefill})
        for request, prefill in zip(requests, arguments.prefills, strict=True)
    ]


def chat_of(turns: Sequence[ChatTurn]) -> tuple[ChatMessage, ...]:
    """Turns as the chat template takes them."""
    return tuple(ChatMessage(role=turn.role, content=turn.content) for turn in turns)


def requests_of(
    prompts: Sequence[str], raw_text: bool = False, system_prompt: str | None = None
) -> list[GenerationRequest]:
    """Each prompt as a user message in the chat template, or as plain text to continue."""
    if raw_text:
        return [GenerationRequest(text=prompt) for prompt in prompts]
    return [
        GenerationRequest(messages=_under(system_prompt, [ChatMessage(role="user", content=prompt)]))
        for prompt in prompts
    ]


def _under(system_prompt: str | None, turns: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    if system_prompt is None or turns[0].role == "system":
        return tuple(turns)
    return (ChatMessage(role="system", content=system_prompt), *turns)
