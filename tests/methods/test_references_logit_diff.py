"""Diff mining, against logit differences of plain models, text by text, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffing_mcp.methods.logit_diff_topk_occurring.views import TokenParams, TokensParams
from diffing_mcp.methods.registry import get_method
from tests.methods.reference_pairs import References

NAME = "logit_diff_topk_occurring"
TOP_K = 12
READ = [("lora", "texts"), ("lora", "chats"), ("full", "texts"), ("full", "chats"), ("adapters", "chats")]


@dataclass(frozen=True)
class Read:
    """Everything at the P compared positions: differences and probabilities [P, V], and the number of the text [P]."""

    difference: Tensor
    base: Tensor
    finetuned: Tensor
    sample: np.ndarray
    position: np.ndarray


def read(references: References, pair: str, corpus: str) -> Read:
    texts = references.texts(pair, corpus)
    logits = [references.pair(pair).plain.read(text)[0] for text in texts]
    base, finetuned = (torch.cat([each[side] for each in logits]) for side in ("base", "finetuned"))
    lengths = [len(text.ids) - text.start for text in texts]
    sample, position = (
        np.repeat(np.arange(len(texts)), lengths),
        np.concatenate([np.arange(length) for length in lengths]),
    )
    return Read(finetuned - base, base.softmax(-1), finetuned.softmax(-1), sample, position)


@pytest.mark.parametrize(("pair", "corpus"), READ)
def test_occurrence_share_and_mean_of_every_token(pair: str, corpus: str, references: References) -> None:
    record = references.on(pair, corpus, NAME, top_k=TOP_K, topic_entries="none")
    found = read(references, pair, corpus)
    positions, vocabulary = found.difference.shape
    for name, sign in (("risen", 1), ("fallen", -1)):
        values, ids = (sign * found.difference).topk(TOP_K)
        counts = np.bincount(ids[values > 0].numpy(), minlength=vocabulary)
        np.testing.assert_array_equal(record.array(name), counts)
    np.testing.assert_allclose(record.array("share_positive"), (found.difference > 0).double().mean(0), atol=1e-12)
    np.testing.assert_allclose(record.array("mean_difference"), found.difference.mean(0), rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(
        record.array("expected_base").reshape(-1, vocabulary).sum(0), found.base.sum(0), rtol=1e-4
    )
    np.testing.assert_allclose(
        record.array("expected_finetuned").reshape(-1, vocabulary).sum(0), found.finetuned.sum(0), rtol=1e-4
    )
    result: Any = record.result()
    assert result.positions == positions
    for row in result.position_profile:
        chosen = (found.position >= row.first) & (found.position <= row.last)
        assert (row.positions, row.mean_size) == (
            int(chosen.sum()),
            pytest.approx(float(found.difference[chosen].abs().mean()), rel=5e-4),
        )


@pytest.mark.parametrize(("pair", "corpus"), READ[:2])
def test_first_rows_of_the_lists(pair: str, corpus: str, references: References) -> None:
    record = references.on(pair, corpus, NAME, top_k=TOP_K, topic_entries="none")
    result: Any = record.result()
    found = read(references, pair, corpus)
    tokenizer = references.pair(pair).plain.tokenizer
    count = len(found.difference)
    texts = [tokenizer.decode([token]) for token in range(found.difference.shape[1])]
    special = np.isin(np.arange(len(texts)), tokenizer.all_special_ids)
    # Left out besides: what both models expect less often than a quarter of what equal chances would give.
    ordinary = ~special & (torch.maximum(found.base.mean(0), found.finetuned.mean(0)).numpy() >= 0.25 / len(texts))
    for rows, sign in ((result.risen, 1), (result.fallen, -1)):
        values, ids = (sign * found.difference).topk(TOP_K)
        occurrence = 100 * np.bincount(ids[values > 0].numpy(), minlength=len(texts)) / count
        ordinary = np.array([token not in tokenizer.all_special_ids for token in range(len(texts))])
        shown = sorted(occurrence[ordinary], reverse=True)[: len(rows)]
        assert [row.occurrence for row in rows] == pytest.approx(shown, abs=5e-4)
        for row in rows:
            matching = [
                token
                for token, text in enumerate(texts)
                if text == row.token and abs(occurrence[token] - row.occurrence) < 1e-3
            ]
            assert any(
                float(found.difference[:, token].mean()) == pytest.approx(row.mean_difference, abs=1e-4)
                for token in matching
            )


def test_log_odds_errors_and_z(references: References) -> None:
    """Shrunken log odds, their jackknife over ten groups of texts, and Monroe et al.'s z (equations 16, 20 and 22)."""
    record = references.on("lora", "texts", NAME, top_k=TOP_K, topic_entries="none")
    found = read(references, "lora", "texts")
    base, finetuned, positions = found.base.sum(0).numpy(), found.finetuned.sum(0).numpy(), len(found.sample)
    tokenizer = references.lora.plain.tokenizer
    prior = 0.1 * (base + finetuned) / 2 + 0.01 * positions / 1000
    sides = [np.log(counts + prior) - np.log(positions + prior.sum() - counts - prior) for counts in (base, finetuned)]
    z = (sides[1] - sides[0]) / np.sqrt(1 / (base + prior) + 1 / (finetuned + prior))
    smooth = 0.01 / 1000
    view: Any = get_method(NAME).views["tokens"].run(record, TokensParams(limit=100, ordering="log_odds_z"))
    assert len(view.rows) == 100
    texts = [tokenizer.decode([token]) for token in range(len(base))]
    for row in view.rows:
        if texts.count(row.token) != 1:  # pieces of characters have one text in common
            continue
        token = texts.index(row.token)
        assert row.log_odds_z == pytest.approx(z[token], rel=1e-3, abs=1e-3)
        assert row.log_odds == pytest.approx(
            np.log((finetuned[token] + smooth * positions) / (base[token] + smooth * positions)), abs=1e-3
        )
    assert [row.log_odds_z for row in view.rows] == sorted([row.log_odds_z for row in view.rows], reverse=True)
    word: Any = get_method(NAME).views["token"].run(record, TokenParams(text=" the"))
    variants = [token for token, text in enumerate(texts) if text.strip().lower() == "the"]
    sums = [
        np.array([side[found.sample % 10 == fold][:, variants].sum() for fold in range(10)])
        for side in (found.base, found.finetuned)
    ]
    rows = np.array([(found.sample % 10 == fold).sum() for fold in range(10)])
    left_out = np.log(
        (sums[1].sum() - sums[1] + smooth * (positions - rows))
        / (sums[0].sum() - sums[0] + smooth * (positions - rows))
    )
    assert word.error == pytest.approx(np.sqrt(9 / 10 * ((left_out - left_out.mean()) ** 2).sum()), rel=1e-3)


def test_logit_lens_of_a_layer(references: References) -> None:
    """The same statistics of each side's own final norm and unembedding on its middle layer; Gemma's are
    soft-capped.
    """
    plain = references.full.plain
    record = references.on(
        "full", "texts", NAME, top_k=TOP_K, topic_entries="none", extraction="logit_lens", extraction_layer=1
    )
    streams = [plain.read(text)[1] for text in references.texts("full", "texts")]
    read_off = [plain.side(side).lens(torch.cat([each[side][1] for each in streams])) for side in ("base", "finetuned")]
    np.testing.assert_allclose(
        record.array("mean_difference"), (read_off[1] - read_off[0]).mean(0), rtol=1e-4, atol=5e-6
    )


def test_merged_words_count_once_a_position(references: References) -> None:
    record = references.on("lora", "texts", NAME, top_k=TOP_K, topic_entries="none", normalise=True)
    found = read(references, "lora", "texts")
    tokenizer = references.lora.plain.tokenizer
    texts = record.table("entries")["text"].to_pylist()
    for word in ("the", "in", "it", "a", "e"):
        variants = [
            token for token in range(found.difference.shape[1]) if tokenizer.decode([token]).strip().lower() == word
        ]
        assert len(variants) > (word in ("a", "e"))
        for name, sign in (("risen", 1), ("fallen", -1)):
            values, ids = (sign * found.difference).topk(TOP_K)
            held = (torch.isin(ids, torch.tensor(variants)) & (values > 0)).any(1)
            assert record.array(name)[texts.index(word)] == int(held.sum())
        mean = float(found.difference[:, variants].mean())
        assert record.array("mean_difference")[texts.index(word)] == pytest.approx(mean, rel=1e-4, abs=2e-6)
        assert record.array("entry_expected_base")[texts.index(word)] == pytest.approx(
            float(found.base[:, variants].sum()), rel=1e-4
        )
