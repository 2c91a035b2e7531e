"""What a verbalizer is asked: a line with the layer and one placeholder for each activation, then the question. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from organisms.errors import InvalidInput

if TYPE_CHECKING:
    from model_pairs.pair import LoadedPair

Template = Literal["chat", "none"]
PLACEHOLDER = " ?"


@dataclass(frozen=True)
class OraclePrompt:
    """Text of a prompt, and which of its tokens the activations go into."""

    text: str
    ids: list[int]
    places: list[int]


def oracle_text(layer: int, count: int, question: str, template: Template) -> str:
    """The words of the prompt, before any chat template."""
    words = f"Layer: {layer}{PLACEHOLDER * count}\n{question}"
    return words if template == "chat" else f"{words}\nAnswer:"


def oracle_prompt(tokenizer: Any, words: str, layer: int, count: int, rendered: str | None = None) -> OraclePrompt:
    """Token ids and places of the placeholders; `rendered` is the words in a chat template, with its special tokens.

    Raises:
        InvalidInput: a tokenizer that does not keep the placeholders apart.
    """
    text = words if rendered is None else rendered
    ids = list(tokenizer(text, add_special_tokens=rendered is None)["input_ids"])
    alone = tokenizer(PLACEHOLDER, add_special_tokens=False)["input_ids"]
    mark = alone[-1]
    places = [index for index, token in enumerate(ids) if token == mark]
    # The first run of `count` marks in a row is ours: questions may hold the same token.
    step = len(alone)
    for start in range(len(places) - count + 1):
        run = places[start : start + count]
        if run == list(range(run[0], run[0] + count * step, step)):
            return OraclePrompt(text, ids, run)
    raise InvalidInput(f"This model's tokenizer merges the {count} placeholders for activations; the oracle cannot be asked with it.")


def prompts_for(pair: LoadedPair, layer: int, count: int, question: str, template: Template) -> OraclePrompt:
    """The prompt of one question on `count` activations of a layer."""
    words = oracle_text(layer, count, question, template)
    rendered = None
    if template == "chat":
        from model_pairs.chat import ChatMessage

        rendered = pair.render_chat([ChatMessage(role="user", content=words)])
    return oracle_prompt(pair.tokenizer, words, layer, count, rendered)


def padded_places(places: Sequence[Sequence[int]]) -> list[list[int]]:
    """Places of several prompts as one rectangle, -1 where a prompt has fewer."""
    width = max(len(each) for each in places)
    return [[*each, *[-1] * (width - len(each))] for each in places]
