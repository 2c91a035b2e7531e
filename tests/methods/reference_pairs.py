"""What all `test_references_*` share: two pairs with plain models beside them, texts and chats of uneven lengths, and
one store, so that a run that several tests look at is made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import PairSpec
from tests.methods.conftest import WORDS
from tests.methods.plain_models import PlainPair, PlainText, plain_pair

MAX_TOKENS = 20
TEXT = {"max_samples": 100, "max_tokens": MAX_TOKENS}


@dataclass(frozen=True)
class ReferencePair:
    """A pair as the project loads it and as plain models."""

    spec: PairSpec
    plain: PlainPair
    folders: dict[str, Path]


@dataclass(frozen=True)
class References:
    """`lora`: Llama and an adapter, no BOS. `adapters`: two adapters on that Llama, one of rsLoRA with an unembedding
    of its own. `full`: two Gemma 2 models (soft-capped logits, tied embeddings), with a BOS."""

    lora: ReferencePair
    adapters: ReferencePair
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
        """By its name."""
        return {"lora": self.lora, "adapters": self.adapters, "full": self.full}[name]

    def texts(self, pair: str, corpus: str) -> list[PlainText]:
        """The documents that can be compared, in the order in which the runs number them, which the table of `kl` tells
        by their text.
        """
        if (pair, corpus) not in self._texts:
            plain = self.pair(pair).plain
            rows = [json.loads(line) for line in self.corpora[corpus].read_text().splitlines()]
            read = [
                plain.text(row["text"], MAX_TOKENS) if "text" in row else plain.chat(row["messages"], MAX_TOKENS)
                for row in rows
            ]
            by_text = {
                plain.tokenizer.decode(text.ids[text.start :]): text for text in read if len(text.ids) - text.start >= 2
            }
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
    lora = {"base": base, "adapter": tiny_adapters(base, seed=22, scale=0.2)}
    saved = tiny_adapters(
        base, seed=26, scale=0.2, use_rslora=True, targets=["q_proj", "down_proj"], modules_to_save=["lm_head"]
    )
    adapters = {
        "base": base,
        "base_adapter": tiny_adapters(base, seed=25, rank=2, scale=0.2, targets=["v_proj", "down_proj"]),
        "adapter": saved,
    }
    gemma = {"kind": "gemma2", "seed": 23, "tokenizer": False}
    sides = {"base": tiny_models(**gemma, change=lambda model: None), "finetuned": tiny_models(**gemma, change=_noise)}
    for side in sides.values():
        _save_bos_tokenizer(tokenizer_folder, side)
    made = {
        name: ReferencePair(make_pair(**folders, name=f"reference {name}"), plain_pair(**folders), folders)
        for name, folders in (("lora", lora), ("adapters", adapters), ("full", sides))
    }
    return References(**made, corpora=_documents(folder), pairs=pairs, store=RunStore(folder / "runs"))


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
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokenizer.save_pretrained(target)


def _documents(folder: Path) -> dict[str, Path]:
    """Texts of 1 to 20 words (some are cut, one is too short to be compared), chats with prompts of every length, and
    many short texts of few words."""
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
    named = [*WORDS, *"harbour lantern orchard violin copper meadow window garden silver thunder".split()]
    many = [{"text": " ".join(random.choice(named, count))} for count in random.integers(3, 9, 60)]
    paths = {name: folder / f"{name}.jsonl" for name in ("texts", "chats", "many")}
    for name, rows in (("texts", texts), ("chats", chats), ("many", many)):
        paths[name].write_text("\n".join(json.dumps(row) for row in rows))
    return paths
