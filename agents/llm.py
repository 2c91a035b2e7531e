"""Inspect's models outside of an Inspect evaluation: one way to name a model, and a plain question to it. Needs the
extra `eval`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffing_mcp.core.errors import DiffingError

if TYPE_CHECKING:
    from inspect_ai.model import Model

    from diffing_mcp.graders.replies import Ask


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
        raise ModelNotAvailable(
            "LLM investigators and graders need the extra `eval`: pip install 'diffing-mcp[eval]'."
        ) from error
    try:
        return get_model(name, base_url=base_url)
    except Exception as error:  # Inspect has its own error for each provider; the first line says what is missing
        reason = " ".join(str(error).split())[:400].rstrip(".")
        raise ModelNotAvailable(
            f"The model {name!r} cannot be used: {reason}. Models are named as in Inspect: anthropic/NAME, "
            "openai/NAME, openai-api/SERVICE/NAME."
        ) from error


RETRIES = 3
"""How often a question is sent again after a network error, with waits of some 3, 6 and 12 s between."""
SECONDS_OF_ANSWER = 600
"""A model that has not answered after this is asked again."""


def ask_with(name: str, base_url: str | None = None) -> Ask:
    """An asker for graders: returns the text of the reply, and raises GradingFailed when the model cannot be reached or
    refuses the question.
    """
    from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig

    from diffing_mcp.graders.replies import GradingFailed

    model = language_model(name, base_url)
    kinds: dict[str, type[ChatMessageSystem] | type[ChatMessageUser] | type[ChatMessageAssistant]] = {
        "system": ChatMessageSystem,
        "user": ChatMessageUser,
        "assistant": ChatMessageAssistant,
    }
    retries = RETRIES

    async def ask(messages: list[dict[str, str]]) -> str:
        nonlocal retries
        sent: list[ChatMessage] = [kinds[message["role"]](content=message["content"]) for message in messages]
        # Without a limit Inspect sends again for ever.
        config = GenerateConfig(max_tokens=4000, max_retries=retries, attempt_timeout=SECONDS_OF_ANSWER)
        try:
            output = await model.generate(sent, config=config)
        except (
            Exception
        ) as error:  # each provider has its own errors, and what it says of them is what the reader can act on
            retries = 0  # many questions must not wait one after the other for a server that is down
            cause = error.__cause__ or error  # Inspect puts the whole question in front of what the provider said
            reason = " ".join(str(cause).split())[:400].rstrip(".") or type(cause).__name__
            where = f" at {base_url}" if base_url else ""
            raise GradingFailed(
                f"The grader model {name!r}{where} gave no answer: {reason}. Check that it runs, its address, name and "
                "key."
            ) from error
        retries = RETRIES
        return output.completion

    return ask
