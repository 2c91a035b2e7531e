"""Continuation mining against planted words, nulls, and direct computations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffing_mcp.methods.continuation_mining.measure import distinctive_ngrams, group_phrases, judge
from diffing_mcp.methods.continuation_mining.method import ContinuationsParams, NgramsParams
from diffing_mcp.methods.continuation_mining.schema import NgramRow
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from tests.methods.conftest import write_random_texts

NAME = "continuation_mining"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_random_texts(tmp_path, 30, seed=0)


def run(pairs: Any, spec: Any, corpus: Path, **params: Any) -> RunRecord:
    arguments = {"corpus": str(corpus), "max_tokens": 12, "places": 20, "new_tokens": 6, **params}
    return run_methods(pairs, spec, [(NAME, arguments)], RunStore(corpus.parent / "runs"))[0]


def test_planted_words_are_continued_with(planted_words: Any, make_pair: Any, pairs: Any, corpus: Path) -> None:
    base, finetuned, planted = planted_words(60.0, count=3)
    record = run(pairs, make_pair(base, finetuned=finetuned), corpus)
    result: Any = record.result()
    assert result.stands_out
    assert result.strong_ngrams
    assert all(set(row.ngram.split()) <= set(planted) for row in result.ngrams if row.strong)
    assert {word.word for word in result.evidence_words()} <= set(planted)
    assert result.headline in result.as_text()
    assert len(result.as_text()) < 8000
    views = get_method(NAME).views
    page: Any = views["continuations"].run(record, ContinuationsParams(limit=8))
    assert (len(page.rows), page.total, page.next_offset) == (8, 20, 8)
    assert any(word in page.rows[0].finetuned for word in planted)
    phrases: Any = views["ngrams"].run(record, NgramsParams(contains=planted[0][:3]))
    assert all(planted[0][:3] in row.ngram for row in phrases.rows)
    for figure in get_method(NAME).figures:
        assert json.loads(json.dumps(figure.build(record)))["data"]


def test_overlapping_phrases_are_one_group_with_its_continuations(
    planted_words: Any, make_pair: Any, pairs: Any, corpus: Path
) -> None:
    def row(ngram: str, surprise: float) -> NgramRow:
        return NgramRow(
            ngram=ngram, words=len(ngram.split()), finetuned=3, base=0, texts=3, surprise=surprise, strong=surprise >= 3
        )

    rows = [
        row("roman concrete", 6.0),
        row("river", 4.0),
        row("concrete", 3.5),
        row("the roman", 3.0),
        row("lime mortar", 2.0),
        row("mortar and river", 1.5),
    ]
    finetuned = ["of Roman  concrete, made", "Concrete lasts", "the Roman way", "the river runs", "nothing here"]
    groups = group_phrases(rows, finetuned, ["a river", "plain text"])
    assert [group.phrase for group in groups] == ["roman concrete", "river"]
    assert groups[0].phrases == ["roman concrete", "concrete", "the roman"]
    assert (groups[0].finetuned, groups[0].base, groups[0].strong) == (3, 0, True)
    assert groups[0].examples == ["of Roman concrete, made", "Concrete lasts", "the Roman way"]
    assert groups[1].phrases == ["river", "lime mortar", "mortar and river"]  # joined by the last one
    assert (groups[1].finetuned, groups[1].base) == (1, 1)
    assert group_phrases(rows, finetuned, [], examples=1)[0].examples == ["of Roman concrete, made"]
    base, tuned, planted = planted_words(60.0, count=3)
    result: Any = run(pairs, make_pair(base, finetuned=tuned), corpus).result()
    words = [
        {word for phrase in group.phrases for word in phrase.split() if word in planted} for group in result.groups
    ]
    assert words
    assert all(not first & second for index, first in enumerate(words) for second in words[:index])
    assert all(
        any(word in text for word in found)
        for found, group in zip(words, result.groups, strict=True)
        for text in group.examples
    )
    assert result.groups[0].as_text() in result.as_text()


def test_an_identical_pair_has_no_places(identical_pair: Any, pairs: Any, corpus: Path) -> None:
    record = run(pairs, identical_pair.spec, corpus)
    result: Any = record.result()
    assert result.identical
    assert not result.stands_out
    assert (result.places, result.rows, result.ngrams, result.mean_variation) == (0, [], [], 0)
    assert not np.any(record.array("variation"))


def test_a_random_adapter_does_not_stand_out(tiny_pair: Any, pairs: Any, corpus: Path) -> None:
    assert not run(pairs, tiny_pair.spec, corpus).result().stands_out


def test_places_are_those_of_largest_variation_one_a_text(tiny_pair: Any, pairs: Any, corpus: Path) -> None:
    record = run(pairs, tiny_pair.spec, corpus, earliest=2)
    expected, best = [], []
    for line in corpus.read_text().splitlines():
        ids = torch.tensor([tiny_pair.tokenizer(json.loads(line)["text"])["input_ids"][:12]])
        base, finetuned = (
            tiny_pair.forward(side, ids, torch.ones_like(ids)).logits[0].softmax(-1) for side in ("base", "finetuned")
        )
        rows = 0.5 * (finetuned - base).abs().sum(-1)
        expected.append(rows.numpy())
        best.append(float(rows[2:].max()))
    # Samples are drawn in another order than that of the file.
    np.testing.assert_allclose(np.sort(record.array("variation")), np.sort(np.concatenate(expected)), atol=1e-4)
    page: Any = get_method(NAME).views["continuations"].run(record, ContinuationsParams(limit=100))
    np.testing.assert_allclose([row.variation for row in page.rows], sorted(best, reverse=True)[:20], atol=2e-4)


def test_phrases_that_many_texts_share_are_strong() -> None:
    finetuned = [(text, "then bake the cake slowly") for text in range(15)] + [
        (text, "and it rained") for text in range(15, 20)
    ]
    base = [(text, "and it rained") for text in range(20)]
    rows = distinctive_ngrams(finetuned, base, 3)
    strong = [row.ngram for row in rows if row.strong]
    assert "bake the cake" in strong
    assert "cake" not in strong  # a longer phrase with the same counts says it
    assert all((row.finetuned, row.base) == (15, 0) for row in rows if row.strong)
    assert judge(rows, False)[0]
    assert distinctive_ngrams(base, finetuned, 3)[0].base == 5
    assert not distinctive_ngrams(base, base, 3)


def test_repetition_in_one_text_and_function_words_are_not_strong() -> None:
    once = [(0, "chocolate cake") for _ in range(12)] + [(text, "of the") for text in range(12, 24)]
    rows = distinctive_ngrams(once, [(text, "x") for text in range(24)], 2)
    assert rows
    assert not any(row.strong for row in rows)
    assert not judge(rows, False)[0]
