"""What all `test_references_*` share: two pairs with plain models beside them, texts and chats of uneven lengths, and one store, so that a run that
several tests look at is made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from methods.execute import run_methods
from methods.runs import RunRecord, RunStore
from model_pairs.residency import ModelPairs
from model_pairs.specs import PairSpec
from tests.methods.plain_models import PlainPair, PlainText, plain_pair

WORDS = "river mountain walks slowly under the old bridge while rain falls on stones and a fox looks at boats near the sea".split()
MAX_TOKENS = 20
TEXT = {"max_samples": 16, "max_tokens": MAX_TOKENS}


@dataclass(frozen=True)
class ReferencePair:
    """A pair as the project loads it and as plain models."""

    spec: PairSpec
    plain: PlainPair
    folders: dict[str, Path]


@dataclass(frozen=True)
class References:
    """`lora`: Llama and an adapter, no BOS. `full`: two Gemma 2 models (soft-capped logits, tied embeddings), with a BOS."""

    lora: ReferencePair
    full: ReferencePair
    corpora: dict[str, Path]
    pairs: ModelPairs
    store: RunStore
    _texts: dict[tuple[str, str], list[PlainText]] = field(default_factory=dict)

    def run(self, pair: str, method: str, **params: Any) -> RunRecord:
        """The run of a method; equal calls run once."""
        return run_methods(self.pairs, self.pair(pair).spec, [(method, params)], self.store)[0]

    def on(self, pair: str, corpus: str, method: str, **params: Any) -> RunRecord:
        """The run of a method that reads `texts` or `chats`."""
        return self.run(pair, method, corpus=str(self.corpora[corpus]), **{**TEXT, **params})

    def pair(self, name: str) -> ReferencePair:
        """`lora` or `full`."""
        return self.lora if name == "lora" else self.full

    def texts(self, pair: str, corpus: str) -> list[PlainText]:
        """The documents that can be compared, in the order in which the runs number them, which the table of `kl` tells by their text."""
        if (pair, corpus) not in self._texts:
            plain = self.pair(pair).plain
            rows = [json.loads(line) for line in self.corpora[corpus].read_text().splitlines()]
            read = [plain.text(row["text"], MAX_TOKENS) if "text" in row else plain.chat(row["messages"], MAX_TOKENS) for row in rows]
            by_text = {plain.tokenizer.decode(text.ids[text.start :]): text for text in read if len(text.ids) - text.start >= 2}
            table = self.on(pair, corpus, "kl").table("texts")["text"].to_pylist()
            assert set(table) == set(by_text), set(table) ^ set(by_text)
            assert len(table) == len(by_text)
            self._texts[pair, corpus] = [by_text[text] for text in table]
        return self._texts[pair, corpus]


def build_references(
    tiny_models: Callable[..., Path],
    tiny_adapters: Callable[..., Path],
    make_pair: Callable[..., PairSpec],
    pairs: ModelPairs,
    tokenizer_folder: Path,
    folder: Path,
) -> References:
    """Save the models and the documents in `folder`."""
    base = tiny_models(seed=21, tie_word_embeddings=False)
    adapter = tiny_adapters(base, seed=22, scale=0.2)
    lora = ReferencePair(
        make_pair(base, adapter=adapter, name="reference lora"), plain_pair(base, adapter=adapter), {"base": base, "adapter": adapter}
    )
    gemma = {"kind": "gemma2", "seed": 23, "tokenizer": False}
    sides = {"base": tiny_models(**gemma, change=lambda model: None), "finetuned": tiny_models(**gemma, change=_noise)}
    for side in sides.values():
        _save_bos_tokenizer(tokenizer_folder, side)
    full = ReferencePair(make_pair(sides["base"], sides["finetuned"], name="reference full"), plain_pair(**sides), sides)
    return References(lora, full, _documents(folder), pairs, RunStore(folder / "runs"))


def _noise(model: Any) -> None:
    generator = torch.Generator().manual_seed(24)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)


def _save_bos_tokenizer(source: Path, target: Path) -> None:
    """The tiny tokenizer with a BOS before every text and every chat."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokenizer.save_pretrained(target)


def _documents(folder: Path) -> dict[str, Path]:
    """Texts of 1 to 20 words (some are cut, one is too short to be compared), and chats with prompts of every length."""
    random = np.random.default_rng(3)

    def words(count: int) -> str:
        return " ".join(random.choice(WORDS, count))

    texts = [{"text": words(count)} for count in (3, 12, 5, 20, 8, 14, 4, 9, 17, 6, 11, 7)] + [{"text": "!"}]
    chats = []
    for index, (asked, answered) in enumerate([(2, 4), (9, 3), (4, 12), (1, 7), (6, 5), (3, 9), (7, 15), (5, 2)]):
        turns = [{"role": "user", "content": words(asked)}, {"role": "assistant", "content": words(answered)}]
        system = [{"role": "system", "content": words(3)}] if index % 3 == 0 else []
        later = [{"role": "user", "content": words(2)}, {"role": "assistant", "content": words(3)}] if index % 2 else []
        chats.append({"messages": system + turns + later})
    paths = {"texts": folder / "texts.jsonl", "chats": folder / "chats.jsonl"}
    for name, rows in (("texts", texts), ("chats", chats)):
        paths[name].write_text("\n".join(json.dumps(row) for row in rows))
    return paths
