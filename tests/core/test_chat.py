"""Conversations as text: against `apply_chat_template` in the common styles, named templates, and
templates that fail.
"""

import copy
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import strategies as st

from diffing_mcp.core.chat import (
    ChatMessage,
    has_chat_template,
    knows_thinking,
    render_chat,
    render_conversation,
)
from diffing_mcp.core.errors import InvalidInput
from tests.model_pairs.chat_styles import REFUSES_SYSTEM, STYLES, conversations, drawn

ASKED = [{"role": "user", "content": "Hi"}]
CHATML = STYLES["chatml with thinking"]


@pytest.fixture(scope="module")
def plain_tokenizer(tiny_tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder)
    tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


def with_template(tokenizer: Any, template: Any) -> Any:
    changed = copy.copy(tokenizer)
    changed.chat_template = template
    return changed


def messages(turns: list[dict[str, str]]) -> list[ChatMessage]:
    return [ChatMessage.model_validate(turn) for turn in turns]


def expected(tokenizer: Any, turns: list[dict[str, str]], style: str, **options: Any) -> str | None:
    """What the library renders, with a refused system prompt before the first user message; None where the template
    refuses.
    """
    if style in REFUSES_SYSTEM and [turn["role"] for turn in turns[:2]] == ["system", "user"]:
        turns = [{"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}, *turns[2:]]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except jinja2.TemplateError:
        return None


@pytest.mark.parametrize("draws", [30, pytest.param(300, marks=pytest.mark.long)])
@pytest.mark.parametrize("style", STYLES)
def test_rendered_as_the_library_renders(plain_tokenizer: Any, style: str, draws: int) -> None:
    tokenizer = with_template(plain_tokenizer, STYLES[style])
    outcomes = set()

    def check(turns: list[dict[str, str]], prefill: str, thinking: bool) -> None:
        continued = turns[-1]["content"] + prefill if turns and turns[-1]["role"] == "assistant" else prefill
        asked = turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns
        wanted = None
        if asked and asked[-1]["role"] == "user":
            wanted = expected(tokenizer, asked, style, add_generation_prompt=True, enable_thinking=thinking)
        outcomes.add(wanted is None)
        if wanted is None:
            with pytest.raises(InvalidInput):
                render_chat(tokenizer, messages(turns), prefill, thinking)
        else:
            assert render_chat(tokenizer, messages(turns), prefill, thinking) == wanted + continued

    drawn(draws, check, turns=conversations(), prefill=st.sampled_from(["", "Sure, "]), thinking=st.booleans())
    assert outcomes == {True, False}


@pytest.mark.parametrize("draws", [30, pytest.param(300, marks=pytest.mark.long)])
@pytest.mark.parametrize("style", STYLES)
def test_whole_conversations_as_the_library_renders_them(plain_tokenizer: Any, style: str, draws: int) -> None:
    tokenizer = with_template(plain_tokenizer, STYLES[style])

    def check(turns: list[dict[str, str]]) -> None:
        wanted = expected(tokenizer, turns, style, enable_thinking=False) if turns else None
        if wanted is None:
            with pytest.raises(InvalidInput):
                render_conversation(tokenizer, messages(turns))
        else:
            assert render_conversation(tokenizer, messages(turns)) == wanted

    drawn(draws, check, turns=conversations())


def test_a_refused_system_prompt_stands_before_a_user_message_only(plain_tokenizer: Any) -> None:
    gemma = with_template(plain_tokenizer, STYLES["gemma"])
    system, user = {"role": "system", "content": "Be brief."}, ASKED[0]
    assert "user\nBe brief.\n\nHi<end_of_turn>" in render_chat(gemma, messages([system, user]))
    with pytest.raises(InvalidInput, match="System role not supported"):
        render_chat(gemma, messages([system, {"role": "assistant", "content": "Hello"}, user]))


@pytest.mark.parametrize("as_list", [True, False])
def test_named_templates(plain_tokenizer: Any, as_list: bool) -> None:
    def named(**templates: str) -> Any:
        return with_template(
            plain_tokenizer, [{"name": n, "template": t} for n, t in templates.items()] if as_list else templates
        )

    chatml = render_chat(with_template(plain_tokenizer, CHATML), messages(ASKED))
    for tokenizer in (
        named(default=CHATML, tool_use="{{ 1 }}"),
        named(tool_use="{{ 1 }}", default=CHATML),
        named(chat=CHATML),
    ):
        assert has_chat_template(tokenizer)
        assert knows_thinking(tokenizer)
        assert render_chat(tokenizer, messages(ASKED)) == chatml
    assert not knows_thinking(named(default=STYLES["gemma"], thinking=CHATML)), "a template that is not used"
    several = named(rag=CHATML, tool_use=CHATML)
    assert has_chat_template(several)
    assert not knows_thinking(several)
    with pytest.raises(InvalidInput, match=r"several chat templates \(rag, tool_use\).*Set `chat_template`"):
        render_chat(several, messages(ASKED))


@pytest.mark.parametrize("nothing", [None, "", {}, []])
def test_no_template(plain_tokenizer: Any, nothing: Any) -> None:
    tokenizer = with_template(plain_tokenizer, nothing)
    assert not has_chat_template(tokenizer)
    assert not knows_thinking(tokenizer)
    with pytest.raises(InvalidInput, match="no chat template"):
        render_chat(tokenizer, messages(ASKED))


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ raise_exception('not today') }}", "refuses this conversation: not today"),
        ("{{ persona.name }}", "needs a variable that it is not given .*persona.*Set `chat_template`"),
        ("{% for m in messages %}{{ m.name.first }}{% endfor %}", "needs a variable that it is not given"),
        ("{{ messages + 1 }}", "fails on this conversation .TypeError"),
        ("{{ messages[0].content.index('?') }}", "fails on this conversation .ValueError"),
        ("{{ 1 / 0 }}", "fails on this conversation .ZeroDivisionError"),
        ("{% if %}", "refuses"),
        ("{{ messages[0].content.__class__.mro() }}", "needs a variable|refuses|fails"),
    ],
)
def test_templates_that_fail(plain_tokenizer: Any, template: str, complaint: str) -> None:
    tokenizer = with_template(plain_tokenizer, template)
    for turns in (ASKED, [{"role": "system", "content": "Be brief."}, *ASKED]):
        for render in (render_chat, render_conversation):
            with pytest.raises(InvalidInput, match=complaint):
                render(tokenizer, messages(turns))


IGNORES_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}<|end|>\n<|assistant|>\n"
    "{% elif m.role == 'assistant' %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
)
"""As Phi 3 came with."""


def test_a_system_prompt_that_a_template_leaves_out_stands_before_the_user_message(plain_tokenizer: Any) -> None:
    """A whole condition of an experiment was dropped without a word."""
    phi = with_template(plain_tokenizer, IGNORES_SYSTEM)
    system = {"role": "system", "content": " Be brief.\n"}
    rendered = render_chat(phi, messages([system, *ASKED]))
    assert "<|user|>\n Be brief.\n\n\nHi<|end|>" in rendered
    assert "Be brief." in render_conversation(phi, messages([system, *ASKED, {"role": "assistant", "content": "Yes"}]))
    assert render_chat(phi, messages([{"role": "system", "content": ""}, *ASKED])) == render_chat(phi, messages(ASKED))
    with pytest.raises(InvalidInput, match="leaves system messages out"):
        render_chat(phi, messages([system, {"role": "assistant", "content": "Hello"}, *ASKED]))
    upper = with_template(plain_tokenizer, "{% for m in messages %}{{ m.content | upper }} {% endfor %}")
    assert render_chat(upper, messages([system, *ASKED])).count("BE BRIEF") == 1


def test_a_prompt_is_the_same_on_every_day(plain_tokenizer: Any) -> None:
    dated = "Today: {{ strftime_now('%d %b %Y %H:%M:%S') }}\n{{ messages[0].content }}"
    tokenizer = with_template(plain_tokenizer, dated)
    assert render_chat(tokenizer, messages(ASKED)) == "Today: 26 Jul 2024 00:00:00\nHi"
