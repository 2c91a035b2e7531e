"""Inspect's models outside of an Inspect evaluation: one way to name a model, and a plain question to it, and what its
answers took. Needs the extra `eval`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from diffing_mcp.agents.records import TokenUsage
from diffing_mcp.core.errors import DiffingError

if TYPE_CHECKING:
    from inspect_ai.model import Model, ModelUsage

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


_METER: ContextVar[dict[str, TokenUsage] | None] = ContextVar("meter", default=None)


@contextmanager
def metered() -> Iterator[dict[str, TokenUsage]]:
    """Tokens, by model, that the questions of `ask_with` take within the block, those of tasks begun in it as well."""
    used: dict[str, TokenUsage] = {}
    token = _METER.set(used)
    try:
        yield used
    finally:
        _METER.reset(token)


def tokens_used(model: str, usage: ModelUsage) -> TokenUsage:
    """Inspect's count of tokens as ours."""
    return TokenUsage(
        model=model,
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.input_tokens_cache_read or 0,
        cache_write_tokens=usage.input_tokens_cache_write or 0,
        output_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
    )


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
        if (meter := _METER.get()) is not None and output.usage is not None:
            meter[name] = meter.get(name, TokenUsage(model=name)) + tokens_used(name, output.usage)
        return output.completion

    return ask
