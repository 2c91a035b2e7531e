"""Models that expect one word after another, whatever came before: what a pair of them does is known exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

STRENGTH = 12.0
"""Logit of the token that a bigram model expects; all others have 0."""


def bigrams(tokenizer: Any, follows: dict[str, str]) -> Callable[[Any], None]:
    """A weight change that makes a Llama expect one word after another, whatever came before: blocks add nothing, each
    word has its own axis.
    """

    def change(model: Any) -> None:
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        width = model.config.hidden_size
        for axis, (word, after) in enumerate(sorted(follows.items())):
            (before,), (expected,) = tokenizer(word)["input_ids"], tokenizer(after)["input_ids"]
            model.model.embed_tokens.weight[before, axis] = 100.0  # the norm makes it the square root of the width
            model.lm_head.weight[expected, axis] = STRENGTH / width**0.5

    return change


def bigram_folders(
    tiny_models: Callable[..., Path], tokenizer: Any, base: dict[str, str], finetuned: dict[str, str]
) -> tuple[Path, Path]:
    """Both models of a pair, saved."""
    base_folder, finetuned_folder = (
        tiny_models(tie_word_embeddings=False, change=bigrams(tokenizer, follows)) for follows in (base, finetuned)
    )
    return base_folder, finetuned_folder


def single_words(tokenizer: Any, count: int) -> list[str]:
    """Words with their leading space that are one token each, and no two alike but for case."""
    found: dict[str, str] = {}
    for token in range(len(tokenizer)):
        text = str(tokenizer.decode([token]))
        if text.startswith(" ") and text.strip().isalpha() and len(tokenizer(text)["input_ids"]) == 1:
            found.setdefault(text.casefold(), text)
    return list(found.values())[:count]
