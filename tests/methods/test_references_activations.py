"""Activation differences, their lens and their components, against streams of plain models in float64, scikit-learn and
scipy.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.decomposition import PCA
from torch import Tensor

from diffing_mcp.methods.registry import get_method
from tests.methods.plain_models import PlainText
from tests.methods.reference_pairs import References

READ = [("lora", "texts"), ("lora", "chats"), ("full", "texts"), ("full", "chats"), ("adapters", "texts")]
LAYERS = (1, 2)


class Streams(NamedTuple):
    """A text, and both models' streams [T, d_model] at its tokens."""

    text: PlainText
    base: Tensor
    finetuned: Tensor


def streams(references: References, pair: str, corpus: str, layer: int) -> list[Streams]:
    """Of every text, the compared tokens."""
    found = []
    for text in references.texts(pair, corpus):
        _, hidden = references.pair(pair).plain.read(text)
        found.append(Streams(text, hidden["base"][layer], hidden["finetuned"][layer]))
    return found


def at(read: list[Streams], label: str) -> tuple[Tensor, Tensor, list[int]]:
    """Rows of both models at a position (in chats: counted from the answer), or at all later ones, and the text that
    each is of.
    """
    rows: list[tuple[Tensor, Tensor, int]] = []
    for sample, (text, base, finetuned) in enumerate(read):
        zero = 0 if text.answer is None else text.answer - text.start
        chosen = range(zero + 5, len(base)) if label == "all" else [zero + int(label)]
        rows += [(base[place], finetuned[place], sample) for place in chosen if place < len(base)]
    base, finetuned = (torch.stack(several) for several in ([row[0] for row in rows], [row[1] for row in rows]))
    return base, finetuned, [row[2] for row in rows]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("pair", "corpus"), READ)
def test_mean_differences_by_position(pair: str, corpus: str, layer: int, references: References) -> None:
    record = references.on(pair, corpus, "activation_difference_lens", layers=LAYERS)
    result: Any = record.result()
    read = streams(references, pair, corpus, layer)
    rows = [row for row in result.rows if row.layer == layer]
    assert [row.position for row in rows] == [str(place) for place in range(-3 if corpus == "chats" else 0, 5)] + [
        "all"
    ]
    for row in rows:
        base, finetuned, samples = at(read, row.position)
        difference = finetuned - base
        mean = difference.mean(0)
        vector = get_method("activation_difference_lens").vector(record, row.vector)
        np.testing.assert_allclose(vector.values, mean, rtol=1e-4, atol=1e-5)
        assert (row.count, vector.layer) == (len(base), layer)
        assert row.difference_norm == pytest.approx(float(mean.norm()), rel=1e-4)
        assert row.relative_norm == pytest.approx(float(mean.norm() / finetuned.norm(dim=1).mean()), rel=1e-4)
        assert (row.finetuned_norm, row.base_norm) == pytest.approx(
            (float(finetuned.norm(dim=1).mean()), float(base.norm(dim=1).mean())), rel=1e-4
        )
        spread = float(np.sqrt(stats.tvar(difference, axis=0).sum())) if len(base) > 1 else 0.0
        assert row.spread == pytest.approx(spread, rel=1e-4)
        if spread:
            assert row.signal_to_noise == pytest.approx(float(mean.norm()) / (spread / len(base) ** 0.5), rel=1e-4)
        odd = torch.tensor(samples) % 2 == 1
        if odd.any() and not odd.all():
            assert row.stability == pytest.approx(
                float(torch.cosine_similarity(difference[odd].sum(0), difference[~odd].sum(0), dim=0)), rel=1e-3
            )


@pytest.mark.parametrize("pair", ["adapters", "full"])
def test_the_lens_of_a_mean_difference(pair: str, references: References) -> None:
    """Probabilities are exactly those of the finetuned model's own final norm and unembedding on the mean, in the
    length of typical activations; z is compared with thousands of random directions of the reference's own."""
    record = references.on(pair, "texts", "activation_difference_lens", layers=LAYERS, random_directions=4096)
    plain = references.pair(pair).plain
    read = streams(references, pair, "texts", 1)
    length = at(read, "all")[1].norm(dim=1).mean()
    base, finetuned, _ = at(read, "2")
    random = torch.randn(20_000, base.shape[1], generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    null = plain.finetuned.lens(random / random.norm(dim=1, keepdim=True) * length)
    table = [row for row in record.table("lens").to_pylist() if (row["layer"], row["position"]) == (1, "2")]
    for source, vector in (
        ("difference", (finetuned - base).mean(0)),
        ("base", base.mean(0)),
        ("finetuned", finetuned.mean(0)),
    ):
        for name, sign in (("promoted", 1), ("suppressed", -1)):
            logits = plain.finetuned.lens(sign * vector / vector.norm() * length)
            probability = logits.softmax(-1)
            rows = [
                row for row in table if (row["source"], row["sign"], row["ranked_by"]) == (source, name, "probability")
            ]
            order = probability.argsort(descending=True)[: len(rows)]
            assert [row["token_id"] for row in rows] == order.tolist()
            np.testing.assert_allclose([row["probability"] for row in rows], probability[order], rtol=1e-4)
            z = (logits - null.mean(0)) / null.std(0)
            z = (z - z.mean()) / z.std().clamp_min(1.0)
            np.testing.assert_allclose([row["z"] for row in rows], z[order], rtol=0.04, atol=0.06)


@pytest.mark.parametrize(("pair", "corpus"), READ)
def test_scores_of_every_token(pair: str, corpus: str, references: References) -> None:
    record = references.on(pair, corpus, "activation_analysis", layers=(1,))
    summaries = record.table("summaries").to_pylist()
    read = streams(references, pair, corpus, 1)
    base, finetuned = torch.cat([each.base for each in read]), torch.cat([each.finetuned for each in read])
    norms = {"norm_base": base.norm(dim=1), "norm_finetuned": finetuned.norm(dim=1)}
    difference = (finetuned - base).norm(dim=1)
    scores = {
        "norm_difference": difference,
        "relative_difference": difference / (norms["norm_base"] + norms["norm_finetuned"]),
        "cosine_distance": 1 - torch.cosine_similarity(base, finetuned, dim=1),
        **norms,
    }
    table = record.table("tokens")
    decode = references.pair(pair).plain.tokenizer.decode
    assert table["token"].to_pylist() == [decode([token]) for text, _, _ in read for token in text.ids[text.start :]]
    assert table["position"].to_pylist() == [place for _, rows, _ in read for place in range(len(rows))]
    sink = np.zeros(len(base), dtype=bool)
    for values in norms.values():
        sink |= values.numpy() > 5 * np.median(values)
    for name, values in scores.items():
        np.testing.assert_allclose(table[f"{name}@1"].to_numpy(), values, rtol=1e-4, atol=1e-6)
        kept = values.numpy()[~sink]
        row = next(row for row in summaries if row["score"] == name)
        low, high = np.quantile(kept, [0.05, 0.95])
        expected = {
            "median": np.median(kept),
            "spread": stats.median_abs_deviation(kept, scale="normal"),
            "mean": kept.mean(),
            "trimmed_mean": stats.tmean(kept, (low, high)),
            "p5": low,
            "p95": high,
            "max": kept.max(),
        }
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize(("pair", "corpus"), READ)
def test_mean_differences_at_positions_and_special_tokens(pair: str, corpus: str, references: References) -> None:
    """Special tokens have a mean over all of the text that was read, prompts and BOS included."""
    record = references.on(pair, corpus, "activation_analysis", layers=(1,))
    result: Any = record.result()
    plain = references.pair(pair).plain
    read = streams(references, pair, corpus, 1)
    whole = [
        Streams(each.text, *(plain.side(side).read(each.text.ids)[1][1] for side in ("base", "finetuned")))
        for each in read
    ]
    special = {plain.tokenizer.convert_ids_to_tokens(token): token for token in plain.tokenizer.all_special_ids}
    labels = [row.label for row in result.labels]
    assert [label for label in labels if label not in special] == [
        str(place) for place in range(-3 if corpus == "chats" else 0, 5)
    ] + ["all"]
    assert {label for label in labels if label in special} == {
        label for label, token in special.items() if any(token in text.ids for text, _, _ in whole)
    }
    for row in result.labels:
        if row.label in special:
            places = [
                (one[place], two[place])
                for text, one, two in whole
                for place, token in enumerate(text.ids)
                if token == special[row.label]
            ]
            base, finetuned = (torch.stack(several) for several in zip(*places, strict=True))
        else:
            base, finetuned, _ = at(read, row.label)
        difference = finetuned - base
        np.testing.assert_allclose(
            get_method("activation_analysis").vector(record, row.vector).values,
            difference.mean(0),
            rtol=1e-4,
            atol=1e-5,
        )
        single = float(difference.norm(dim=1).mean())
        found = (row.mean_difference_norm, row.norm_difference, row.coherence, row.relative_norm)
        mean = float(difference.mean(0).norm())
        assert found == pytest.approx(
            (mean, single, mean / single, mean / float(finetuned.norm(dim=1).mean())), rel=1e-4
        )
        assert row.count == len(base)


@pytest.mark.parametrize("of", ["difference", "base", "finetuned"])
@pytest.mark.parametrize(("pair", "corpus"), READ)
def test_components(pair: str, corpus: str, of: str, references: References) -> None:
    record = references.on(pair, corpus, "pca", of=of, layers=(1,), components=4)
    result: Any = record.result()
    read = streams(references, pair, corpus, 1)
    skipped = 0 if corpus == "chats" else 1  # of a text the first token, which may be an attention sink
    base, finetuned = (
        torch.cat([rows[skipped:] for rows in side]).numpy()
        for side in ([each.base for each in read], [each.finetuned for each in read])
    )
    norms = np.maximum(np.linalg.norm(base, axis=1), np.linalg.norm(finetuned, axis=1))
    assert norms.max() < 10 * np.median(norms)  # no outliers, which would be left out
    rows = {"difference": finetuned - base, "base": base, "finetuned": finetuned}[of]
    oracle = PCA(n_components=4, svd_solver="full").fit(rows)
    assert [row.explained for row in result.rows] == pytest.approx(oracle.explained_variance_ratio_, abs=2e-5)
    for ours, theirs in zip(record.array("components_1"), oracle.components_, strict=True):
        assert abs(ours @ theirs) == pytest.approx(1, abs=1e-5)
        assert ours @ rows.mean(0) >= 0
    projected = (rows - rows.mean(0)) @ record.array("components_1")[0]
    first = result.rows[0]
    ends = (first.positive[0].projection, first.negative[0].projection)
    assert ends == pytest.approx((projected.max(), projected.min()), rel=1e-4)
    deviation = oracle.singular_values_[0] / len(rows) ** 0.5
    assert first.mean_projection == pytest.approx(record.array("components_1")[0] @ rows.mean(0) / deviation, abs=1e-3)
    if of == "difference":
        both = np.cov(base.T, bias=True) + np.cov(finetuned.T, bias=True)
        assert [row.null_explained for row in result.rows] == pytest.approx(
            np.linalg.eigvalsh(both)[::-1][:4] / np.trace(both), abs=2e-5
        )
    sample = np.repeat(np.arange(len(read)), [len(each[1]) - skipped for each in read])
    halves = [PCA(n_components=4, svd_solver="full").fit(rows[sample % 2 == half]).components_ for half in range(2)]
    nearest = [np.abs(oracle.components_ @ half.T).max(axis=1) for half in halves]
    assert [row.stability for row in result.rows] == pytest.approx(np.minimum(*nearest), abs=1e-3)


@pytest.mark.parametrize("pair", ["lora", "full"])
def test_components_of_whole_chats(pair: str, references: References) -> None:
    """All turns with the tokens of the template; of these the first is left out, unless it is a BOS, which is never
    kept.
    """
    record = references.on(pair, "chats", "pca", layers=(1,), components=3, chat_part="whole", max_tokens=40)
    plain = references.pair(pair).plain
    rows = []
    for line in references.corpora["chats"].read_text().splitlines():
        ids = plain.whole_chat(json.loads(line)["messages"])
        start = int(ids[0] == plain.tokenizer.bos_token_id)
        base, finetuned = (plain.side(side).read(ids[: start + 40])[1][1] for side in ("base", "finetuned"))
        rows.append((finetuned - base)[1:])
    oracle = PCA(n_components=3, svd_solver="full").fit(torch.cat(rows).numpy())
    result: Any = record.result()
    assert [row.explained for row in result.rows] == pytest.approx(oracle.explained_variance_ratio_, abs=2e-5)
