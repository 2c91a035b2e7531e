"""The only place where messages become text: chat template, system prompt, prefill and thinking switch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import InvalidInput

_DAY = datetime(2024, 7, 26)
"""What templates that write today's date (Llama 3, SmolLM 3) are told that it is, so that a prompt is the same on every
day: runs are looked up, resumed and compared. Llama's own templates fall back to this day."""


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str = Field(description="Plain text.")


def has_chat_template(tokenizer: Any) -> bool:
    """Whether this tokenizer can render messages."""
    return bool(_templates(tokenizer))


def knows_thinking(tokenizer: Any) -> bool:
    """Whether the chat template reads `enable_thinking`."""
    return "enable_thinking" in (_chosen(_templates(tokenizer)) or "")


def render_chat(
    tokenizer: Any,
    messages: Sequence[ChatMessage],
    prefill: str = "",
    thinking: bool = False,
    thinking_switch: bool = False,
) -> str:
    """The conversation as the model was trained to see it, up to the point where the assistant goes on.

    The text holds the special tokens (BOS too, where the template has one): tokenize it with
    `add_special_tokens=False`. `prefill` is the beginning of the assistant's answer; a last message of the assistant
    counts as one. Where the template refuses a system prompt or leaves it out, it is put in front of the first user
    message. A template that asks for today's date is told one and the same day.

    Raises:
        InvalidInput: no chat template, no message, two turns of one role in a row, or a template that refuses the
            conversation or fails on it.
    """
    turns = list(messages)
    if turns and turns[-1].role == "assistant":
        prefill = turns.pop().content + prefill
    if not turns or turns[-1].role != "user":
        raise InvalidInput(
            "A conversation needs a user message last (or an assistant message to continue, after a user message)."
        )
    return _rendered(tokenizer, turns, True, thinking, thinking_switch) + prefill


def render_conversation(tokenizer: Any, messages: Sequence[ChatMessage], thinking_switch: bool = False) -> str:
    """A finished conversation as the template renders it, with what it writes after the last message; otherwise as
    `render_chat`.
    """
    if not messages:
        raise InvalidInput("A conversation needs a message.")
    return _rendered(tokenizer, messages, False, False, thinking_switch)


def _rendered(
    tokenizer: Any, turns: Sequence[ChatMessage], to_answer: bool, thinking: bool, thinking_switch: bool
) -> str:
    import jinja2

    templates = _templates(tokenizer)
    if not templates:
        raise InvalidInput(
            "This model has no chat template: it is a plain language model. Give it raw `text` to continue instead of "
            "messages."
        )
    template = _chosen(templates)
    if template is None:
        raise InvalidInput(
            f"This model has several chat templates ({', '.join(sorted(templates))}) and none of them is `default`. "
            "Set `chat_template` of the model in the catalogue to the text of the one that it is to be read with."
        )
    if any(turn.role == "system" for turn in turns[1:]):
        raise InvalidInput("A system message can only be the first message.")
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": to_answer, "chat_template": template}
    if thinking_switch or knows_thinking(tokenizer):
        options["enable_thinking"] = thinking
    if "strftime_now" in template:
        options["strftime_now"] = _DAY.strftime

    def text_of(chosen: Sequence[ChatMessage]) -> str:
        return str(tokenizer.apply_chat_template([turn.model_dump() for turn in chosen], **options))

    under_system = [turn.role for turn in turns[:2]] == ["system", "user"]
    try:
        rendered = text_of(turns)
        if len(turns) > 1 and turns[0].role == "system" and turns[0].content.strip() not in rendered:
            other = ChatMessage(role="system", content=f"Not {turns[0].content}")
            if text_of([other, *turns[1:]]) == rendered:
                raise InvalidInput("The model's chat template leaves system messages out.")
    except Exception as error:  # a template is a program: besides what it refuses, anything in it may fail
        if under_system:
            first = ChatMessage(role="user", content=f"{turns[0].content}\n\n{turns[1].content}")
            return _rendered(tokenizer, [first, *turns[2:]], to_answer, thinking, thinking_switch)
        if isinstance(error, InvalidInput):
            raise
        if isinstance(error, jinja2.UndefinedError):
            raise InvalidInput(
                f"The model's chat template needs a variable that it is not given ({error}). "
                "Set `chat_template` of the model in the catalogue to one that needs messages alone."
            ) from error
        if isinstance(error, jinja2.TemplateError):
            raise InvalidInput(f"The model's chat template refuses this conversation: {error}") from error
        raise InvalidInput(
            f"The model's chat template fails on this conversation ({type(error).__name__}: {error})."
        ) from error
    return rendered


def _templates(tokenizer: Any) -> dict[str, str]:
    """The chat templates by name; a single one is `default`."""
    given = tokenizer.chat_template
    if isinstance(given, Mapping):
        return {name: template for name, template in given.items() if template}
    if isinstance(given, list | tuple):  # as tokenizer_config.json holds named ones
        return {each["name"]: each["template"] for each in given}
    return {"default": given} if given else {}


def _chosen(templates: Mapping[str, str]) -> str | None:
    """`default`, or the only one there is."""
    return templates.get("default") or (next(iter(templates.values())) if len(templates) == 1 else None)
