"""KL divergence against log-probabilities of plain models, text by text, in float64; statistics against scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests.methods.reference_pairs import References

READ = [("lora", "texts"), ("lora", "chats"), ("full", "texts"), ("full", "chats"), ("adapters", "texts")]


def divergences(references: References, pair: str, corpus: str) -> list[dict[str, np.ndarray]]:
    """By text: KL in both directions and JS at every compared position."""
    found = []
    for text in references.texts(pair, corpus):
        logits, _ = references.pair(pair).plain.read(text)
        p, q = logits["base"].log_softmax(-1), logits["finetuned"].log_softmax(-1)
        m = torch.logaddexp(p, q) - np.log(2)
        forward, backward = (q.exp() * (q - p)).sum(-1), (p.exp() * (p - q)).sum(-1)
        js = ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1)) / 2
        found.append({"kl_finetuned_base": forward.numpy(), "kl_base_finetuned": backward.numpy(), "js": js.numpy()})
    return found


@pytest.mark.parametrize(("pair", "corpus"), READ)
def test_every_position_mean_and_error(pair: str, corpus: str, references: References) -> None:
    record = references.on(pair, corpus, "kl")
    result: Any = record.result()
    expected = divergences(references, pair, corpus)
    table = record.table("tokens").to_pydict()
    texts = references.texts(pair, corpus)
    assert table["sample"] == [sample for sample, text in enumerate(texts) for _ in text.ids[text.start :]]
    assert table["position"] == [place for text in texts for place in range(len(text.ids) - text.start)]
    decode = references.pair(pair).plain.tokenizer.decode
    assert table["token"] == [decode([token]) for text in texts for token in text.ids[text.start :]]
    for name in ("kl_finetuned_base", "kl_base_finetuned", "js"):
        values = np.concatenate([each[name] for each in expected])
        np.testing.assert_allclose(table[name], values, rtol=1e-4, atol=2e-6)
        spread = getattr(result, name)
        found = (spread.mean, spread.median, spread.p90, spread.p99, spread.max)
        np.testing.assert_allclose(
            found, (values.mean(), *np.quantile(values, [0.5, 0.9, 0.99]), values.max()), rtol=1e-4
        )
        # Ratio estimator over texts: the standard error of the sums' deviations from what their lengths explain.
        deviations = [each[name].sum() - values.mean() * len(each[name]) for each in expected]
        error = np.sqrt(len(deviations)) * np.std(deviations, ddof=1) / len(values)
        assert spread.standard_error == pytest.approx(error, rel=1e-3)
    means = [each["kl_finetuned_base"].mean() for each in expected]
    assert (result.per_text.mean, result.per_text.standard_error) == pytest.approx(
        (np.mean(means), stats.sem(means)), rel=1e-4
    )
    first = [
        np.mean([each["kl_finetuned_base"][place] for each in expected if len(each["js"]) > place])
        for place in range(8)
    ]
    np.testing.assert_allclose(result.first_positions, first, rtol=1e-4)
    assert (result.tokens, result.samples, result.dropped) == (len(values), len(expected), int(corpus == "texts"))


@pytest.mark.parametrize(("pair", "corpus"), READ)
def test_first_rows_and_moved_tokens(pair: str, corpus: str, references: References) -> None:
    result: Any = references.on(pair, corpus, "kl").result()
    texts, plain = references.texts(pair, corpus), references.pair(pair).plain
    expected = divergences(references, pair, corpus)
    highest = sorted(
        (
            (value, sample, place)
            for sample, each in enumerate(expected)
            for place, value in enumerate(each["kl_finetuned_base"])
        ),
        reverse=True,
    )
    assert [(row.sample, row.position) for row in result.top_tokens] == [place[1:] for place in highest[:6]]
    row, text = result.top_tokens[0], texts[highest[0][1]]
    index = text.start + row.position
    assert row.next_token == (plain.tokenizer.decode([text.ids[index + 1]]) if index + 1 < len(text.ids) else None)
    probabilities = {side: plain.side(side).log_probs(text.ids).exp() for side in ("base", "finetuned")}
    change = probabilities["finetuned"][index] - probabilities["base"][index]
    for moves, order in ((row.rose, change.argsort(descending=True)), (row.fell, change.argsort())):
        assert [move.token for move in moves] == [plain.tokenizer.decode([int(token)]) for token in order[:5]]
        np.testing.assert_allclose(
            [move.finetuned for move in moves], probabilities["finetuned"][index][order[:5]], rtol=1e-4
        )
    means = [each["kl_finetuned_base"].mean() for each in expected]
    assert [row.sample for row in result.top_texts] == np.argsort(means)[::-1][: len(result.top_texts)].tolist()
    everywhere = {
        side: torch.cat([plain.side(side).log_probs(each.ids)[each.start :].exp() for each in texts]).mean(0)
        for side in ("base", "finetuned")
    }
    change = everywhere["finetuned"] - everywhere["base"]
    for moves, order in ((result.rose, change.argsort(descending=True)), (result.fell, change.argsort())):
        np.testing.assert_allclose(
            [move.finetuned for move in moves], everywhere["finetuned"][order[: len(moves)]], rtol=1e-4
        )
        np.testing.assert_allclose([move.base for move in moves], everywhere["base"][order[: len(moves)]], rtol=1e-4)
