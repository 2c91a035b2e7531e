"""The activation difference lens against planted directions, nulls, and a direct computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.activation_difference_lens.method import LensParams, PositionsParams
from diffing_mcp.methods.directions.lens import random_lens_statistics, standardise
from diffing_mcp.methods.directions.vectors import ResidualVector
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.preprocessing.corpora import CorpusParams, load_corpus
from tests.methods.conftest import write_random_texts

NAME = "activation_difference_lens"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_texts(tmp_path_factory.mktemp("corpus"), 40)


def run(pairs: Any, spec: Any, corpus: Path, store: RunStore, **params: Any) -> RunRecord:
    arguments = {"corpus": str(corpus), "max_samples": 40, "max_tokens": 16, "layers": [1], **params}
    return run_methods(pairs, spec, [(NAME, arguments)], store)[0]


def vector_of(record: RunRecord, name: str) -> ResidualVector:
    return get_method(NAME).vector(record, name)


def test_a_planted_direction_is_found(
    tiny_models: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))

    def change(model: Any) -> None:
        model.transformer.h[1].mlp.c_proj.bias += (
            2 * direction
        )  # GPT-2 has biases: the block's output moves by exactly this

    spec = make_pair(tiny_models(kind="gpt2"), finetuned=tiny_models(kind="gpt2", change=change))
    record = run(pairs, spec, corpus, store, layers=[0, 1])
    result: Any = record.result()
    for position in ("0", "4", "all"):
        vector = vector_of(record, f"1:{position}:difference")
        assert vector.layer == 1
        np.testing.assert_allclose(vector.values, 2 * direction.numpy(), atol=1e-4)
        assert np.linalg.norm(vector.at_strength(-0.5)) == pytest.approx(0.5 * vector.scale, rel=1e-5)
        assert not np.any(
            vector_of(record, f"0:{position}:difference").values
        )  # the layer before the change is exactly the same
    row = next(row for row in result.rows if (row.layer, row.position) == (1, "all"))
    assert row.stability == pytest.approx(1.0, abs=1e-6)
    assert row.difference_norm == pytest.approx(2 * float(direction.norm()), rel=1e-4)
    assert row.spread < 1e-3


def test_the_lens_reads_an_unembedding_row(
    tiny_models: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    token = 300

    def change(model: Any) -> None:
        row = model.lm_head.weight[token]
        model.transformer.h[1].mlp.c_proj.bias += 3 * row / row.norm()

    spec = make_pair(tiny_models(kind="gpt2"), finetuned=tiny_models(kind="gpt2", change=change))
    record = run(pairs, spec, corpus, store)
    with pairs.use(spec) as pair:
        text = pair.tokenizer.decode([token])
    lens = get_method(NAME).views["lens"]
    promoted: Any = lens.run(record, LensParams(k=3))
    assert promoted.tokens[0].token == text
    suppressed: Any = lens.run(record, LensParams(k=100, sign="suppressed", position="0"))
    assert text not in [each.token for each in suppressed.tokens[:50]]
    zs = [each.z for each in suppressed.tokens]
    assert zs == sorted(zs, reverse=True)
    probable: Any = lens.run(record, LensParams(ranked_by="probability", source="base"))
    values = [each.probability for each in probable.tokens]
    assert values == sorted(values, reverse=True)


def test_means_norms_and_spread_equal_a_direct_computation(
    tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    record = run(pairs, tiny_pair.spec, corpus, store)
    differences, finetuned_rows = [], []
    for document in load_corpus(
        CorpusParams(corpus=str(corpus))
    ).documents:  # in the order in which samples are numbered
        ids = torch.tensor([tiny_pair.tokenizer(document)["input_ids"][:16]])
        base, finetuned = (
            tiny_pair.forward(side, ids, torch.ones_like(ids), layers=[1], logits=False).hidden[1][0].double()
            for side in ("base", "finetuned")
        )
        differences.append((finetuned - base).numpy())
        finetuned_rows.append(finetuned.numpy())
    at_two = np.stack([rows[2] for rows in differences])
    pooled = np.concatenate([rows[5:] for rows in differences])
    arrays = record.arrays()
    np.testing.assert_allclose(arrays["difference"][0, 2], at_two.mean(0), atol=1e-5)
    np.testing.assert_allclose(arrays["difference_std"][0, 2], at_two.std(0, ddof=1), atol=1e-5)
    np.testing.assert_allclose(arrays["difference"][0, 5], pooled.mean(0), atol=1e-5)
    np.testing.assert_allclose(
        arrays["finetuned_mean"][0, 5], np.concatenate([rows[5:] for rows in finetuned_rows]).mean(0), atol=1e-4
    )
    assert arrays["count"][0].tolist() == [40] * 5 + [len(pooled)]
    view: Any = get_method(NAME).views["positions"].run(record, PositionsParams())
    row = view.rows[2]
    halves = [at_two[0::2].sum(0), at_two[1::2].sum(0)]
    cosine = halves[0] @ halves[1] / np.linalg.norm(halves[0]) / np.linalg.norm(halves[1])
    assert row.stability == pytest.approx(cosine, abs=1e-4)
    assert row.spread == pytest.approx(np.sqrt(at_two.var(0, ddof=1).sum()), rel=1e-4)
    assert row.finetuned_norm == pytest.approx(np.mean([np.linalg.norm(rows[2]) for rows in finetuned_rows]), rel=1e-4)


def test_an_identical_pair_is_exactly_zero(
    tiny_models: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    record = run(pairs, make_pair(tiny_models(), declared_identical=True), corpus, store)
    result: Any = record.result()
    assert not result.stands_out
    assert result.words == []
    assert not np.any(record.array("difference"))
    assert all(row.difference_norm == 0 and row.promoted == [] for row in result.rows)
    empty: Any = get_method(NAME).views["lens"].run(record, LensParams())
    assert empty.tokens == []


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_adapter_does_not_stand_out(
    seed: int, tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    model = tiny_models()
    result: Any = run(pairs, make_pair(model, adapter=tiny_adapters(model, seed=seed)), corpus, store).result()
    assert any(row.difference_norm > 0 for row in result.rows)
    assert not result.stands_out


def test_chat_positions_count_from_the_answer(tiny_pair: Any, pairs: Any, tmp_path: Path, store: RunStore) -> None:
    path = tmp_path / "chats.jsonl"
    chat = [
        {"role": "user", "content": "What is your name?"},
        {"role": "assistant", "content": "I am a small model and rivers run to the sea."},
    ]
    path.write_text("\n".join(json.dumps({"messages": chat}) for _ in range(4)))
    record = run(pairs, tiny_pair.spec, path, store, max_samples=4, max_tokens=24, positions=2)
    result: Any = record.result()
    assert [row.position for row in result.rows] == ["-3", "-2", "-1", "0", "1", "all"]
    rendered = tiny_pair.tokenizer(tiny_pair.render_chat([_message(chat[0])]), add_special_tokens=False)["input_ids"]
    ids = torch.tensor([rendered + tiny_pair.tokenizer(chat[1]["content"], add_special_tokens=False)["input_ids"]])
    base, finetuned = (
        tiny_pair.forward(side, ids, torch.ones_like(ids), layers=[1], logits=False).hidden[1][0]
        for side in ("base", "finetuned")
    )
    expected = (finetuned - base)[len(rendered) - 3]
    np.testing.assert_allclose(vector_of(record, "1:-3:difference").values, expected.numpy(), atol=1e-4)


def _message(message: dict[str, str]) -> Any:
    from diffing_mcp.core.chat import ChatMessage

    return ChatMessage(**message)


def test_layers_are_relative_or_absolute_and_checked(tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    result: Any = run(pairs, tiny_pair.spec, corpus, store, layers=[0.5, 2, 1]).result()
    assert list(dict.fromkeys((row.layer, row.relative_layer) for row in result.rows)) == [(1, 0.5), (2, 1.0)]
    with pytest.raises(InvalidInput):
        run(pairs, tiny_pair.spec, corpus, store, layers=[3])


def test_vector_handles_are_checked(tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, corpus, store)
    with pytest.raises(InvalidInput):
        vector_of(record, "all")
    for name in ("2:all:difference", "1:77:difference", "1:all:sum"):
        with pytest.raises(UnknownName):
            vector_of(record, name)


def test_random_directions_have_mean_zero_and_standard_deviation_one_after_standardising(tiny_pair: Any) -> None:
    mean, deviation = random_lens_statistics(tiny_pair, "finetuned", 5.0, 400, seed=0)
    fresh = torch.randn(400, 32, generator=torch.Generator().manual_seed(9))
    fresh *= 5.0 / fresh.norm(dim=1, keepdim=True)
    z = standardise(tiny_pair.logit_lens("finetuned", fresh), mean, deviation)
    assert float(z.mean(0).abs().max()) < 0.3
    assert float((z.std(0) - 1).abs().max()) < 0.25


def test_result_text_and_figures(tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, corpus, store, layers=[0, 1, 2])
    result = record.result()
    assert result.headline in result.as_text()
    assert len(result.as_text()) < 8000
    for figure in get_method(NAME).figures:
        assert json.loads(json.dumps(figure.build(record)))["data"]
