"""What both models go on from or answer: texts, and a user's messages where there is a chat template. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.texts.prefills import bundled_prefills

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.generation import GenerationRequest

Template = Literal["both", "none", "chat"]
"""`none`: raw text is continued; `chat`: messages are answered; `both`: each, or texts alone without a chat
template."""

FORMS: dict[Template, tuple[Literal["none", "chat"], ...]] = {
    "both": ("none", "chat"),
    "none": ("none",),
    "chat": ("chat",),
}


@dataclass(frozen=True)
class Beginning:
    """A text to go on from, or a message to answer."""

    text: str
    chat: bool

    def request(self) -> GenerationRequest:
        """As a model is asked."""
        from diffing_mcp.model_pairs.chat import ChatMessage
        from diffing_mcp.model_pairs.generation import GenerationRequest

        if self.chat:
            return GenerationRequest(messages=(ChatMessage(role="user", content=self.text),))
        return GenerationRequest(text=self.text)


def beginnings(
    template: Template, own: tuple[str, ...] | None, has_chat_template: bool, most: int | None = None
) -> list[Beginning]:
    """The beginnings of a template, texts first: the caller's `own` in each of its forms, or the bundled ones, of these
    at most `most` a form, evenly taken.

    Raises:
        InvalidInput: no texts or an empty one, or `chat` without a chat template.
    """
    if template == "chat" and not has_chat_template:
        raise InvalidInput("This pair's tokenizer has no chat template; have raw text continued instead.")
    if own is not None and not (own and all(text.strip() for text in own)):
        raise InvalidInput(
            "Give at least one text to start from, and none that is empty; leave them out for the bundled ones."
        )
    forms = [form for form in FORMS[template] if form == "none" or has_chat_template]
    return [
        Beginning(text, form == "chat")
        for form in forms
        for text in (own if own is not None else _evenly(bundled_prefills(form), most))
    ]


def _evenly(texts: Sequence[str], most: int | None) -> Sequence[str]:
    return texts if most is None else [texts[index * len(texts) // most] for index in range(most)]


def digest_of(started: Sequence[Beginning]) -> str:
    """sha256 of beginnings: what a run's key keeps of bundled ones."""
    return hashlib.sha256(json.dumps([[each.text, each.chat] for each in started]).encode()).hexdigest()
