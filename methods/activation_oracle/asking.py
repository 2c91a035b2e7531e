"""Asks a verbalizer about vectors: its prompts with the vectors injected at their placeholders, all in one batched
generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.methods.activation_oracle.prompts import Template, oracle_prompt, oracle_text, padded_places
from diffing_mcp.methods.activation_oracle.verbalizers import Verbalizer
from diffing_mcp.model_pairs.chat import ChatMessage
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.interventions import Intervention, PromptTokens
from diffing_mcp.model_pairs.specs import Side

if TYPE_CHECKING:
    from torch import Tensor

    from diffing_mcp.model_pairs.pair import LoadedPair


def ask(
    pair: LoadedPair,
    verbalizer: Verbalizer,
    asked: Sequence[tuple[str, Tensor]],
    layer: int,
    injection_layer: int,
    coefficient: float,
    sampling: Sampling,
    progress: Progress = silent,
) -> list[str]:
    """One answer to each (question, vectors [K, d_model]); equal calls draw equal random numbers, whatever the vectors.

    A trained verbalizer gets r + coefficient * |r| * v / |v| at its placeholders. The base model by itself knows no
    injections: for it the vectors take the placeholders' place, in the length of what was there, as in a patchscope.

    Args:
        layer: absolute layer that the vectors come from.
        injection_layer: absolute layer after which they are injected.
    """
    template: Template = verbalizer.template if pair.has_chat_template else "none"
    known: dict[tuple[str, int], tuple[GenerationRequest, list[int]]] = {}
    for question, vectors in asked:
        if (question, len(vectors)) not in known:
            known[question, len(vectors)] = _prompt(pair, verbalizer, layer, len(vectors), question, template)
    prompts = [known[question, len(vectors)] for question, vectors in asked]
    indices = torch.tensor(padded_places([places for _, places in prompts]))
    mode: Literal["add", "replace"] = "replace" if verbalizer.adapter is None else "add"
    injected = stacked([vectors for _, vectors in asked], indices.shape[1])
    injection = Intervention(injection_layer, injected, coefficient, mode, PromptTokens(indices), match_norm=True)
    side: Side = "base" if verbalizer.adapter is None else "finetuned"
    completions = pair.with_adapter(verbalizer.adapter).generate(
        side, [request for request, _ in prompts], sampling, progress, [injection]
    )
    return [several[0].text.strip() for several in completions]


def _prompt(
    pair: LoadedPair, verbalizer: Verbalizer, layer: int, count: int, question: str, template: Template
) -> tuple[GenerationRequest, list[int]]:
    """The request of one question on `count` vectors, and the tokens that they go into."""
    words = oracle_text(None if verbalizer.adapter is None else layer, count, question, template)
    if template == "none":
        return GenerationRequest(text=words), oracle_prompt(pair.tokenizer, words, count).places
    messages = (ChatMessage(role="user", content=words),)
    return GenerationRequest(messages=messages), oracle_prompt(
        pair.tokenizer, pair.render_chat(messages), count, special=False
    ).places


def stacked(vectors: Sequence[Tensor], width: int) -> Tensor:
    """[B, K, d_model]: vectors [K_i, d_model] of each row, zeros where it has fewer than K = `width`."""
    result = torch.zeros(len(vectors), width, vectors[0].shape[-1], device=vectors[0].device)
    for index, several in enumerate(vectors):
        result[index, : len(several)] = several
    return result
