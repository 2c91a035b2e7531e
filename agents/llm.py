"""Inspect's models outside of an Inspect evaluation: one way to name a model, and a plain question to it. Needs the extra `eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from organisms.errors import DiffingError

if TYPE_CHECKING:
    from inspect_ai.model import Model

    from graders.replies import Ask


class ModelNotAvailable(DiffingError):
    """A language model cannot be used: the extra is not installed, its provider is unknown, or its key is missing."""

    code = "model_not_available"


def language_model(name: str, base_url: str | None = None) -> Model:
    """The Inspect model `provider/name`, at `base_url` when it is not the provider's own.

    Raises:
        ModelNotAvailable: with what to install or set.
    """
    try:
        from inspect_ai.model import get_model
    except ModuleNotFoundError as error:
        raise ModelNotAvailable("LLM investigators and graders need the extra `eval`: pip install 'diffing-mcp[eval]'.") from error
    try:
        return get_model(name, base_url=base_url)
    except Exception as error:  # Inspect has its own error for each provider; the first line says what is missing
        reason = " ".join(str(error).split())[:400]
        raise ModelNotAvailable(
            f"The model {name!r} cannot be used: {reason}. Models are named as in Inspect: anthropic/NAME, openai/NAME, openai-api/SERVICE/NAME."
        ) from error


def ask_with(name: str, base_url: str | None = None) -> Ask:
    """An asker for graders: returns the text of the reply."""
    from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig

    model = language_model(name, base_url)
    kinds: dict[str, type[ChatMessageSystem] | type[ChatMessageUser] | type[ChatMessageAssistant]] = {
        "system": ChatMessageSystem,
        "user": ChatMessageUser,
        "assistant": ChatMessageAssistant,
    }

    async def ask(messages: list[dict[str, str]]) -> str:
        sent: list[ChatMessage] = [kinds[message["role"]](content=message["content"]) for message in messages]
        output = await model.generate(sent, config=GenerateConfig(max_tokens=4000))
        return output.completion

    return ask
