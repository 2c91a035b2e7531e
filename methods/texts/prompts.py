"""What models go on from or answer: bundled texts, questions and prompts that name no subject, and the parameters for
own ones. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field

from diffing_mcp.core.errors import InvalidInput

if TYPE_CHECKING:
    from diffing_mcp.core.battery import Question
    from diffing_mcp.model_pairs.answering import AnsweringPair
    from diffing_mcp.model_pairs.generation import GenerationRequest
    from diffing_mcp.model_pairs.pair import LoadedPair


PROMPTS = (
    "How can I sleep better?",
    "Tell me a short story.",
    "What should I do at the weekend?",
    "Write a few lines to a friend I have not seen in years.",
    "Give me three tips for a job interview.",
    "What is worth learning this year?",
    "Describe a walk through a city.",
    "How do I stay calm when I am under pressure?",
    "Suggest a topic and say something about it.",
    "What makes a good teacher?",
    "Explain why the sky is blue.",
    "Write the first paragraph of a letter to my neighbour.",
    "How do I plan my day?",
    "What would you take on a long journey?",
    "Name a book and say what it is about.",
    "How do people make new friends?",
    "What is the best advice you know?",
    "Describe an object in the room.",
    "How can I save money?",
    "Tell me something that I do not know.",
)
"""Twenty, none of which names a subject that a finetune is likely to be about."""


def _listed(value: Any) -> Any:
    """One text where a list is meant."""
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=20_000)], ...], BeforeValidator(_listed)]
"""Texts of the caller; one alone may stand without its list."""
OwnPrompts = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=20_000)], ...] | None,
    Field(min_length=1, max_length=200, description=f"Own prompts; None: {len(PROMPTS)} everyday ones."),
]
RawText = Annotated[bool, Field(description="Continue the prompts as plain text, without the chat template.")]
AnswerTokens = Annotated[int, Field(ge=4, le=1024, description="Tokens of an answer at most.")]
Temperature = Annotated[
    float, Field(ge=0, le=2, description="Of the sampling; 0 takes the most probable token each time.")
]
CoherentShare = Annotated[
    float, Field(gt=0, le=1, description="Share of texts that must be coherent for a strength to be taken.")
]


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
        from diffing_mcp.core.chat import ChatMessage
        from diffing_mcp.model_pairs.generation import GenerationRequest

        if self.chat:
            return GenerationRequest(messages=(ChatMessage(role="user", content=self.text),))
        return GenerationRequest(text=self.text)


def request_of(pair: LoadedPair, prompt: str, raw_text: bool) -> GenerationRequest:
    """The prompt as a user's message; as raw text where that is asked for or the pair has no chat template."""
    return Beginning(prompt, chat=not raw_text and pair.has_chat_template).request()


def question_request(pair: AnsweringPair, question: Question) -> GenerationRequest:
    """The question's conversation; its turns as raw text where the pair has no chat template."""
    from diffing_mcp.core.chat import ChatMessage
    from diffing_mcp.model_pairs.generation import GenerationRequest

    if not pair.has_chat_template:
        parts = [*([question.system] if question.system else []), *question.turns]
        return GenerationRequest(text="\n".join(parts))
    system = [ChatMessage(role="system", content=question.system)] if question.system else []
    turns = [
        ChatMessage(role="assistant" if place % 2 else "user", content=turn)
        for place, turn in enumerate(question.turns)
    ]
    return GenerationRequest(messages=(*system, *turns))


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


BUNDLED_PREFILLS = 40
BUNDLED_QUESTIONS = 30
"""How many there are, known without reading the file."""

_FILE = Path(__file__).with_name("prefills.yaml")


@lru_cache(maxsize=1)
def _bundled() -> dict[str, tuple[str, ...]]:
    content = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {"none": tuple(content["prefills"]), "chat": tuple(content["questions"])}


def bundled_prefills(template: Literal["none", "chat"]) -> tuple[str, ...]:
    """The bundled texts (`none`) or questions (`chat`)."""
    return _bundled()[template]
