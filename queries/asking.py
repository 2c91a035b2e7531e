"""The same prompts put to both sides. Imports torch: only jobs and notebooks import this module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffing_mcp.core.progress import Progress, stage
from diffing_mcp.model_pairs.chat import ChatMessage
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.queries.schemas import AskQuery, SideName

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.generation import Completion
    from diffing_mcp.model_pairs.pair import LoadedPair


def answers(
    pair: LoadedPair, arguments: AskQuery, sides: Sequence[SideName], progress: Progress
) -> dict[SideName, list[list[Completion]]]:
    """Completions of every prompt and conversation by each side: side -> prompt -> sample, all prompts of a side in one
    batched generation.
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
    completions: dict[SideName, list[list[Completion]]] = {}
    for place, side in enumerate(sides):
        completions[side] = pair.generate(
            side, requests, sampling, stage(progress, place, place + 1, len(sides), f"{side} answers")
        )
    return completions


def generation_requests(arguments: AskQuery) -> list[GenerationRequest]:
    """One request a prompt, then one a conversation, with the system prompt put before those that have none."""
    if arguments.raw_text:
        return [GenerationRequest(text=prompt, prefill=arguments.prefill) for prompt in arguments.prompts]
    conversations = [[ChatMessage(role="user", content=prompt)] for prompt in arguments.prompts]
    conversations += [
        [ChatMessage(role=turn.role, content=turn.content) for turn in turns] for turns in arguments.conversations
    ]
    if arguments.system_prompt is not None:
        system = ChatMessage(role="system", content=arguments.system_prompt)
        conversations = [turns if turns[0].role == "system" else [system, *turns] for turns in conversations]
    return [GenerationRequest(messages=turns, prefill=arguments.prefill) for turns in conversations]
