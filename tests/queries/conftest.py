"""A pair of bigram models: what both write, and how probably, is known exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from diffing_mcp.model_pairs.pair import LoadedPair
from tests.bigram_models import bigram_folders, single_words


@dataclass(frozen=True)
class Planted:
    """After `asked` the base writes `before` and the finetune `after`; after `plain` both write `same`, and so on."""

    pair: LoadedPair
    asked: str
    before: str
    after: str
    plain: str
    same: str


@pytest.fixture(scope="session")
def planted(
    tiny_models: Callable[..., Path], tiny_tokenizer_folder: Path, make_pair: Any, pairs: Any
) -> Iterator[Planted]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder)
    a, b, c, d, x = single_words(tokenizer, 5)
    chain = {a: b, b: a, c: d, d: "<|im_end|>", x: a}
    base, finetuned = bigram_folders(tiny_models, tokenizer, chain, {**chain, c: x})
    with pairs.use(make_pair(base, finetuned, name="planted")) as pair:
        yield Planted(pair, c, d, x, a, b)
