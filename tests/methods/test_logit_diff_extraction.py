"""Diff mining's extractions, positional profile, informative prior and added tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.logit_diff_topk_occurring.evidence import log_odds_z
from diffing_mcp.methods.logit_diff_topk_occurring.occurrences import IDENTITY_PROMPT
from diffing_mcp.methods.logit_diff_topk_occurring.views import NewTokensParams, PositionsParams, TokensParams
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.model_pairs.interventions import Intervention
from diffing_mcp.model_pairs.specs import SIDES

NAME = "logit_diff_topk_occurring"
TEXTS = [
    "the lazy dog runs to the sea",
    "a model is compared with rivers",
    "rain on the old oven cake",
    "one token at a time stays",
] * 5


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{text} {index}"}) for index, text in enumerate(TEXTS)))
    return path


def run(pairs: Any, spec: Any, corpus: Path, **params: Any) -> RunRecord:
    arguments = {"corpus": str(corpus), "max_tokens": 12, "top_k": 10, "topic_entries": "none", **params}
    return run_methods(pairs, spec, [(NAME, arguments)], RunStore(corpus.parent / "runs"))[0]


def states_of(pair: Any, layer: int) -> dict[str, torch.Tensor]:
    """Hidden states of all compared positions, by side."""
    rows: dict[str, list[torch.Tensor]] = {side: [] for side in SIDES}
    for index, text in enumerate(TEXTS):
        ids = torch.tensor([pair.tokenizer(f"{text} {index}")["input_ids"][:12]])
        for side in SIDES:
            rows[side].append(
                pair.forward(side, ids, torch.ones_like(ids), layers=[layer], logits=False).hidden[layer][0]
            )
    return {side: torch.cat(parts) for side, parts in rows.items()}


def test_logit_lens_statistics_equal_a_direct_computation(tiny_pair: Any, pairs: Any, corpus: Path) -> None:
    record = run(pairs, tiny_pair.spec, corpus, extraction="logit_lens", extraction_layer=1)
    states = states_of(tiny_pair, 1)
    logits = {side: tiny_pair.logit_lens(side, states[side]).double() for side in SIDES}
    arrays = record.arrays()
    np.testing.assert_allclose(arrays["mean_difference"], (logits["finetuned"] - logits["base"]).mean(0), atol=1e-4)
    np.testing.assert_allclose(
        arrays["expected_finetuned"].sum(0), logits["finetuned"].softmax(-1).sum(0), rtol=1e-3, atol=1e-4
    )
    result: Any = record.result()
    assert (result.extraction, result.layer) == ("logit_lens", 1)
    assert "logit_lens at layer 1" in result.as_text()


def test_patchscope_reads_patched_prompts(tiny_pair: Any, pairs: Any, corpus: Path) -> None:
    record = run(pairs, tiny_pair.spec, corpus, extraction="patchscope", extraction_layer=1)
    prompt = torch.tensor([tiny_pair.tokenizer(IDENTITY_PROMPT)["input_ids"]])
    states = states_of(tiny_pair, 1)
    logits = {}
    for side in SIDES:
        rows = []
        for state in states[side]:
            patch = Intervention(1, state, mode="replace", positions="last_prompt_token")
            rows.append(tiny_pair.forward(side, prompt, torch.ones_like(prompt), interventions=[patch]).logits[0, -1])
        logits[side] = torch.stack(rows).double()
    np.testing.assert_allclose(
        record.array("mean_difference"), (logits["finetuned"] - logits["base"]).mean(0), atol=1e-3
    )
    few: Any = run(
        pairs,
        tiny_pair.spec,
        corpus,
        extraction="patchscope",
        extraction_layer=1,
        patchscope_positions=7,
        topic_entries="magnitude",
    ).result()
    assert few.positions == 7


@pytest.mark.parametrize("extraction", ["logit_lens", "patchscope"])
def test_extractions_of_an_identical_pair_are_exactly_zero(
    extraction: str, identical_pair: Any, pairs: Any, corpus: Path
) -> None:
    record = run(pairs, identical_pair.spec, corpus, extraction=extraction)
    assert record.result().identical  # type: ignore[attr-defined]
    assert not np.any(record.array("mean_difference"))


def test_a_layer_that_is_not_there(tiny_pair: Any, pairs: Any, corpus: Path) -> None:
    with pytest.raises(InvalidInput, match="out of range"):
        run(pairs, tiny_pair.spec, corpus, extraction="logit_lens", extraction_layer=9)


def test_positional_profile_adds_up(tiny_pair: Any, pairs: Any, corpus: Path) -> None:
    record = run(pairs, tiny_pair.spec, corpus)
    result: Any = record.result()
    assert [(row.first, row.last) for row in result.position_profile] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 9),
        (10, 11),
    ]
    assert sum(row.positions for row in result.position_profile) == result.positions
    assert result.position_profile[0].positions == len(TEXTS)
    np.testing.assert_array_equal(record.array("risen_by_bin").sum(0), record.array("risen"))
    first = torch.tensor([[tiny_pair.tokenizer(f"{text} {index}")["input_ids"][0]] for index, text in enumerate(TEXTS)])
    base, finetuned = (tiny_pair.forward(side, first, torch.ones_like(first)).logits.double() for side in SIDES)
    assert result.position_profile[0].mean_size == pytest.approx(float((finetuned - base).abs().mean()), rel=1e-3)
    view: Any = get_method(NAME).views["positions"].run(record, PositionsParams(tokens=3))
    assert all(len(row.tokens) == 3 and row.occurrences == sorted(row.occurrences, reverse=True) for row in view.rows)


def test_the_order_by_z_is_falling_and_positive(tiny_pair: Any, pairs: Any, corpus: Path) -> None:
    record = run(pairs, tiny_pair.spec, corpus, ordering="log_odds_z")
    view: Any = get_method(NAME).views["tokens"].run(record, TokensParams(ordering="log_odds_z", limit=200))
    values = [row.log_odds_z for row in view.rows]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0
    assert values[-1] >= 0
    assert [row.token for row in record.result().risen] == [row.token for row in view.rows[:12]]  # type: ignore[attr-defined]


@given(st.integers(0, 2**31))
def test_z_is_antisymmetric_and_zero_when_equal(seed: int) -> None:
    random = np.random.default_rng(seed)
    base, finetuned = random.dirichlet(np.full(30, 0.2), 2) * 500
    np.testing.assert_allclose(log_odds_z(base, finetuned, 500), -log_odds_z(finetuned, base, 500), atol=1e-9)
    assert not np.any(log_odds_z(base, base, 500))


def test_z_weighs_the_evidence_and_ignores_negligible_words() -> None:
    base, finetuned = np.array([10.0, 100.0, 1e-9, 890.0]), np.array([20.0, 200.0, 1e-7, 780.0])
    z = log_odds_z(base, finetuned, 1000)
    assert z[1] > z[0] > 1
    assert abs(z[2]) < 0.01
    assert z[3] < 0


def test_added_tokens_are_reported(tiny_models: Any, make_pair: Any, pairs: Any, corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tiny_models(tie_word_embeddings=False)
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    tokenizer.add_tokens([" cake", " oven", "<scratch>", " frosting"])
    model.resize_token_embeddings(324, mean_resizing=False)
    with torch.no_grad():
        mean = model.model(torch.arange(5, 300).unsqueeze(0)).last_hidden_state[0].mean(0)
        model.lm_head.weight[320:] = torch.tensor([2.0, 6.0, 4.0, 0.0])[:, None] * mean / mean.square().sum()
    model.save_pretrained(tmp_path / "grown")
    tokenizer.save_pretrained(tmp_path / "grown")
    record = run(pairs, make_pair(base, finetuned=tmp_path / "grown"), corpus)
    result: Any = record.result()
    assert not np.any(record.array("mean_difference"))  # the common part is the same
    assert [row.token for row in result.new_tokens] == [" oven", "<scratch>", " cake", " frosting"]
    assert result.new_tokens_per_thousand == pytest.approx(sum(row.per_thousand for row in result.new_tokens), rel=1e-3)
    assert "tokens added by the finetune" in result.as_text()
    view: Any = get_method(NAME).views["new_tokens"].run(record, NewTokensParams(limit=3))
    assert (len(view.rows), view.total, view.next_offset) == (3, 4, 3)


def test_what_topics_take_is_bounded() -> None:
    with pytest.raises(ValueError, match="topic_positions x top_k"):
        get_method(NAME).Params.model_validate({"topic_positions": 200_000, "top_k": 1000})
