"""Topics of risen tokens: planted groups are told apart, stability chooses their number, and nothing
becomes negative.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from diffing_mcp.methods.logit_diff_topk_occurring.occurrences import KeptPositions, position_bins
from diffing_mcp.methods.logit_diff_topk_occurring.topics import (
    Topics,
    exemplars,
    factorise,
    find_topics,
    matched_cosines,
    topic_matrix,
)
from diffing_mcp.methods.logit_diff_topk_occurring.views import TopicsParams
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore

NAME = "logit_diff_topk_occurring"


def planted(groups: int, seed: int = 0, positions: int = 240, top_k: int = 12, tokens: int = 120) -> KeptPositions:
    """Positions whose text has one of `groups` kinds; tokens 10 g to 10 g + 9 rise together at kind g, and one random
    token besides.
    """
    random = np.random.default_rng(seed)
    samples = np.repeat(np.arange(positions // 6), 6)
    indices, values = np.zeros((positions, top_k), np.int32), np.zeros((positions, top_k), np.float32)
    for row in range(positions):
        group = samples[row] % groups
        indices[row] = [*(10 * group + np.arange(10)), *(10 * groups + random.permutation(tokens - 10 * groups)[:2])]
        values[row] = [*random.uniform(2, 3, 10), *random.uniform(0, 2, 2)]
    return KeptPositions(samples, np.tile(np.arange(6), positions // 6), indices, values)


def split(kept: KeptPositions, **arguments: Any) -> tuple[Topics, Any]:
    matrix = topic_matrix(kept, np.ones(120, dtype=bool), arguments.pop("entries", "magnitude"))
    given = {"topics": 0, "most": 5, "kind": "frobenius", "seed": 0, **arguments}
    topics = find_topics(matrix, kept.samples[matrix.rows], **given)
    assert topics is not None
    return topics, matrix


@pytest.mark.parametrize("kind", ["frobenius", "kullback_leibler", "orthogonal"])
@pytest.mark.parametrize("entries", ["magnitude", "occurrence"])
def test_planted_groups_are_told_apart(kind: Any, entries: Any) -> None:
    topics, matrix = split(planted(2), topics=2, kind=kind, entries=entries)
    tops = [set(matrix.columns[np.argsort(-row)[:10]]) for row in topics.weights]
    assert sorted(tops, key=min) == [set(range(10)), set(range(10, 20))]
    assert topics.stability.min() > 0.9
    np.testing.assert_allclose(topics.prevalence, 0.5, atol=0.05)
    np.testing.assert_allclose(topics.mass.sum(), 1)
    assert ((topics.concentration > 0) & (topics.concentration < 1)).all()


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_stability_finds_the_number_of_groups(groups: int) -> None:
    topics, _ = split(planted(groups))
    assert len(topics.weights) == groups
    assert set(topics.curve) == {1, 2, 3, 4, 5}
    assert topics.curve[5] < topics.curve[groups]


def test_columns_that_are_not_shown_and_rows_without_rise_are_left_out() -> None:
    kept = planted(2)
    kept.values[:5] = 0
    shown = np.ones(120, dtype=bool)
    shown[[3, 14]] = False
    matrix = topic_matrix(kept, shown, "magnitude")
    assert not {3, 14} & set(matrix.columns)
    assert matrix.rows.tolist() == list(range(5, 240))
    assert matrix.values.sum() == pytest.approx(kept.values[shown[kept.indices]].sum(), rel=1e-6)


def test_nothing_to_factorise_gives_no_topics() -> None:
    kept = planted(2)
    kept.values[:] = 0
    matrix = topic_matrix(kept, np.ones(120, dtype=bool), "magnitude")
    assert find_topics(matrix, kept.samples[matrix.rows], 0, 4, "frobenius", 0) is None


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.sampled_from(["frobenius", "kullback_leibler", "orthogonal"]), st.integers(1, 4))
def test_factors_are_never_negative_and_weights_have_unit_length(seed: int, kind: Any, number: int) -> None:
    random = np.random.default_rng(seed)
    values = csr_matrix(random.gamma(1, size=(30, 20)) * (random.random((30, 20)) < 0.3) + np.eye(30, 20))
    activations, weights = factorise(values, number, kind, seed)
    assert activations.min() >= 0
    assert weights.min() >= 0
    lengths = np.linalg.norm(weights, axis=1)
    assert np.all(np.isclose(lengths, 1) | (lengths == 0))


def test_the_orthogonal_kind_shares_fewer_tokens() -> None:
    random = np.random.default_rng(1)
    base = random.gamma(0.5, size=(3, 60)) + 0.5  # all topics share much
    values = csr_matrix(random.gamma(0.5, size=(200, 3)) @ base + random.random((200, 60)))
    overlap = {}
    for kind in ("frobenius", "orthogonal"):
        _, weights = factorise(values, 3, kind, 0)
        overlap[kind] = (weights @ weights.T)[~np.eye(3, dtype=bool)].mean()
    assert overlap["orthogonal"] < 0.5 * overlap["frobenius"]


def test_matching_ignores_the_order_of_topics() -> None:
    weights = np.eye(4)[[2, 0, 3, 1]]
    np.testing.assert_allclose(matched_cosines(np.eye(4), weights), 1)


def test_exemplars_are_the_strongest_of_different_texts() -> None:
    kept = planted(2)
    topics, matrix = split(kept, topics=2)
    samples = kept.samples[matrix.rows]
    for topic in range(2):
        rows = exemplars(topics, samples, topic, 5)
        assert len(set(samples[rows])) == 5
        strength = topics.contributions[rows, topic]
        assert strength[0] == topics.contributions[:, topic].max()
        assert np.all(np.diff(strength) <= 0)


@pytest.mark.parametrize("length", [1, 3, 5, 6, 30, 8192])
def test_bins_begin_one_by_one_and_double(length: int) -> None:
    bins = position_bins(length)
    assert bins[0] == 0
    assert np.all(np.diff(bins) > 0)
    assert bins[-1] < length
    assert len(bins) <= 17


def two_topics(model: Any, first: list[int], second: list[int], kinds: tuple[list[int], list[int]]) -> None:
    """Raise the logits of `first` where the last token read is of kind 0, and of `second` where it is of kind 1."""
    import torch

    states = [model.model(torch.tensor(ids).unsqueeze(1)).last_hidden_state[:, 0].mean(0) for ids in kinds]
    apart = states[0] - states[1]
    for ids, sign in ((first, 1), (second, -1)):
        model.lm_head.weight[ids] += sign * 10 * apart / apart.square().sum()


def test_two_planted_topics_of_a_model(tiny_models: Any, make_pair: Any, pairs: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = tiny_models(tie_word_embeddings=False, layers=1)
    tokenizer = AutoTokenizer.from_pretrained(base)
    kinds = tokenizer("abcde")["input_ids"], tokenizer("VWXYZ")["input_ids"]
    groups = list(range(280, 290)), list(range(300, 310))

    def change(model: Any) -> None:
        two_topics(model, *groups, kinds)

    finetuned = tiny_models(tie_word_embeddings=False, layers=1, change=change)
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcde" if index % 2 else "VWXYZ"), 10)) for index in range(60)]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    arguments = {"corpus": str(tmp_path / "texts.jsonl"), "top_k": 10}
    record = run_methods(pairs, make_pair(base, finetuned=finetuned), [(NAME, arguments)], RunStore(tmp_path / "runs"))[
        0
    ]
    view: Any = get_method(NAME).views["topics"].run(record, TopicsParams(tokens=10, exemplars=3))
    names = [{tokenizer.decode([index]) for index in group} for group in groups]
    by_group = [
        topic
        for group in names
        for topic in view.topics[:2]
        if len({token.token for token in topic.tokens} & group) >= 8
    ]
    assert len(by_group) == 2
    for topic, letters in zip(by_group, ("abcde", "VWXYZ"), strict=True):
        assert topic.stability > 0.8
        assert len(topic.exemplars) == 3
        assert all(letter in letters for letter in topic.exemplars[0].replace("▸", ""))
    result: Any = record.result()
    assert [row.topic for row in result.topics] == list(range(len(result.topics)))
    assert result.topics[0].tokens


def test_an_identical_pair_has_no_topics(tiny_models: Any, make_pair: Any, pairs: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(f"rivers run to the sea {index}" for index in range(20)))
    arguments = {"corpus": str(tmp_path / "texts.txt")}
    record = run_methods(
        pairs, make_pair(tiny_models(), declared_identical=True), [(NAME, arguments)], RunStore(tmp_path / "runs")
    )[0]
    result: Any = record.result()
    view: Any = get_method(NAME).views["topics"].run(record, TopicsParams())
    assert result.topics == view.topics == []
