"""What a verbalizer is asked and how: a line with the layer and one placeholder for each vector, then the question; the
vectors are injected at the placeholders, all questions in one batched generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.methods.activation_oracle.verbalizers import Template, Verbalizer
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.interventions import Intervention, PromptTokens
from diffing_mcp.model_pairs.padding import padded
from diffing_mcp.model_pairs.specs import Side

if TYPE_CHECKING:
    from torch import Tensor

    from diffing_mcp.model_pairs.pair import LoadedPair


PLACEHOLDER = " ?"


@dataclass(frozen=True)
class OraclePrompt:
    """Token ids of a prompt, and which of them the activations go into."""

    ids: list[int]
    places: list[int]


def oracle_text(layer: int | None, count: int, question: str, template: Template) -> str:
    """The words of the prompt, before any chat template. Without a layer: for a model that was not trained to know
    about layers.
    """
    words = f"{'Text:' if layer is None else f'Layer: {layer}'}{PLACEHOLDER * count}\n{question}"
    return words if template == "chat" else f"{words}\nAnswer:"


def oracle_prompt(tokenizer: Any, text: str, count: int, special: bool = True) -> OraclePrompt:
    """Token ids of a prompt's whole text and the places of its first `count` placeholders in a row.

    Args:
        special: let the tokenizer add its special tokens (text from a chat template has them already).

    Raises:
        InvalidInput: a tokenizer that does not keep the placeholders apart.
    """
    ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    alone = tokenizer(PLACEHOLDER, add_special_tokens=False)["input_ids"]
    step = len(alone)
    marks = [index for index, token in enumerate(ids) if token == alone[-1]]
    for start in range(len(marks) - count + 1):
        run = marks[start : start + count]
        if run == list(range(run[0], run[0] + count * step, step)):
            return OraclePrompt(ids, run)
    raise InvalidInput(
        f"This model's tokenizer merges the {count} placeholders for activations; the oracle cannot be asked with it."
    )


def padded_places(places: Sequence[Sequence[int]]) -> list[list[int]]:
    """Places of several prompts as one rectangle, -1 where a prompt has fewer."""
    width = max(len(each) for each in places)
    return [[*each, *[-1] * (width - len(each))] for each in places]


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


def residual_streams(
    pair: LoadedPair,
    side: Side,
    texts: Sequence[Sequence[int]],
    layer: int,
    at_once: int,
    progress: Progress = silent,
) -> list[Tensor]:
    """Residual stream [T, d_model] after an absolute layer of each text (token ids), float32 on the CPU; `at_once`
    texts a forward pass.
    """
    result: list[Tensor] = []
    for start in range(0, len(texts), at_once):
        progress(0, None, f"reading the contexts with the {side} model")
        batch = texts[start : start + at_once]
        ids, mask = padded(batch, pair.tokenizer.pad_token_id)
        hidden = pair.forward(side, ids, mask, layers=[layer], logits=False).hidden[layer]
        result += [hidden[row, : len(each)].float().cpu() for row, each in enumerate(batch)]
    return result
