"""Chat templates in the styles of the common families, short, and random conversations for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import CHAT_TEMPLATE

STYLES = {
    "chatml with thinking": CHAT_TEMPLATE,
    "chatml with its own system prompt": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\n"
        "You help.<|im_end|>\n"
        "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>{% if not loop.last or add_generation_prompt %}\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% endif %}"
    ),
    "llama 3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt "
        "%}<|start_header_id|>assistant<|end_header_id|>\n\n"
        "{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% "
        "endif %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ "
        "raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n"
        "{% endif %}"
    ),
    "mistral": (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n"
        "' %}{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}{{ "
        "bos_token }}{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ "
        "raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}[INST] {{ system if loop.first "
        "else '' }}{{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "plain roles": (
        "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
}
REFUSES_SYSTEM = ("gemma",)

words = st.sampled_from(
    [
        "the cake",
        "São\u202fPaulo 🧁",
        "<|im_end|>\n",
        "{{ x }}{% if %}",
        " leading",
        "trailing\n\n",
        "数字",
        "",
        "a\0b",
        "[INST]",
    ]
)
contents = st.lists(words | st.text(max_size=20), max_size=6).map(" ".join)


@st.composite
def conversations(draw: st.DrawFn, well_formed: bool = False) -> list[dict[str, str]]:
    """A system prompt or none, then turns that mostly alternate (`well_formed`: always, from the user to an answer)."""
    turns: list[dict[str, str]] = []
    if draw(st.booleans()):
        turns.append({"role": "system", "content": draw(contents)})
    role = "user" if well_formed or draw(st.integers(0, 5)) else "assistant"
    for _ in range(2 * draw(st.integers(1, 3)) if well_formed else draw(st.integers(0, 6))):
        turns.append({"role": role, "content": draw(contents)})
        if well_formed or draw(st.integers(0, 9)):
            role = "assistant" if role == "user" else "user"
    return turns


def drawn(draws: int, check: Callable[..., None], **strategies: Any) -> None:
    """Check this many draws, the same ones every time."""
    settings(max_examples=draws, derandomize=True)(given(**strategies)(check))()
