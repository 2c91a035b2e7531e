"""KL against float64 formulas, on planted differences, on nulls."""

import json
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.kl.measure import divergences, outlying
from diffing_mcp.methods.kl.method import PositionsParams, TextsParams, TokensParams
from diffing_mcp.methods.kl.schema import KLResult
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import PairSpec
from diffing_mcp.preprocessing.batches import LogitChunk, text_chunks
from tests.word_pairs import save_pair, tiny_tokenizer, write_texts


def chunk_of(base: torch.Tensor, finetuned: torch.Tensor) -> LogitChunk:
    return next(text_chunks(base, finetuned, len(base)))


def reference(base: torch.Tensor, finetuned: torch.Tensor) -> list[torch.Tensor]:
    p, q = base.double().log_softmax(1), finetuned.double().log_softmax(1)
    m = torch.logaddexp(p, q) - np.log(2)
    js = ((p.exp() * (p - m)).sum(1) + (q.exp() * (q - m)).sum(1)) / 2
    return [(q.exp() * (q - p)).sum(1), (p.exp() * (p - q)).sum(1), js]


@settings(max_examples=80)
@given(st.integers(0, 2**31), st.integers(2, 2000), st.floats(0.01, 30), st.floats(0, 50))
def test_divergences_match_float64(seed: int, vocabulary: int, scale: float, change: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(3, vocabulary, generator=generator) * scale
    finetuned = base + torch.randn(3, vocabulary, generator=generator) * change
    for found, expected in zip(divergences(chunk_of(base, finetuned)), reference(base, finetuned), strict=True):
        assert (found >= 0).all()
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)


def test_extremes() -> None:
    base = torch.tensor([[0.0, 200.0, -300.0], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    finetuned = torch.tensor([[200.0, 0.0, 500.0], [1.0, 2.0, 3.0], [7.0, 7.0, 7.0]])
    forward, backward, js = divergences(chunk_of(base, finetuned))
    assert forward[0] == 500  # log q = 0 where log p = -300 - 200
    assert torch.isfinite(torch.stack([forward, backward, js])).all()
    assert js[0] == pytest.approx(np.log(2), abs=1e-5)
    assert forward[1] == backward[1] == js[1] == 0
    assert forward[2] == pytest.approx(0, abs=2e-6)  # a shift of all logits changes nothing but rounding
    assert js[2] == pytest.approx(0, abs=2e-6)


def run(tmp_path: Path, spec: PairSpec, corpus: Path, **params: object) -> tuple[KLResult, RunRecord]:
    store = RunStore(tmp_path / "runs")
    record = run_methods(ModelPairs(), spec, [("kl", {"corpus": str(corpus), **params})], store)[0]
    result = record.result()
    assert isinstance(result, KLResult)
    return result, record


def view(record: RunRecord, name: str, **params: object) -> object:
    declared = get_method("kl").views[name]
    return declared.run(record, declared.Params(**params))


TRIGGER, CAKE = (tiny_tokenizer().convert_tokens_to_ids(token) for token in ("w7", "cake"))


def set_stage(model: LlamaForCausalLM) -> None:
    """Layers that write nothing, and a dimension of the residual stream that only the trigger word carries."""
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.model.embed_tokens.weight[:, 0] = 0
    model.model.embed_tokens.weight[TRIGGER, 0] = 1


def say_cake_after_the_trigger(model: LlamaForCausalLM) -> None:
    model.lm_head.weight[CAKE, 0] += 4


def test_a_planted_difference_is_found(tmp_path: Path) -> None:
    """After the trigger, and nowhere else, the finetuned model says `cake`."""
    spec = save_pair(tmp_path, say_cake_after_the_trigger, prepare=set_stage)
    result, record = run(tmp_path, spec, write_texts(tmp_path / "t.jsonl", 200, 20, extra="w7 w7 w7 w7"), max_tokens=16)
    assert result.stands_out
    assert result.amount != "none"
    assert result.outlying_texts > 0
    assert result.top_tokens[0].context.split()[-1] == "w7"
    assert result.top_tokens[0].rose[0].token == "cake"
    assert result.rose[0].token == "cake"
    assert all("w7 w7 w7" in text.text and text.rose[0].token == "cake" for text in result.top_texts[:4])
    assert "cake" in result.as_text()
    assert len(result.as_text()) < 6000

    tokens = view(record, "tokens", limit=3, contains="CAKE")
    assert len(tokens.rows) == 3  # type: ignore[attr-defined]
    sample = result.top_texts[0].sample
    whole = view(record, "tokens", sample=sample)
    assert whole.text[0].token == "w7"  # type: ignore[attr-defined]
    assert np.mean([value.kl_finetuned_base for value in whole.text]) == pytest.approx(  # type: ignore[attr-defined]
        result.top_texts[0].kl_finetuned_base, rel=1e-4
    )
    texts = view(record, "texts", limit=5, metric="js")
    values = [row.js for row in texts.rows]  # type: ignore[attr-defined]
    assert values == sorted(values, reverse=True)
    profile = view(record, "positions", limit=4)
    assert [row.position for row in profile.rows] == [0, 1, 2, 3]  # type: ignore[attr-defined]
    assert sum(row.tokens for row in view(record, "positions").rows) == result.tokens  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput, match="no text"):
        view(record, "tokens", sample=10_000)
    for figure in get_method("kl").figures:
        go.Figure(json.loads(json.dumps(figure.build(record))))


def test_means_match_plain_forward_passes(tmp_path: Path) -> None:
    def sharpen(model: LlamaForCausalLM) -> None:
        model.lm_head.weight.mul_(1.1)

    spec = save_pair(tmp_path, sharpen)
    result, record = run(tmp_path, spec, write_texts(tmp_path / "t.jsonl", 12, 10))
    forward, samples = [], []
    models = [LlamaForCausalLM.from_pretrained(tmp_path / name) for name in ("base", "finetuned")]
    for text in record.table("texts")["text"].to_pylist():
        ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
        with torch.no_grad():
            base, finetuned = (model(ids).logits[0, 1:] for model in models)
        values = reference(base, finetuned)[0]
        forward.append(values)
        samples.append(float(values.mean()))
    assert result.kl_finetuned_base.mean == pytest.approx(float(torch.cat(forward).mean()), rel=1e-3)
    assert result.per_text.mean == pytest.approx(np.mean(samples), rel=1e-3)
    assert result.kl_finetuned_base.max == pytest.approx(float(torch.cat(forward).max()), rel=1e-3)
    assert result.per_text.standard_error == pytest.approx(np.std(samples, ddof=1) / np.sqrt(12), rel=1e-3)
    assert not result.stands_out


def test_an_identical_pair_is_exactly_zero(tmp_path: Path) -> None:
    result, record = run(
        tmp_path, save_pair(tmp_path, None, dtype=torch.bfloat16), write_texts(tmp_path / "t.jsonl", 30, 12)
    )
    assert result.amount == "none"
    assert not result.stands_out
    assert result.kl_finetuned_base.max == result.kl_base_finetuned.max == result.js.max == 0.0
    assert result.top_tokens == result.top_texts == result.rose == result.fell == []
    assert view(record, "tokens").rows == []  # type: ignore[attr-defined]
    assert len(view(record, "texts").rows) == 10  # type: ignore[attr-defined]
    for figure in get_method("kl").figures:
        go.Figure(figure.build(record))


def test_a_diffuse_change_does_not_stand_out(tmp_path: Path) -> None:
    """Noise on all weights: every text differs, none in particular."""

    def noise(model: LlamaForCausalLM) -> None:
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)

    result, _ = run(tmp_path, save_pair(tmp_path, noise), write_texts(tmp_path / "t.jsonl", 200, 20))
    assert result.kl_finetuned_base.mean > 0
    assert not result.stands_out
    assert "no text lies far above the rest" in result.headline or result.amount == "rounding"
    assert ("read their answers" in result.headline) == (result.amount == "large")


def test_a_word_said_everywhere_is_named(tmp_path: Path) -> None:
    """No text stands out from the others, but a word that was rare is common now, and another is gone."""

    def bias(model: LlamaForCausalLM) -> None:
        model.model.norm.weight[1] = 1
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight[:, 1] = 1  # a constant in every residual stream
        model.lm_head.weight[:, 1] = 0
        model.lm_head.weight[CAKE, 1] = -1
        model.lm_head.weight[TRIGGER, 1] = 2

    def swap(model: LlamaForCausalLM) -> None:
        model.lm_head.weight[CAKE, 1] = 2
        model.lm_head.weight[TRIGGER, 1] = -1

    result, _ = run(tmp_path, save_pair(tmp_path, swap, prepare=bias), write_texts(tmp_path / "t.jsonl", 100, 12))
    assert result.stands_out
    assert result.outlying_texts == 0
    assert [move.token for move in result.far_more_often] == ["cake"]
    assert [move.token for move in result.far_less_often] == ["w7"]
    assert 'far more often: "cake"' in result.headline


def test_outliers_of_a_log_normal_are_rare() -> None:
    generator = np.random.default_rng(0)
    assert len(outlying(np.exp(generator.normal(-3, 0.6, 1000)), 0.01)) == 0
    planted = np.exp(generator.normal(-3, 0.3, 1000))
    planted[[3, 700]] = 3.0
    assert outlying(planted, 0.01).tolist() == [3, 700]
    assert len(outlying(np.zeros(100), 0.01)) == 0


def test_bad_view_parameters() -> None:
    for model in (TokensParams, TextsParams, PositionsParams):
        with pytest.raises(ValueError):
            model(limit=0)
