"""Pairs of tiny real Llama models with a real tokenizer, saved to a folder and loaded as every pair is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from diffing_mcp.model_pairs.specs import ModelFiles, ModelSource, PairSpec

Change = Callable[[LlamaForCausalLM], None]

WORDS = [f"w{index}" for index in range(290)] + ["cake"]
TEMPLATE = (
    "{% for m in messages %}<u>{{ m['role'] }} {{ m['content'] }} </u>{% endfor %}{% if add_generation_prompt %}<a>{% "
    "endif %}"
)


def tiny_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a word; `<s>` before every text when `bos`."""
    from tokenizers.processors import TemplateProcessing

    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", "<u>", "</u>", "<a>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=["<u>", "</u>", "<a>"],
    )
    fast.chat_template = TEMPLATE
    return fast


def save_pair(
    folder: Path,
    change: Change | None,
    bos: bool = True,
    dtype: torch.dtype = torch.float32,
    prepare: Change | None = None,
) -> PairSpec:
    """A base model in `folder/base` and its copy after `change` in `folder/finetuned`; without a change the pair is
    declared identical.

    `prepare` is applied to both."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(bos)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.to(dtype=dtype)  # type: ignore[call-arg]
    if prepare is not None:
        with torch.no_grad():
            prepare(model)
    for name in ("base", "finetuned"):
        if name == "finetuned" and change is not None:
            with torch.no_grad():
                change(model)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    sources = [ModelSource(files=ModelFiles(id=str(folder / name))) for name in ("base", "finetuned")]
    return PairSpec(name="tiny", base=sources[0], finetuned=sources[1], declared_identical=change is None)


def write_texts(path: Path, count: int, words: int, seed: int = 0, extra: str = "") -> Path:
    """A .jsonl corpus of random words, of 3 to `words` words each; every 25th text starts with `extra`."""
    generator = torch.Generator().manual_seed(seed)
    with path.open("w") as file:
        for index in range(count):
            length = int(torch.randint(3, words + 1, (1,), generator=generator))
            chosen = [WORDS[int(word)] for word in torch.randint(0, 290, (length,), generator=generator)]
            if extra and index % 25 == 0:
                chosen[: len(extra.split())] = extra.split()
            file.write(json.dumps({"text": " ".join(chosen)}) + "\n")
    return path
