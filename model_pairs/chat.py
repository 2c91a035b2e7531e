"""The only place where messages become text: chat template, system prompt, prefill and thinking switch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from organisms.errors import InvalidInput


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str = Field(description="Plain text.")


def has_chat_template(tokenizer: Any) -> bool:
    """Whether this tokenizer can render messages."""
    return bool(tokenizer.chat_template)


def knows_thinking(tokenizer: Any) -> bool:
    """Whether the chat template reads `enable_thinking`."""
    template = tokenizer.chat_template
    return "enable_thinking" in (template if isinstance(template, str) else str(template or ""))


def render_chat(tokenizer: Any, messages: Sequence[ChatMessage], prefill: str = "", thinking: bool = False, thinking_switch: bool = False) -> str:
    """The conversation as the model was trained to see it, up to the point where the assistant goes on.

    The text holds the special tokens (BOS too, where the template has one): tokenize it with `add_special_tokens=False`.
    `prefill` is the beginning of the assistant's answer; a last message of the assistant counts as one. Where the template refuses a
    system prompt, it is put in front of the first user message.

    Raises:
        InvalidInput: no chat template, no message, two turns of one role in a row, or a template that refuses the conversation.
    """
    import jinja2

    if not has_chat_template(tokenizer):
        raise InvalidInput("This model has no chat template: it is a plain language model. Give it raw `text` to continue instead of messages.")
    turns = list(messages)
    if turns and turns[-1].role == "assistant":
        prefill = turns.pop().content + prefill
    if not turns or turns[-1].role != "user":
        raise InvalidInput("A conversation needs a user message last (or an assistant message to continue, after a user message).")
    if any(turn.role == "system" for turn in turns[1:]):
        raise InvalidInput("A system message can only be the first message.")
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    if thinking_switch or knows_thinking(tokenizer):
        options["enable_thinking"] = thinking
    try:
        rendered = tokenizer.apply_chat_template([turn.model_dump() for turn in turns], **options)
    except jinja2.TemplateError as error:
        if turns[0].role != "system":
            raise InvalidInput(f"The model's chat template refuses this conversation: {error}") from error
        first = ChatMessage(role="user", content=f"{turns[0].content}\n\n{turns[1].content}")
        return render_chat(tokenizer, [first, *turns[2:]], prefill, thinking, thinking_switch)
    return rendered + prefill
