"""Models that are not what configuration or class make one expect: text parts of image models, heads that heed other
numbers than the configuration has, tokens that see those after them, caches with states of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling, new_text
from diffing_mcp.model_pairs.residency import ModelPairs

IDS = torch.tensor([[7, 30, 41, 52, 63, 74]])
ONES = torch.ones_like(IDS)
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 16,
}


def _vision(kind: str) -> dict[str, Any]:
    return {"model_type": kind, **VISION}


Saved = Callable[[Any], Path]


@pytest.fixture
def saved(tiny_tokenizer_folder: Path, tmp_path: Path) -> Saved:
    """A random model of a configuration, saved with the tiny tokenizer."""

    def save(config: Any) -> Path:
        torch.manual_seed(0)
        auto: Any = transformers.AutoModelForCausalLM
        if type(config) not in auto._model_mapping:
            auto = transformers.AutoModelForImageTextToText
        model = auto.from_config(config).float()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.2)
        model.save_pretrained(tmp_path)
        transformers.AutoTokenizer.from_pretrained(tiny_tokenizer_folder).save_pretrained(tmp_path)
        return tmp_path

    return save


HEADS: dict[str, Callable[[], Any]] = {
    "Aya Vision leaves out the scale of its Cohere": lambda: transformers.AyaVisionConfig(
        text_config={"model_type": "cohere2", "logit_scale": 0.3, **TEXT},
        vision_config=_vision("siglip_vision_model"),
        image_token_index=300,
    ),
    "LLaVA leaves out the cap of its Gemma 2": lambda: transformers.LlavaConfig(
        text_config={"model_type": "gemma2", "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, **TEXT},
        vision_config=_vision("clip_vision_model"),
        image_token_index=300,
    ),
    "MPT reads no scale": lambda: transformers.MptConfig(
        d_model=32, n_heads=4, n_layers=3, vocab_size=320, max_seq_len=256, logit_scale=0.3
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_lens_does_to_logits_what_the_model_does(name: str, saved: Saved, make_pair: Any) -> None:
    with ModelPairs().use(make_pair(saved(HEADS[name]()), declared_identical=True)) as pair:
        last = pair.num_layers - 1
        out = pair.forward("base", IDS, ONES, layers=[last])
        torch.testing.assert_close(pair.logit_lens("base", out.hidden[last]), out.logits, atol=1e-3, rtol=1e-3)


SEEING: dict[str, Callable[[], Any]] = {
    "embedding model": lambda: transformers.Gemma3TextConfig(
        **TEXT, query_pre_attn_scalar=8, use_bidirectional_attention=True
    ),
    "prompt read at once": lambda: transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", **TEXT},
        vision_config=_vision("siglip_vision_model"),
        image_token_index=300,
        projection_dim=32,
    ),
}


@pytest.mark.parametrize("name", SEEING)
def test_a_model_that_sees_the_next_token_is_refused(name: str, saved: Saved, make_pair: Any) -> None:
    """Its log-probabilities were those of tokens that it had read, and changed with the padding of a batch."""
    spec = make_pair(saved(SEEING[name]()), declared_identical=True)
    with pytest.raises(InvalidInput, match="see those after them"), ModelPairs().use(spec):
        pass


def test_every_text_goes_on_from_its_own_states(saved: Saved, make_pair: Any) -> None:
    """Rows of a batch that was reordered went on from the running states of others."""
    folder = saved(transformers.MiniMaxConfig(**TEXT, num_local_experts=2, num_experts_per_tok=1, block_size=16))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [[7, 30, 41, 52, 63], [9, 100, 5], [11, 200, 60, 61]]
    with ModelPairs().use(make_pair(folder, declared_identical=True)) as pair:
        _, found = pair.continuations("base", prompts, 5, 3)
    for prompt, beams in zip(prompts, found, strict=True):
        for beam in beams:
            ids = torch.tensor([[*prompt, *beam.ids]])
            with torch.inference_mode():
                logs = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = float(logs.gather(1, torch.tensor(beam.ids)[:, None]).sum())
            assert beam.log_prob == pytest.approx(expected, abs=1e-4)


def test_samples_of_one_prompt_go_on_from_its_states(saved: Saved, make_pair: Any) -> None:
    """The prompt is read once, and what the model keeps of it beside keys and values is handed to every sample."""
    folder = saved(transformers.MiniMaxConfig(**TEXT, num_local_experts=2, num_experts_per_tok=1, block_size=16))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = ["one river", "two roads and a bridge"]
    with ModelPairs().use(make_pair(folder, declared_identical=True)) as pair:
        sampling = Sampling(n=3, temperature=0, max_new_tokens=6)
        found = pair.generate("base", [GenerationRequest(text=text) for text in texts], sampling)
        for text, answers in zip(texts, found, strict=True):
            ids = list(pair.tokenizer(text)["input_ids"])
            new: list[int] = []
            while len(new) < 6 and not pair.stop_ids("base").intersection(new):
                with torch.inference_mode():
                    new.append(int(model(torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax()))
            kept = [token for token in new if token not in pair.stop_ids("base")]
            assert [answer.text for answer in answers] == [new_text(pair.tokenizer, ids, kept)] * 3
