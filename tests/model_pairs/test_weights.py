"""Weight differences: what is planted is found at its place, LoRA factors mean what peft computes, equal weights are
exactly equal.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffing_mcp.core.errors import InvalidInput, NotTheSame
from diffing_mcp.model_pairs.modules import LowRank
from diffing_mcp.model_pairs.residency import ModelPairs
from tests.reference_models import reference_model


def dense(delta: Any) -> torch.Tensor:
    return delta.dense() if isinstance(delta, LowRank) else delta


def deltas_of(pairs: Any, spec: Any) -> dict[str, Any]:
    with pairs.use(spec) as pair:
        return {f"{each.place.name}.{each.parameter}": each for each in pair.weight_deltas()}


def changed(deltas: dict[str, Any]) -> set[str]:
    return {name for name, each in deltas.items() if each.delta is not None}


def test_adapter_factors_are_the_saved_change(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, lora_delta: Any
) -> None:
    model = tiny_models()
    adapter = tiny_adapters(model)
    deltas = deltas_of(pairs, make_pair(model, adapter=adapter))
    assert len(changed(deltas)) == 3 * 7
    assert "model.norm.weight" in deltas
    for name in changed(deltas):
        each = deltas[name]
        assert isinstance(each.delta, LowRank)
        torch.testing.assert_close(
            each.delta.dense(), lora_delta(adapter, name.removesuffix(".weight")), rtol=1e-6, atol=1e-8
        )
    down = deltas["model.layers.1.mlp.down_proj.weight"].place
    assert (down.layer, down.path, down.part, down.projection) == (1, "mlp.down_proj", "mlp", "down_proj")
    assert down.writes(32, 64, 32)
    assert not down.reads(32, 64, 32)
    assert deltas["model.layers.1.self_attn.q_proj.weight"].place.reads(32, 32, 32)
    assert deltas["lm_head.weight"].place.part == "unembedding"
    embedding = deltas["model.embed_tokens.weight"]
    assert embedding.shape == (32, 320)
    assert embedding.place.part == "embedding"


def test_two_adapters_of_one_base_differ_by_their_factors(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, lora_delta: Any
) -> None:
    model = tiny_models()
    first, second = tiny_adapters(model, seed=1), tiny_adapters(model, seed=2, targets=["down_proj", "q_proj"], rank=2)
    deltas = deltas_of(pairs, make_pair(model, base_adapter=first, adapter=second))
    name = "model.layers.0.mlp.down_proj"
    both = deltas[f"{name}.weight"]
    assert both.delta.left.shape[1] == 6
    torch.testing.assert_close(
        both.delta.dense(), lora_delta(second, name) - lora_delta(first, name), rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(
        deltas["model.layers.2.mlp.up_proj.weight"].delta.dense(), -lora_delta(first, "model.layers.2.mlp.up_proj")
    )
    with pairs.use(make_pair(model, declared_identical=True)) as pair:
        bare = {each.place.name: each for each in pair.weight_deltas()}
    low = lora_delta(first, name)
    with pairs.use(make_pair(model, declared_identical=True)) as pair, pair.sides["base"].hold() as resident:
        weight = resident.transformer.get_submodule(name)
        weight = getattr(weight, "base_layer", weight).weight
        assert both.base_norm == pytest.approx(float((weight + low).norm()), rel=1e-5)
        assert bare[name].base_norm == pytest.approx(float(weight.norm()), rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"modules_to_save": ["lm_head"]},
        {"lora_bias": True},
        {"use_rslora": True},
        {"trainable_token_indices": [7, 9]},
        {"use_dora": True},
    ],
)
def test_other_adapters_equal_the_merged_model(
    config: Any, tiny_models: Any, tiny_adapters: Any, make_pair: Any
) -> None:
    pairs = ModelPairs()
    model = tiny_models(attention_bias=True, mlp_bias=True)  # adapters with a bias merge into modules that have one
    adapter = tiny_adapters(model, targets=["q_proj", "down_proj"], **config)
    switched = deltas_of(pairs, make_pair(model, adapter=adapter))
    merged = deltas_of(pairs, make_pair(model, adapter=adapter, merge=True))
    assert changed(switched) == changed(merged)
    for name in changed(merged):
        torch.testing.assert_close(dense(switched[name].delta), merged[name].delta, rtol=1e-4, atol=1e-6)
        assert switched[name].base_norm == pytest.approx(merged[name].base_norm, rel=1e-6)


def test_a_bias_that_an_adapter_puts_where_there_is_none_is_a_change(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any
) -> None:
    from safetensors.torch import load_file

    model = tiny_models(tie_word_embeddings=False)
    adapter = tiny_adapters(model, targets=["down_proj", "lm_head"], lora_bias=True)
    saved = load_file(adapter / "adapter_model.safetensors")
    deltas = deltas_of(pairs, make_pair(model, adapter=adapter))
    for name in ("model.layers.1.mlp.down_proj", "lm_head"):
        bias = 2 * saved[f"base_model.model.{name}.lora_B.bias"]  # lora_alpha / r
        assert bias.any()
        torch.testing.assert_close(deltas[f"{name}.bias"].delta, bias)
    with pairs.use(make_pair(model, adapter=adapter)) as pair:
        ids = torch.tensor([[5, 6, 7]])
        output = pair.forward("finetuned", ids, torch.ones_like(ids), layers=[2])
        assert output.logits is not None
        torch.testing.assert_close(pair.logit_lens("finetuned", output.hidden[2]), output.logits, rtol=1e-4, atol=1e-4)


def test_only_the_planted_parameter_differs_and_sequential_reads_the_same(
    tiny_models: Any, make_pair: Any, pairs: Any
) -> None:
    def plant(model: Any) -> None:
        model.model.layers[1].mlp.down_proj.weight[3] += 0.5
        model.model.norm.weight[0] += 0.25

    base, finetuned = tiny_models(), tiny_models(change=plant)
    spec = make_pair(base, finetuned=finetuned)
    deltas = deltas_of(pairs, spec)
    assert changed(deltas) == {"model.layers.1.mlp.down_proj.weight", "model.norm.weight"}
    assert deltas["model.layers.1.mlp.down_proj.weight"].delta.abs().sum(1).nonzero().tolist() == [[3]]
    small = ModelPairs(memory_limit=int(1.5 * sum(file.stat().st_size for file in Path(base).glob("*.safetensors"))))
    with small.use(spec) as pair:
        assert pair.sequential
        in_turn = {f"{each.place.name}.{each.parameter}": each for each in pair.weight_deltas()}
    assert list(in_turn) == list(deltas)
    for name, each in deltas.items():
        assert in_turn[name].base_norm == each.base_norm
        assert (each.delta is None) == (in_turn[name].delta is None)
        if each.delta is not None:
            assert torch.equal(in_turn[name].delta, each.delta)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "qwen2", "gemma2", "opt"])
def test_architectures_have_places(kind: str, tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any) -> None:
    model = tiny_models(kind)
    deltas = deltas_of(pairs, make_pair(model, adapter=tiny_adapters(model)))
    merged = deltas_of(pairs, make_pair(model, adapter=tiny_adapters(model), merge=True))
    assert changed(deltas) == changed(merged)
    for name in changed(deltas):
        torch.testing.assert_close(dense(deltas[name].delta), merged[name].delta, rtol=1e-4, atol=1e-5)
    in_blocks = [each for each in deltas.values() if each.delta is not None and each.place.layer is not None]
    assert {each.place.part for each in in_blocks} == {"attention", "mlp"}
    assert all(each.place.reads(*each.shape, 32) != each.place.writes(*each.shape, 32) for each in in_blocks)


def test_tied_weights_come_once_and_identical_pairs_are_zero(
    identical_pair: Any, tiny_models: Any, make_pair: Any, pairs: Any
) -> None:
    assert not any(each.delta is not None for each in identical_pair.weight_deltas())
    names = [
        each.place.name
        for each in deltas_of(pairs, make_pair(tiny_models(tie_word_embeddings=True), declared_identical=True)).values()
    ]
    assert ("lm_head" in names) + ("model.embed_tokens" in names) == 1


def test_other_modules_are_said(tiny_models: Any, make_pair: Any, pairs: Any) -> None:
    spec = make_pair(tiny_models(), finetuned=tiny_models(attention_bias=True, seed=3))
    with pytest.raises(NotTheSame, match="bias"), pairs.use(spec) as pair:
        list(pair.weight_deltas())


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_trained_token_rows_are_changes_of_the_weights(
    kind: str, tiny_models: Any, make_pair: Any, pairs: Any, tmp_path: Path
) -> None:
    """Gemma's embedding multiplies its rows when it runs: the difference of what runs is not that of the weights."""
    from peft import LoraConfig, get_peft_model

    base = tiny_models(kind, tie_word_embeddings=False)
    options = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[7, 9], task_type="CAUSAL_LM")
    model = get_peft_model(reference_model(base), options)
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data += 0.5
    model.save_pretrained(tmp_path / "adapter")
    spec = make_pair(base, adapter=tmp_path / "adapter")
    expected = torch.zeros(320)
    expected[[7, 9]] = 0.5
    delta = dense(deltas_of(pairs, spec)["model.embed_tokens.weight"].delta)
    torch.testing.assert_close(delta, expected.expand(32, 320), atol=1e-5, rtol=0)
    with pairs.use(spec) as pair:
        rows = pair.token_rows("finetuned", [7, 8], "input") - pair.token_rows("base", [7, 8], "input")
    torch.testing.assert_close(rows, torch.tensor([[0.5], [0.0]]).expand(2, 32), atol=1e-5, rtol=0)


@pytest.mark.parametrize("in_turn", [False, True])
def test_codes_of_quantised_weights_are_no_weights(
    in_turn: bool, tiny_models: Any, tiny_adapters: Any, make_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The norm of a base of 4 bits was that of its packed bytes, and a change small beside it."""
    base = tiny_models()
    with ModelPairs().use(make_pair(base, adapter=tiny_adapters(base))) as pair:
        with pair.sides["base"].hold() as resident:
            monkeypatch.setattr(resident.transformer, "is_quantized", True, raising=False)
        with pytest.raises(InvalidInput, match=r"quantised.*unquantised"):
            list(replace(pair, sequential=in_turn).weight_deltas())
