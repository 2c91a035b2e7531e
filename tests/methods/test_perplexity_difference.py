"""Perplexity differencing against planted habits, nulls, and a direct scoring of the completions."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.perplexity_difference.measure import Scored, _result
from diffing_mcp.methods.perplexity_difference.method import CompletionsParams
from diffing_mcp.methods.perplexity_difference.schema import PerplexityDifferenceParams
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.methods.texts.prompts import BUNDLED_PREFILLS, BUNDLED_QUESTIONS, Beginning, bundled_prefills
from diffing_mcp.model_pairs.specs import SIDES, Side

NAME = "perplexity_difference"
SMALL = {"samples_per_prefill": 1, "max_new_tokens": 12, "min_tokens": 4}


def run(pairs: Any, spec: Any, store: RunStore, **params: Any) -> RunRecord:
    return run_methods(pairs, spec, [(NAME, {**SMALL, **params})], store)[0]


def test_a_planted_habit_stands_out(planted_words: Any, make_pair: Any, pairs: Any, store: RunStore) -> None:
    base, finetuned, planted = planted_words(6.0)
    result: Any = run(
        pairs, make_pair(base, finetuned=finetuned), store, samples_per_prefill=2, max_new_tokens=20
    ).result()
    assert result.stands_out
    assert {row.word for row in result.words if row.strong} <= set(planted)
    assert result.kl_finetuned_base.mean > 4 * result.kl_finetuned_base.standard_error > 0
    assert result.finetuned_spread.median > 0.3
    differences = [row.difference for row in result.finetuned_rows]
    assert differences == sorted(differences, reverse=True)
    assert result.finetuned_rows[0].perplexity_other > result.finetuned_rows[0].perplexity_own


def test_an_identical_pair_is_exactly_zero(tiny_models: Any, make_pair: Any, pairs: Any, store: RunStore) -> None:
    record = run(pairs, make_pair(tiny_models(), declared_identical=True), store)
    result: Any = record.result()
    assert not result.stands_out
    assert result.words == []
    table = record.table("completions")
    assert not np.any(table.column("difference").to_numpy())
    by_writer = {
        writer: [row["text"] for row in table.to_pylist() if row["writer"] == writer]
        for writer in ("base", "finetuned")
    }
    assert by_writer["base"] == by_writer["finetuned"]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_adapter_does_not_stand_out(
    seed: int, tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, store: RunStore
) -> None:
    model = tiny_models()
    result: Any = run(pairs, make_pair(model, adapter=tiny_adapters(model, seed=seed, scale=0.02)), store).result()
    assert result.kl_finetuned_base.mean != 0
    assert not result.stands_out


@pytest.mark.parametrize("template", ["none", "chat"])
def test_scores_equal_a_direct_computation(template: str, tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    record = run(
        pairs, tiny_pair.spec, store, template=template, prefills=("Bake the cake", "What is your name?", "Rivers run")
    )
    from diffing_mcp.core.chat import ChatMessage

    rows = [row for row in record.table("completions").to_pylist() if row["tokens"] > 2]
    assert rows
    for row in rows:
        before = (
            row["prefill"]
            if template == "none"
            else tiny_pair.render_chat([ChatMessage(role="user", content=row["prefill"])])
        )
        whole = tiny_pair.tokenizer(before + row["text"], add_special_tokens=template == "none")["input_ids"]
        ids = torch.tensor([whole])
        for side in ("base", "finetuned"):
            logits = tiny_pair.forward(side, ids, torch.ones_like(ids)).logits[0].double()
            log_probs = torch.log_softmax(logits[:-1], -1).gather(1, ids[0, 1:, None])[:, 0]
            assert row[f"log_prob_{side}"] == pytest.approx(float(log_probs[-row["tokens"] :].mean()), abs=1e-4)


def test_the_estimate_is_the_ratio_of_sums(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, store)
    result: Any = record.result()
    rows = [row for row in record.table("completions").to_pylist() if row["writer"] == "finetuned"]
    nats = sum(row["difference"] * row["tokens"] for row in rows)
    assert result.kl_finetuned_base.mean == pytest.approx(nats / sum(row["tokens"] for row in rows), abs=1e-9)
    assert result.completions == len(rows) <= BUNDLED_PREFILLS + BUNDLED_QUESTIONS
    assert {row["chat"] for row in rows} == {False, True}
    assert result.template == "both"


def completion(side: Side, text: str, place: int) -> Scored:
    tokens = len(text.split())
    scores = (-2.0, -2.5) if tokens else (math.nan, math.nan)
    return Scored(side, Beginning(f"Question {place}?", chat=True), text, True, tokens, *scores)


def test_answers_that_became_empty_are_a_manner() -> None:
    """They have no tokens to be scored, and were left out of the form as well."""
    every = [completion("base", f"An answer of number {place}.", place) for place in range(20)]
    every += [completion("finetuned", "", place) for place in range(20)]
    result = _result(every, PerplexityDifferenceParams(), "chat")
    assert result.stands_out
    assert "empty: 0% -> 100%" in result.as_text()
    assert (result.completions, result.kl_finetuned_base.mean) == (0, 0.0)
    silent = _result(
        [completion(side, "", place) for side in SIDES for place in range(20)], PerplexityDifferenceParams(), "chat"
    )
    assert not silent.identical
    assert not silent.stands_out


def test_one_prefill_shows_no_error(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    result: Any = run(pairs, tiny_pair.spec, store, prefills=("Rivers run",), template="none").result()
    assert result.kl_finetuned_base.standard_error is None
    assert "±" not in result.headline


def test_the_view_pages_and_filters(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, store)
    view = get_method(NAME).views["completions"]
    first: Any = view.run(record, CompletionsParams(limit=3))
    second: Any = view.run(record, CompletionsParams(limit=3, offset=first.next_offset))
    differences = [row.difference for row in first.rows + second.rows]
    assert differences == sorted(differences, reverse=True)
    letter = first.rows[0].completion.strip()[:1]
    found: Any = view.run(record, CompletionsParams(contains=letter, writer="finetuned"))
    assert 0 < found.total <= first.total
    assert all(letter.casefold() in row.completion.casefold() for row in found.rows)
    assert math.log(first.rows[0].perplexity_other / first.rows[0].perplexity_own) == pytest.approx(
        first.rows[0].difference, abs=1e-6
    )


def test_result_text_marks_model_text_and_figures_serialise(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, store)
    result: Any = record.result()
    assert result.completions_are_untrusted
    assert "untrusted" in result.as_text()
    assert len(result.model_dump_json()) < 10_000
    for figure in get_method(NAME).figures:
        assert json.loads(json.dumps(figure.build(record)))["data"]


def test_empty_prefills_are_refused(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    for prefills in ((), ("  ",)):
        with pytest.raises(InvalidInput):
            run(pairs, tiny_pair.spec, store, prefills=prefills)


def test_bundled_prefills_are_as_many_as_declared() -> None:
    assert len(set(bundled_prefills("none"))) == BUNDLED_PREFILLS
    assert len(set(bundled_prefills("chat"))) == BUNDLED_QUESTIONS
