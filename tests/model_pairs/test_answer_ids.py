"""A text that goes on after a prompt, in the tokens that a model would write it in."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.model_pairs.generation import GenerationRequest, answer_ids, new_text, prompt_ids
from tests.spacing_tokenizer import spacing_tokenizer


@pytest.fixture(scope="module")
def spacing() -> PreTrainedTokenizerFast:
    return spacing_tokenizer()


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" run", ["▁run"]), ("\nrun", ["\n", "run"]), ("2", ["2"]), ("\n run", ["\n", "▁run"]), (" 42", ["▁4", "2"])],
)
def test_no_space_is_put_before_a_text_that_goes_on(
    spacing: PreTrainedTokenizerFast, text: str, expected: list[str]
) -> None:
    """An answer of raw text that began with a line end or inside of a word had a token before it that nobody wrote."""
    request = GenerationRequest(text="rivers 4")
    prompt = prompt_ids(spacing, request, False, False)
    found = answer_ids(spacing, request, prompt, text)
    assert spacing.convert_ids_to_tokens(found) == expected
    assert new_text(spacing, prompt, found) == text


def test_after_a_chat_template_the_space_belongs_to_the_answer(spacing: PreTrainedTokenizerFast) -> None:
    request = GenerationRequest(messages=(ChatMessage(role="user", content=" run"),))
    found = answer_ids(spacing, request, prompt_ids(spacing, request, False, False), "Yes")
    assert spacing.convert_ids_to_tokens(found) == ["▁Yes"]


def test_other_tokenizers_cut_a_text_as_ever(tiny_pair) -> None:
    request = GenerationRequest(text="The quick brown")
    prompt = prompt_ids(tiny_pair.tokenizer, request, False, False)
    for text in (" fox", "fox", "\n\nfox", "", "é🙂", "<|im_end|>"):
        assert (
            answer_ids(tiny_pair.tokenizer, request, prompt, text)
            == (tiny_pair.tokenizer(text, add_special_tokens=False)["input_ids"])
        )
