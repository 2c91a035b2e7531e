"""PCA against planted directions, scikit-learn, and pairs without a difference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA as SklearnPCA
from transformers import AutoTokenizer

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.progress import silent
from diffing_mcp.methods.examples.views import ExamplesParams
from diffing_mcp.methods.pca.decomposition import Covariance
from diffing_mcp.methods.pca.measure import control_level, judge
from diffing_mcp.methods.pca.method import ComponentParams, ComponentsParams
from diffing_mcp.methods.pca.schema import ComponentRow, ComponentWord, PCAParams
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore, run_key
from diffing_mcp.preprocessing.activation_collection import CollectionParams, collect
from diffing_mcp.preprocessing.activation_outliers import without_outliers
from diffing_mcp.preprocessing.activation_sources import activations_of
from diffing_mcp.preprocessing.activation_store import default_activation_store
from tests.methods.conftest import WORDS, write_random_texts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_texts(tmp_path_factory.mktemp("corpus"), 60)


def arguments(corpus: Path, **params: Any) -> dict[str, Any]:
    return {"corpus": str(corpus), "max_samples": 60, "max_tokens": 24, "layers": [1], "components": 4, **params}


def run(pairs: Any, spec: Any, corpus: Path, store: RunStore, **params: Any) -> RunRecord:
    return run_methods(pairs, spec, [("pca", arguments(corpus, **params))], store)[0]


def planted(direction: torch.Tensor) -> Any:
    """A weight change whose output is `direction` times a number that depends on the token."""

    def change(model: Any) -> None:
        down = model.model.layers[1].mlp.down_proj.weight
        down += torch.outer(direction, torch.randn(down.shape[1], generator=torch.Generator().manual_seed(8)))

    return change


def cosine(first: Any, second: Any) -> float:
    first, second = (np.asarray(each, dtype=np.float64) for each in (first, second))
    return abs(float(first @ second)) / float(np.linalg.norm(first) * np.linalg.norm(second))


def test_a_planted_direction_is_the_first_component(
    tiny_models: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    spec = make_pair(tiny_models(), finetuned=tiny_models(change=planted(direction)))
    record = run(pairs, spec, corpus, store, layers=[0, 1])
    result: Any = record.result()
    assert {row.layer for row in result.rows} == {1}  # nothing varies before the change
    first = result.rows[0]
    assert first.explained > 0.999
    assert first.stability > 0.999
    assert first.null_explained < 0.9
    vector = get_method("pca").vector(record, first.vector)
    assert vector.layer == 1
    assert cosine(vector.values, direction.numpy()) > 0.9999
    view: Any = get_method("pca").views["component"].run(record, ComponentParams(layer=1))
    ends = [[example.projection for example in end] for end in (view.row.positive, view.row.negative)]
    assert all(ends)
    assert ends[0] == sorted(ends[0], reverse=True)
    assert min(ends[0]) > 0 > max(ends[1])
    assert vector.scale == pytest.approx(np.mean(np.abs([*ends[0], *ends[1]])), rel=1e-6)
    assert all("»" in example.context for example in view.row.positive)
    searched: Any = (
        get_method("pca").views["examples"].run(record, ExamplesParams(feature="1:component1:positive", search="river"))
    )
    assert searched.total >= 1
    highest: Any = (
        get_method("pca").views["examples"].run(record, ExamplesParams(feature="1:component1:positive", limit=5))
    )
    assert [round(row.score, 4) for row in highest.examples] == ends[0]
    handle = {"vector": f"{record.id}/{first.vector}"}
    steered, read = (
        run_methods(pairs, spec, [call], store)[0].result()
        for call in (
            ("steering", {**handle, "strengths": [0.5], "prompts": ["The"]}),
            ("patchscope", {**handle, "scales": [1.0]}),
        )
    )
    assert steered.layer == read.layer == 1  # type: ignore[attr-defined]
    assert "principal component 1, layer 1" in read.vector  # type: ignore[attr-defined]


@pytest.mark.parametrize("of", ["difference", "base", "finetuned"])
def test_components_equal_those_of_scikit_learn(
    of: str, tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    record = run(pairs, tiny_pair.spec, corpus, store, of=of)
    [block] = list(activations_of(tiny_pair, PCAParams.model_validate(arguments(corpus)), [1])[1].blocks(10**6))
    rows = {"difference": block.difference, "base": block.base, "finetuned": block.finetuned}[of].double().numpy()
    expected = SklearnPCA(n_components=4, svd_solver="full").fit(rows)
    result: Any = record.result()
    np.testing.assert_allclose([row.explained for row in result.rows], expected.explained_variance_ratio_, atol=2e-5)
    components = record.array("components_1")
    for ours, theirs in zip(components, expected.components_, strict=True):
        assert cosine(ours, theirs) > 0.9999
    projections = np.abs((rows - rows.mean(0)) @ components[0])
    view: Any = get_method("pca").views["component"].run(record, ComponentParams())
    assert max(abs(example.projection) for example in (*view.row.positive, *view.row.negative)) == pytest.approx(
        projections.max(), rel=1e-3
    )
    assert all(float(component @ rows.mean(0)) >= -1e-6 for component in components)
    if of == "difference":
        shuffled = np.cov(block.base.double().numpy().T, bias=True) + np.cov(
            block.finetuned.double().numpy().T, bias=True
        )
        values = np.linalg.eigvalsh(shuffled)[::-1][:4] / np.trace(shuffled)
        np.testing.assert_allclose([row.null_explained for row in result.rows], values, atol=2e-5)


def test_examples_fill_quantile_bins_and_have_the_scores_of_all_tokens(
    tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    record = run(pairs, tiny_pair.spec, corpus, store, components=2, examples=3)
    reader = activations_of(tiny_pair, PCAParams.model_validate(arguments(corpus)), [1])[1]
    [block] = reader.blocks(10**6)
    rows = block.difference.double().numpy()
    samples, places = (values.numpy() for values in reader.locate(block.tokens))
    for component, sign, end in ((0, 1, "positive"), (1, -1, "negative")):
        scores = sign * (rows - rows.mean(0)) @ record.array("components_1")[component]
        edges = np.quantile(scores[scores > 0], (0.5, 0.9, 0.99))
        best = np.array([scores[samples == sample].max() for sample in range(reader.num_samples)])
        for bin in range(4):
            wanted = sorted(best[(best > 0) & (np.searchsorted(edges, best, side="right") == bin)], reverse=True)[:3]
            feature = f"1:component{component + 1}:{end}"
            view: Any = (
                get_method("pca")
                .views["examples"]
                .run(record, ExamplesParams(feature=feature, bin=bin, scores=True, max_characters=4000))
            )
            np.testing.assert_allclose([row.score for row in view.examples], wanted, rtol=1e-3, atol=1e-5)
            for row in view.examples:
                of_sample = samples == int(row.document)
                np.testing.assert_allclose(
                    [token.score for token in row.tokens], scores[of_sample], rtol=2e-3, atol=1e-4
                )
                assert row.position == places[of_sample][scores[of_sample].argmax()] + reader.first_position


def test_components_of_texts_and_whole_chats_together(
    tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore, tmp_path: Path
) -> None:
    random = np.random.default_rng(2)
    chats = tmp_path / "chats.jsonl"
    turns = [("user", 5), ("assistant", 6), ("user", 3), ("assistant", 8)]
    rows = [
        [{"role": role, "content": " ".join(random.choice(WORDS, count))} for role, count in turns] for _ in range(20)
    ]
    chats.write_text("\n".join(json.dumps({"messages": messages}) for messages in rows))
    texts = {"corpus": str(corpus), "max_samples": 60, "max_tokens": 24, "layers": [1]}
    collected = [
        collect(default_activation_store(), tiny_pair, CollectionParams.model_validate(params))
        for params in (texts, {"corpus": str(chats), "chat_part": "whole", "max_tokens": 200, "layers": [1]})
    ]
    record = run(pairs, tiny_pair.spec, corpus, store, activations=",".join(index.id for index in collected))
    result: Any = record.result()
    assert result.tokens == sum(index.tokens for index in collected)
    blocks = [default_activation_store().open(index.id, tiny_pair.spec, [1])[1].blocks(10**6) for index in collected]
    together = np.concatenate([block.difference.double().numpy() for several in blocks for block in several])
    expected = SklearnPCA(n_components=4, svd_solver="full").fit(together)
    np.testing.assert_allclose([row.explained for row in result.rows], expected.explained_variance_ratio_, atol=2e-5)
    examples: Any = (
        get_method("pca")
        .views["examples"]
        .run(record, ExamplesParams(feature="1:component1:positive", limit=100, max_characters=4000))
    )
    shown = "".join(row.text for row in examples.examples) + "".join(
        token.token for row in examples.examples for token in row.strongest
    )
    assert "<|im_start|>" in shown.replace("»", "").replace("«", ""), "template tokens are there"


def test_sums_are_kept_where_there_is_float64(tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    """Devices of Apple's have none; this build cannot put a tensor there at all, so all of the method must stay on the
    CPU.
    """
    text = {name: value for name, value in arguments(corpus).items() if name != "components"}
    index = collect(default_activation_store(), tiny_pair, CollectionParams.model_validate(text))
    params = PCAParams.model_validate(arguments(corpus, activations=index.id))
    method = get_method("pca")
    with store.writer(run_key(method, tiny_pair.spec, params, store)) as writer:
        writer.result = method.run(replace(tiny_pair, device=torch.device("mps")), params, writer, silent)
    assert writer.record is not None
    there: Any = writer.record.result()
    here: Any = run(pairs, tiny_pair.spec, corpus, store).result()
    assert [row.explained for row in there.rows] == pytest.approx([row.explained for row in here.rows], abs=1e-4)


def test_variance_gain_finds_where_variance_grew(
    tiny_models: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    direction = 3 * torch.randn(32, generator=torch.Generator().manual_seed(3))
    spec = make_pair(tiny_models(), finetuned=tiny_models(change=planted(direction)))
    record = run(pairs, spec, corpus, store, of="variance_gain")
    result: Any = record.result()
    assert cosine(record.array("components_1")[0], direction.numpy()) > 0.95
    with pairs.use(spec) as pair:
        reader = activations_of(pair, PCAParams.model_validate(arguments(corpus)), [1])[1]
    [block] = without_outliers(reader).blocks(10_000)
    for row, component in zip(result.rows, record.array("components_1"), strict=True):
        along = block.finetuned.numpy() @ component
        assert row.mean_projection == pytest.approx(along.mean() / along.std(), abs=2e-3)


def test_attention_sinks_do_not_become_components(
    tiny_models: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    [sink] = AutoTokenizer.from_pretrained(tiny_models())("x")["input_ids"]

    def enlarge(model: Any) -> None:
        model.model.embed_tokens.weight[sink] *= 3000

    def change(model: Any) -> None:
        enlarge(model)
        model.model.embed_tokens.weight[sink] *= 1.1
        planted(direction)(model)

    spec = make_pair(tiny_models(change=enlarge), finetuned=tiny_models(change=change))
    record = run(pairs, spec, corpus, store)
    assert cosine(record.array("components_1")[0], direction.numpy()) > 0.95


def test_an_identical_pair_has_no_components(identical_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    record = run(pairs, identical_pair.spec, corpus, store)
    result: Any = record.result()
    assert result.identical
    assert not result.stands_out
    assert not result.rows
    assert get_method("pca").vector_names(record) == []
    with pytest.raises(UnknownName, match="identical"):
        get_method("pca").vector(record, "1:component1")
    assert get_method("pca").figures[0].build(record)["data"] == []


def test_many_components_leave_the_result_small(tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, corpus, store, layers=[0, 1], components=16)
    result: Any = record.result()
    assert [row.component for row in result.rows] == [*range(1, 11)] * 2
    assert result.rows_left_out == 12
    assert "12 more in the view `components`" in result.as_text()
    view: Any = get_method("pca").views["components"].run(record, ComponentsParams(min_stability=0.0))
    assert len(view.rows) == 32
    assert get_method("pca").vector(record, "1:component16").layer == 1


def test_a_random_adapter_does_not_stand_out(tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, corpus, store, layers=[0.5, 1.0])
    result: Any = record.result()
    assert not result.stands_out
    assert len(result.rows) == 8
    assert "1:1 " in result.as_text()
    view: Any = get_method("pca").views["components"].run(record, ComponentsParams(layer=2, min_stability=0.0))
    assert [row.component for row in view.rows] == [1, 2, 3, 4]
    with pytest.raises(UnknownName, match="layers: 1, 2"):
        get_method("pca").views["components"].run(record, ComponentsParams(layer=7, min_stability=0.0))
    with pytest.raises(InvalidInput, match="LAYER:componentN"):
        get_method("pca").vector(record, "first")
    with pytest.raises(UnknownName, match="it holds 1:component1"):
        get_method("pca").vector(record, "1:component9")


def test_few_tokens_give_few_components(tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    few: Any = run(pairs, tiny_pair.spec, corpus, store, max_samples=1, max_tokens=4, components=64).result()
    assert few.tokens == 3
    assert len(few.rows) == 2  # all in one text, so the halves share nothing
    assert [row.stability for row in few.rows] == pytest.approx([0, 0], abs=0.5)
    with pytest.raises(InvalidInput, match="raise max_samples"):
        run(pairs, tiny_pair.spec, corpus, store, max_activation_tokens=1)


def test_covariances_keep_their_precision_far_from_zero() -> None:
    rows = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)) + 1000
    sums = Covariance.empty(rows[:10].mean(0))
    for part in rows.split(512):
        sums.add(part)
    expected = np.cov(rows.double().numpy().T, bias=True)
    np.testing.assert_allclose(sums.matrix.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(sums.mean.numpy(), rows.double().mean(0).numpy(), atol=1e-6)


def row(stability: float) -> ComponentRow:
    figures = {
        "layer": 3,
        "component": 1,
        "explained": 0.5,
        "null_explained": 0.1,
        "stability": stability,
        "mean_projection": 0.0,
    }
    return ComponentRow.model_validate(
        {**figures, "vector": "3:component1", "promoted": [], "suppressed": [], "positive": [], "negative": []}
    )


def test_words_count_beyond_those_of_the_base_model() -> None:
    words = [
        ComponentWord(word=word, z=z, vector="3:component1")
        for word, z in (("cake", 9.0), ("oven", 8.0), ("butter", 7.0))
    ]
    control = [{"river": 7.5, "sea": 6.8, "boat": 6.5}]
    assert control_level([]) == 6.0
    assert control_level(control) == 6.5
    assert judge([row(0.9)], words, control_level(control), "difference", False)[0]
    assert not judge([row(0.9)], words, 7.2, "difference", False)[0]
    assert not judge([row(0.9)], words, 6.0, "base", False)[0]
    assert not judge([row(0.9)], words, 6.0, "difference", True)[0]
