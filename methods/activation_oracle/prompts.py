"""What a verbalizer is asked: a line with the layer and one placeholder for each activation, then the question.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffing_mcp.core.errors import InvalidInput

Template = Literal["chat", "none"]
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
