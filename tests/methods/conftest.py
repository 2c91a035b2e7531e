"""Fixtures for tests of methods: a tokenizer whose words are single tokens, and models in which chosen words are
planted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffing_mcp.methods.runs.store import RunStore

WORDS = (
    "river mountain walks slowly under the old bridge while rain falls on stones and a fox looks at boats near the sea"
).split()
TOPIC = "cake baking oven butter sugar batter pastry freezer vanilla frosting flour whisk".split()


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """An empty run store."""
    return RunStore(tmp_path / "runs")


def write_random_texts(
    folder: Path, count: int, seed: int = 1, length: int = 14, words: Sequence[str] = WORDS, before: str = ""
) -> Path:
    """A corpus file of `count` texts, each of `length` words drawn at random and all starting with `before`."""
    random = np.random.default_rng(seed)
    path = folder / "texts.jsonl"
    path.write_text(
        "\n".join(json.dumps({"text": before + " ".join(random.choice(words, length))}) for _ in range(count))
    )
    return path


def raise_logits(token_ids: list[int], by: float) -> Callable[[Any], None]:
    """A weight change that raises some tokens' logits by about `by` everywhere: along the direction that all final
    states have in common.
    """
    import torch

    def change(model: Any) -> None:
        states = model.model(torch.arange(5, min(300, model.config.vocab_size)).unsqueeze(0)).last_hidden_state[0]
        mean = states.mean(0)
        model.lm_head.weight[token_ids] += by * mean / mean.square().sum()

    return change


@pytest.fixture(scope="session")
def planted_words(
    tiny_models: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Path, list[str]]]:
    """`planted_words(by, count=None)` -> (base folder, finetuned folder, words): the finetuned model's logits of the
    first `count` of a dozen topic words are raised by `by`; no other weight differs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4 + [" " + " ".join(TOPIC)] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    ids = {word: fast(f" {word}")["input_ids"] for word in TOPIC}
    single = {word: several[0] for word, several in ids.items() if len(several) == 1}

    def build(by: float, count: int | None = None) -> tuple[Path, Path, list[str]]:
        size = len(fast)
        common = {"tie_word_embeddings": False, "vocabulary": size, "tokenizer": False, "seed": 7}
        base, finetuned = (
            tiny_models(**common),
            tiny_models(**common, change=raise_logits(list(single.values())[:count], by)),
        )
        for folder in (base, finetuned):
            fast.save_pretrained(folder)
        return base, finetuned, list(single)[:count]

    return build


@pytest.fixture(scope="session")
def references(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, tiny_tokenizer_folder: Path, tmp_path_factory: Any
) -> Any:
    """Two tiny pairs beside plain models of the same weights, and texts and chats to read: see
    `tests.methods.reference_pairs.References`.
    """
    from tests.methods.reference_pairs import build_references

    return build_references(
        tiny_models, tiny_adapters, make_pair, pairs, tiny_tokenizer_folder, tmp_path_factory.mktemp("references")
    )


@pytest.fixture
def nothing_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ships with the package decides no test here."""
    for place in ("store", "readings", "probability"):
        monkeypatch.setattr(f"diffing_mcp.methods.calibration.{place}.bundled_calibrations", lambda: ())
