"""Logit-difference mining against planted differences, nulls, and a direct computation over the whole vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.methods.logit_diff_topk_occurring.evidence import rises
from diffing_mcp.methods.logit_diff_topk_occurring.views import TokenParams, TokensParams
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.methods.texts.words import build_vocabulary, is_content_word, normalise, vocabulary
from tests.methods.conftest import write_random_texts

NAME = "logit_diff_topk_occurring"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_texts(tmp_path_factory.mktemp("corpus"), 60, seed=0)


def run(pairs: Any, spec: Any, corpus: Path, store: RunStore, **params: Any) -> RunRecord:
    arguments = {"corpus": str(corpus), "max_samples": 60, "max_tokens": 16, "top_k": 10, **params}
    return run_methods(pairs, spec, [(NAME, arguments)], store)[0]


@pytest.fixture(scope="module")
def tokens(tiny_tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return vocabulary(AutoTokenizer.from_pretrained(tiny_tokenizer_folder), 320)


def test_a_token_whose_logit_is_raised_comes_first(
    planted_words: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    base, finetuned, planted = planted_words(6.0, count=1)
    result: Any = run(pairs, make_pair(base, finetuned=finetuned), corpus, store).result()
    # No other weight was touched, so every other logit is exactly the same and never counts as risen.
    assert [row.token for row in result.risen] == [f" {planted[0]}"]
    assert result.words[0].word == planted[0]
    assert result.words[0].log_odds > 0
    assert result.stands_out  # one word that is far more often expected is a finding


def test_one_word_that_rises_a_little_is_none(
    planted_words: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    base, finetuned, planted = planted_words(2.0, count=1)
    result: Any = run(pairs, make_pair(base, finetuned=finetuned), corpus, store).result()
    assert [row.word for row in result.words if row.strong] in ([], planted)
    assert 0 < result.words[0].log_odds < 3
    assert not result.stands_out


def test_many_raised_words_stand_out(
    planted_words: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    base, finetuned, planted = planted_words(6.0)
    assert len(planted) >= 10
    result: Any = run(pairs, make_pair(base, finetuned=finetuned), corpus, store).result()
    assert result.stands_out
    assert result.strong_words >= result.needed_strong_words
    assert {row.word for row in result.words if row.strong} <= set(planted)
    assert {row.word for row in result.words[:8]} <= set(planted)


def test_an_identical_pair_is_exactly_zero(
    tiny_models: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    record = run(pairs, make_pair(tiny_models(), declared_identical=True), corpus, store)
    result: Any = record.result()
    assert not result.stands_out
    assert result.risen == result.fallen == result.words == []
    arrays = record.arrays()
    for name in ("risen", "fallen", "share_positive", "mean_difference"):
        assert not np.any(arrays[name]), name
    np.testing.assert_array_equal(arrays["expected_base"], arrays["expected_finetuned"])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_random_adapter_does_not_stand_out(
    seed: int, tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    model = tiny_models()
    result: Any = run(
        pairs, make_pair(model, adapter=tiny_adapters(model, seed=seed, scale=0.01)), corpus, store
    ).result()
    assert result.risen, "the adapter changes logits"
    assert not result.stands_out


@pytest.mark.parametrize("normalised", [False, True])
def test_statistics_equal_a_direct_computation(
    normalised: bool, tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore, tokens: Any
) -> None:
    record = run(pairs, tiny_pair.spec, corpus, store, normalise=normalised)
    ids = [tiny_pair.tokenizer(json.loads(line)["text"])["input_ids"][:16] for line in corpus.read_text().splitlines()]
    differences, probabilities = [], []
    for row in ids:
        tensor = torch.tensor([row])
        base, finetuned = (
            tiny_pair.forward(side, tensor, torch.ones_like(tensor)).logits[0].float() for side in ("base", "finetuned")
        )
        differences.append((finetuned - base).detach().numpy())
        probabilities.append(torch.softmax(finetuned, -1).detach().double().numpy())
    difference = np.concatenate(differences)
    order = np.argsort(-difference, axis=1)[:, :10]
    mean, share = difference.mean(0, dtype=np.float64), (difference > 0).mean(0)
    if normalised:
        expected = np.zeros(len(tokens.words))
        for row in order:
            expected[np.unique(tokens.word_index[row])] += 1
        variants = np.bincount(tokens.word_index)
        mean, share = tokens.merge(mean) / variants, tokens.merge(share) / variants
    else:
        expected = np.bincount(order.ravel(), minlength=320).astype(float)
    arrays = record.arrays()
    assert (
        np.abs(arrays["risen"] - expected).sum() <= 4
    )  # batches of another shape may swap a near-tie at the K-th place
    np.testing.assert_allclose(arrays["mean_difference"], mean, atol=1e-4)
    np.testing.assert_allclose(arrays["share_positive"], share, atol=2 / len(difference))
    np.testing.assert_allclose(
        arrays["expected_finetuned"].sum(0), np.concatenate(probabilities).sum(0), rtol=1e-4, atol=1e-5
    )


def test_views_page_filter_and_rank(tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, corpus, store)
    views = get_method(NAME).views
    everything: Any = views["tokens"].run(record, TokensParams(limit=200, include_special=True))
    first: Any = views["tokens"].run(record, TokensParams(limit=5, include_special=True))
    second: Any = views["tokens"].run(record, TokensParams(limit=5, offset=first.next_offset, include_special=True))
    assert [row.rank for row in first.rows + second.rows] == list(range(10))
    occurrences = [row.occurrence for row in everything.rows]
    assert occurrences == sorted(occurrences, reverse=True)
    filtered: Any = views["tokens"].run(record, TokensParams(contains="A", limit=200))
    assert filtered.rows
    assert all("a" in row.token.casefold() for row in filtered.rows)
    assert not any(row.special for row in filtered.rows)
    fallen: Any = views["tokens"].run(record, TokensParams(ordering="mean_difference", sign="fallen"))
    means = [row.mean_difference for row in fallen.rows]
    assert means == sorted(means)
    assert all(mean < 0 for mean in means)
    one: Any = views["token"].run(record, TokenParams(text="THE "))
    assert {normalise(row.token) for row in one.variants} == {"the"}
    assert one.log_odds is not None
    nothing: Any = views["token"].run(record, TokenParams(text="zxqv"))
    assert nothing.variants == []
    assert nothing.log_odds is None


def test_result_text_and_figures_are_small_and_serialisable(
    tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    record = run(pairs, tiny_pair.spec, corpus, store)
    result = record.result()
    assert result.headline in result.as_text()
    assert len(result.as_text()) < len(result.model_dump_json()) < 8000
    for figure in get_method(NAME).figures:
        assert json.loads(json.dumps(figure.build(record)))["data"]


@given(st.text(max_size=30))
def test_normalising_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (" cake", True),
        (" the", False),
        ("<reponame>", False),
        (" getAttr", False),
        (" a1", False),
        (",", False),
        (" Oven", True),
    ],
)
def test_content_words(text: str, content: bool) -> None:
    assert is_content_word(text) is content


def test_vocabulary_merges_variants_and_keeps_marks_apart() -> None:
    built = build_vocabulary([" Cake", "cake", " cake,", ",", ".", "<x>"], np.array([False] * 5 + [True]))
    assert len(set(built.word_index[:3])) == 1
    assert len(set(built.word_index)) == 4
    np.testing.assert_array_equal(
        built.merge(np.array([1.0, 2, 3, 4, 5, 6]))[built.word_index[[0, 3, 4, 5]]], [6, 4, 5, 6]
    )


@given(st.integers(0, 2**31), st.floats(0.001, 1.0))
def test_log_odds_are_antisymmetric_shrunken_and_zero_when_equal(seed: int, prior: float) -> None:
    random = np.random.default_rng(seed)
    base, finetuned = random.gamma(0.3, size=(10, 20)), random.gamma(0.3, size=(10, 20))
    rows = np.full(10, 100)
    there, back = rises(base, finetuned, rows, prior), rises(finetuned, base, rows, prior)
    np.testing.assert_allclose(there.log_odds, -back.log_odds, atol=1e-12)
    np.testing.assert_allclose(there.error, back.error, atol=1e-9)
    plain = np.log(finetuned.sum(0) / base.sum(0))
    assert np.all(np.abs(there.log_odds) <= np.abs(plain) + 1e-12)
    assert not np.any(rises(base, base, rows, prior).log_odds)
