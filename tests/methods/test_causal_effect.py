"""Causal effect of directions against a planted one, a direct computation, and the identical pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.causal_effect.measure import interval, judge, orthonormal, per_token, rank_p, share
from diffing_mcp.methods.causal_effect.method import NullsParams, SamplesParams
from diffing_mcp.methods.causal_effect.schema import EffectRow
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from tests.methods.conftest import write_random_texts

NAME = "causal_effect"
LENS = "activation_difference_lens"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_texts(tmp_path_factory.mktemp("corpus"), 12)


@pytest.fixture(scope="module")
def planted(tiny_models: Any, make_pair: Any) -> Any:
    """GPT-2 whose finetuned block 1 adds one constant direction: the whole difference of the models."""
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))

    def change(model: Any) -> None:
        model.transformer.h[1].mlp.c_proj.bias += 40 * direction

    return make_pair(tiny_models(kind="gpt2"), finetuned=tiny_models(kind="gpt2", change=change), name="planted")


def handle(pairs: Any, spec: Any, corpus: Path, store: RunStore, position: str = "all") -> str:
    lens = run_methods(
        pairs, spec, [(LENS, {"corpus": str(corpus), "max_samples": 12, "max_tokens": 16, "layers": [1]})], store
    )[0]
    return f"{lens.id}/1:{position}:difference"


def run(pairs: Any, spec: Any, corpus: Path, store: RunStore, **params: Any) -> RunRecord:
    return run_methods(
        pairs,
        spec,
        [(NAME, {"corpus": str(corpus), "max_samples": 12, "max_tokens": 16, "random_directions": 10, **params})],
        store,
    )[0]


@pytest.mark.parametrize("direction", ["base_to_ft", "ft_to_base"])
def test_the_planted_direction_carries_the_whole_gap(
    direction: str, planted: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    vector = handle(pairs, planted, corpus, store)
    record = run(pairs, planted, corpus, store, vectors=[vector, {"token": "e", "layer": 1}], direction=direction)
    result: Any = record.result()
    best, _ = result.rows
    assert abs(result.gap) > 0.05
    assert best.share_of_gap == pytest.approx(1.0, abs=0.01)
    assert best.loss_change == pytest.approx(result.gap, rel=0.01)
    assert not best.low <= 0 <= best.high
    view: Any = get_method(NAME).views["samples"].run(record, SamplesParams())
    assert all(row.changed_loss == pytest.approx(row.other_loss, abs=2e-3) for row in view.rows)
    nulls: Any = get_method(NAME).views["nulls"].run(record, NullsParams(kind="random"))
    assert len(nulls.changes) == 10
    assert get_method(NAME).figures[0].build(record)["data"]
    with pytest.raises(UnknownName, match="2 rows"):
        get_method(NAME).views["samples"].run(record, SamplesParams(row=2))


def test_losses_are_those_of_a_direct_computation(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    texts = ["The quick brown fox jumps over the lazy dog", "Rivers run to the sea; mountains stay where they are."]
    params = {"vectors": [{"token": "e", "layer": 1}], "texts": texts, "mode": "ablate", "random_directions": 4}
    record = run_methods(pairs, tiny_pair.spec, [(NAME, params)], store)[0]
    unit = tiny_pair.token_rows("finetuned", tiny_pair.tokenizer("e")["input_ids"])[0]
    unit = unit / unit.norm()
    from diffing_mcp.model_pairs.interventions import Intervention

    for index, text in enumerate(texts):
        ids = torch.tensor([tiny_pair.tokenizer(text)["input_ids"]])
        logits = tiny_pair.forward(
            "finetuned", ids, torch.ones_like(ids), interventions=[Intervention(1, unit, mode="remove")]
        ).logits
        nats = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
        assert record.array("changed_nats")[0, index] == pytest.approx(float(nats), rel=1e-4)
        assert record.array("tokens")[index] == ids.shape[1] - 1


def test_a_subspace_holds_its_directions(planted: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    vector = handle(pairs, planted, corpus, store)
    result: Any = run(
        pairs, planted, corpus, store, vectors=[vector, {"token": "e", "layer": 1}], subspace=True
    ).result()
    [row] = result.rows
    assert "rank 2" in row.vector
    assert row.share_of_gap == pytest.approx(1.0, abs=0.02)
    with pytest.raises(InvalidInput, match="one layer"):
        run(pairs, planted, corpus, store, vectors=[vector, {"token": "e", "layer": 0}], subspace=True)


def test_of_a_chat_the_answers_loss_counts(tiny_pair: Any, pairs: Any, tmp_path: Path, store: RunStore) -> None:
    path = tmp_path / "chats.jsonl"
    chat = [{"role": "user", "content": "What is your name?"}, {"role": "assistant", "content": "I am a small model."}]
    path.write_text("\n".join(json.dumps({"messages": chat}) for _ in range(3)))
    record = run(
        pairs, tiny_pair.spec, path, store, vectors=[{"token": "e", "layer": 1}], max_tokens=40, random_directions=4
    )
    answer = tiny_pair.tokenizer(chat[1]["content"], add_special_tokens=False)["input_ids"]
    assert record.array("tokens").tolist() == [len(answer)] * 3


def test_an_identical_pair_is_exactly_zero(identical_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    result: Any = run(pairs, identical_pair.spec, corpus, store, vectors=[{"token": "e", "layer": 1}]).result()
    assert result.identical
    assert not result.stands_out
    assert (result.gap, result.rows[0].loss_change, result.rows[0].share_of_gap) == (0.0, 0.0, None)


def test_zero_directions_and_short_texts_are_refused(
    identical_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    zero = handle(pairs, identical_pair.spec, corpus, store)
    with pytest.raises(InvalidInput, match="exactly zero"):
        run(pairs, identical_pair.spec, corpus, store, vectors=[zero])
    with pytest.raises(InvalidInput, match="two tokens"):
        run(pairs, identical_pair.spec, corpus, store, vectors=[{"token": "e"}], texts=["e"])


@given(st.integers(1, 5), st.integers(0, 10_000))
def test_a_basis_is_orthonormal_and_spans(count: int, seed: int) -> None:
    directions = torch.randn(count, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    basis = orthonormal(torch.cat([directions, directions[:1] * 2])).double()
    assert len(basis) == count  # the repeated one adds nothing
    torch.testing.assert_close(basis @ basis.T, torch.eye(count, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(directions @ basis.T @ basis, directions, atol=1e-4, rtol=1e-4)


def test_only_a_large_certain_share_beyond_the_nulls_stands_out() -> None:
    row = EffectRow(
        vector="v",
        layer=1,
        loss_change=0.2,
        low=0.1,
        high=0.3,
        share_of_gap=0.5,
        p_random=0.04,
        p_difference=0.04,
        largest_null=0.01,
    )
    assert judge([row], 0.4, False, "patch", 12)[0]
    for weaker in (
        {"loss_change": 0.01},
        {"low": -0.1},
        {"share_of_gap": None},
        {"share_of_gap": 0.05},
        {"p_difference": 0.06},
    ):
        assert not judge([row.model_copy(update=weaker)], 0.4, False, "patch", 12)[0]
    assert not judge([row], 0.0, True, "patch", 12)[0]
    # A direction that leads away from the other model, however far, hides none that carries the change.
    away = row.model_copy(update={"vector": "w", "loss_change": -0.4, "low": -0.5, "high": -0.3, "share_of_gap": -1.0})
    found, headline = judge([away, row], 0.4, False, "patch", 12)
    assert found
    assert headline.startswith("Carrying over v ")
    # A single text has an interval of no width.
    found, headline = judge([row], 0.4, False, "patch", 1)
    assert not found
    assert "too few" in headline


def test_statistics() -> None:
    assert rank_p(3.0, [1.0, -2.0, 4.0]) == 0.5
    assert rank_p(-5.0, [1.0] * 9) == 0.1
    assert share(1.0, 2.0, (1.0, 3.0)) == 0.5
    assert share(1.0, 0.0, (0.0, 0.0)) is None
    assert share(1.0, 0.1, (-0.1, 0.3)) is None
    nats, tokens = np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0])
    assert per_token(nats, tokens) == 2.0
    assert interval(nats, tokens, 0) == (2.0, 2.0)
    low, high = interval(np.array([0.0, 10.0, 20.0, 5.0]), np.ones(4), 0)
    assert low < 8.75 < high
