"""Prompts of the methods that change how a model writes: bundled ones, and the parameters for own ones. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
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

OwnPrompts = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=20_000)], ...] | None,
    Field(min_length=1, max_length=200, description=f"Own prompts; None: {len(PROMPTS)} everyday ones."),
]
RawText = Annotated[bool, Field(description="Continue the prompts as plain text, without the chat template.")]
AnswerTokens = Annotated[int, Field(ge=4, le=1024, description="Tokens of an answer at most.")]
Temperature = Annotated[
    float, Field(ge=0, le=2, description="Of the sampling; 0 takes the most probable token each time.")
]


def request_of(pair: LoadedPair, prompt: str, raw_text: bool) -> GenerationRequest:
    """The prompt as a user's message; as raw text where that is asked for or the pair has no chat template."""
    from diffing_mcp.model_pairs.chat import ChatMessage
    from diffing_mcp.model_pairs.generation import GenerationRequest

    if raw_text or not pair.has_chat_template:
        return GenerationRequest(text=prompt)
    return GenerationRequest(messages=(ChatMessage(role="user", content=prompt),))
