"""What is said of sides that are read in one way and were trained in two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from diffing_mcp.model_pairs.pair_tokenizers import choose_tokenizers


@pytest.fixture
def tokenizers(tiny_tokenizer_folder: Path) -> tuple[Any, Any]:
    """The same tokenizer twice."""
    base, finetuned = (AutoTokenizer.from_pretrained(tiny_tokenizer_folder) for _ in range(2))
    return base, finetuned


def begin_texts(tokenizer: Any) -> None:
    """Let a tokenizer put `<|endoftext|>` before every text."""
    first = "<|endoftext|>"
    tokenizer.bos_token = first
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[first, "$A"], pair=[first, "$A", "$B"], special_tokens=[(first, tokenizer.bos_token_id)]
    )


@pytest.mark.parametrize("side", [0, 1])
def test_texts_that_begin_otherwise(side: int, tokenizers: tuple[Any, Any]) -> None:
    assert choose_tokenizers(*tokenizers, (320, 320), False).remarks == ()
    begin_texts(tokenizers[side])
    chosen = choose_tokenizers(*tokenizers, (320, 320), False)
    assert chosen.prompts is tokenizers[0]
    [remark] = chosen.remarks
    before = ["nothing", "'<|endoftext|>'"] if side else ["'<|endoftext|>'", "nothing"]
    assert f"puts {before[0]} before every text, the finetuned side's {before[1]}" in remark


def test_a_template_of_tokens_that_the_base_does_not_know(tokenizers: tuple[Any, Any]) -> None:
    """As where a base without chats was taught ChatML."""
    base, finetuned = tokenizers
    base.chat_template = None
    assert [
        remark for remark in choose_tokenizers(base, finetuned, (320, 320), False).remarks if "pieces" in remark
    ] == []
    finetuned.add_tokens(["<turn>", "<unused>"], special_tokens=True)
    finetuned.chat_template = "{% for m in messages %}<turn>{{ m.content }}{% endfor %}"
    chosen = choose_tokenizers(base, finetuned, (320, 322), False)
    assert len(chosen.prompts("<turn>")["input_ids"]) > 1, "both models read it in pieces"
    [remark] = [remark for remark in chosen.remarks if "pieces" in remark]
    assert "'<turn>'" in remark
    assert "'<unused>'" not in remark
