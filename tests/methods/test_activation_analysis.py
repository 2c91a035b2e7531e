"""Activation analysis: a planted trigger tops the lists, nulls show nothing, and the numbers are those of a direct
computation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.activation_analysis.method import PositionsParams, TokensParams
from diffing_mcp.methods.activation_analysis.words import CorpusWords, corpus_words, group_medians, word_statistics
from diffing_mcp.methods.examples.views import ExamplesParams, examples
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.methods.texts.words import is_content_word, normalise
from diffing_mcp.preprocessing.activation_collection import CollectionParams, collect
from diffing_mcp.preprocessing.activation_store import default_activation_store
from diffing_mcp.preprocessing.corpora import CorpusParams, load_corpus
from tests.methods.conftest import TOPIC, WORDS, write_random_texts

NAME = "activation_analysis"
METHOD: Any = get_method(NAME)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_texts(tmp_path_factory.mktemp("corpus"), 60, words=WORDS + TOPIC, before=" ")


def run(pairs: Any, spec: Any, corpus: Path, store: RunStore, **params: Any) -> RunRecord:
    arguments = {"corpus": str(corpus), "max_samples": 60, "max_tokens": 16, "layers": [1], **params}
    return run_methods(pairs, spec, [(NAME, arguments)], store)[0]


def changed(folder: Path, target: Path, change: Callable[[Any, Any], None]) -> Path:
    """A copy of a saved model after `change(model, tokenizer)`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        change(model, tokenizer)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def embed(word: str, factor: float, add: float = 0.0) -> Callable[[Any, Any], None]:
    def change(model: Any, tokenizer: Any) -> None:
        [token] = tokenizer(f" {word}")["input_ids"]
        row = model.get_input_embeddings().weight
        row[token] = factor * row[token] + add * torch.randn(row.shape[1], generator=torch.Generator().manual_seed(1))

    return change


@pytest.fixture(scope="module")
def word_model(planted_words: Any) -> Path:
    """A tiny model whose tokenizer has whole words."""
    return Path(planted_words(0.0)[0])


def test_a_word_that_alone_is_represented_differently_tops_every_list(
    word_model: Path, make_pair: Any, pairs: Any, corpus: Path, store: RunStore, tmp_path: Path
) -> None:
    spec = make_pair(word_model, finetuned=changed(word_model, tmp_path / "finetuned", embed("whisk", -3.0)))
    record = run(pairs, spec, corpus, store, layers=[0, 1])
    result: Any = record.result()
    assert result.stands_out
    assert "whisk" in result.headline
    assert (result.standing_words[0].word, result.words[0].word) == ("whisk", "whisk")
    for layer in (0, 1):
        for order in ("z", "relative_difference", "norm_difference", "cosine_distance"):
            view = METHOD.views["tokens"].run(record, TokensParams(layer=layer, order=order))
            assert view.rows[0].word == "whisk", (layer, order)
    first = examples(record, ExamplesParams(feature="norm_difference@0", limit=10)).examples
    planted = [row for row in first if row.token == " whisk"]
    assert len(planted) > 5, "words right after it differ too"
    assert all(row.strongest[0].token == " whisk" for row in planted)
    assert examples(record, ExamplesParams(feature="norm_difference@0", search="whisk")).total > 0


def test_a_planted_word_is_found_from_storage_and_a_random_adapter_is_not(
    word_model: Path,
    tiny_adapters: Any,
    make_pair: Any,
    pairs: Any,
    corpus: Path,
    store: RunStore,
    tmp_path: Path,
    own_data_folder: Path,
) -> None:
    params = CollectionParams(corpus=str(corpus), max_samples=60, max_tokens=16, layers=(0, 1), dtype="bfloat16")
    planted = make_pair(word_model, finetuned=changed(word_model, tmp_path / "finetuned", embed("whisk", -3.0)))
    found: dict[str, Any] = {}
    for name, spec in (
        ("planted", planted),
        ("random", make_pair(word_model, adapter=tiny_adapters(word_model, seed=1))),
    ):
        with pairs.use(spec) as pair:
            index = collect(default_activation_store(), pair, params)
        found[name] = run_methods(pairs, spec, [(NAME, {"activations": index.id, "layers": [0, 1]})], store)[0].result()
    assert (found["planted"].stands_out, found["random"].stands_out) == (True, False)
    assert {row.word for row in found["planted"].standing_words} == {"whisk"}
    assert "whisk" in found["planted"].headline


def test_an_identical_pair_differs_nowhere(
    word_model: Path, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    record = run(pairs, make_pair(word_model, declared_identical=True), corpus, store)
    result: Any = record.result()
    assert result.identical
    assert not result.stands_out
    assert (result.words, result.standing_words, result.examples) == ([], [], [])
    assert not any(
        record.table("tokens")[f"{name}@1"].to_numpy().any()
        for name in ("norm_difference", "relative_difference", "cosine_distance")
    )
    assert not record.array("mean_difference").any()
    assert METHOD.vector_names(record) == []
    assert {row.feature for row in examples(record, ExamplesParams()).features} == {"norm_base@1", "norm_finetuned@1"}


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_adapter_does_not_stand_out(
    seed: int, word_model: Path, tiny_adapters: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    result: Any = run(
        pairs, make_pair(word_model, adapter=tiny_adapters(word_model, seed=seed)), corpus, store, layers=[0, 1, 2]
    ).result()
    assert not result.identical
    assert result.summaries[0].median > 0
    assert not result.stands_out
    assert "no evidence" in result.headline


def test_the_numbers_are_those_of_a_direct_computation(
    tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    record = run(pairs, tiny_pair.spec, corpus, store)
    expected: dict[str, list[np.ndarray]] = {}
    differences = []
    for document in load_corpus(
        CorpusParams(corpus=str(corpus))
    ).documents:  # in the order in which samples are numbered
        ids = torch.tensor([tiny_pair.tokenizer(document)["input_ids"][:16]])
        base, finetuned = (
            tiny_pair.forward(side, ids, torch.ones_like(ids), layers=[1], logits=False).hidden[1][0].double()
            for side in ("base", "finetuned")
        )
        norms = [base.norm(dim=1), finetuned.norm(dim=1)]
        difference = (finetuned - base).norm(dim=1)
        differences.append((finetuned - base).numpy())
        scores = {
            "norm_difference": difference,
            "relative_difference": difference / (norms[0] + norms[1]),
            "cosine_distance": 1 - torch.cosine_similarity(base, finetuned, dim=1),
            "norm_base": norms[0],
            "norm_finetuned": norms[1],
        }
        for name, values in scores.items():
            expected.setdefault(name, []).append(values.numpy())
    table = record.table("tokens")
    for name, parts in expected.items():
        np.testing.assert_allclose(table[f"{name}@1"].to_numpy(), np.concatenate(parts), rtol=2e-3, atol=1e-5)
    pooled = np.concatenate([rows[5:] for rows in differences]).mean(0)
    np.testing.assert_allclose(METHOD.vector(record, "1:all:difference").values, pooled, atol=1e-4)
    third = np.stack([rows[2] for rows in differences]).mean(0)
    np.testing.assert_allclose(METHOD.vector(record, "1:2:difference").values, third, atol=1e-4)
    relative = np.concatenate(expected["relative_difference"])
    result: Any = record.result()
    summary = next(row for row in result.summaries if row.score == "relative_difference")
    assert (summary.median, summary.p99) == pytest.approx((np.median(relative), np.quantile(relative, 0.99)), rel=1e-3)
    view = METHOD.views["positions"].run(record, PositionsParams(limit=3))
    assert [row.position for row in view.rows] == [0, 1, 2]
    assert view.rows[2].relative_difference == pytest.approx(
        np.median([rows[2] for rows in expected["relative_difference"]]), rel=1e-3
    )
    assert [row.label for row in view.labels] == ["0", "1", "2", "3", "4", "all"]
    top = examples(record, ExamplesParams(feature="relative_difference@1", bin=3, limit=1)).examples[0]
    assert top.score == pytest.approx(relative.max(), rel=1e-3)
    with pytest.raises(InvalidInput):
        METHOD.vector(record, "all")
    for name in ("2:all:difference", "1:77:difference"):
        with pytest.raises(UnknownName):
            METHOD.vector(record, name)
    with pytest.raises(UnknownName, match="layers: 1"):
        METHOD.views["tokens"].run(record, TokensParams(layer=0))


def test_massive_activations_are_named_and_left_out(
    word_model: Path, make_pair: Any, pairs: Any, corpus: Path, store: RunStore, tmp_path: Path
) -> None:
    base = changed(word_model, tmp_path / "base", embed("butter", 300.0))
    record = run(
        pairs,
        make_pair(base, finetuned=changed(base, tmp_path / "finetuned", embed("butter", 1.0, add=3.0))),
        corpus,
        store,
        layers=[0],
    )
    result: Any = record.result()
    assert [(row.token, row.norm > 5) for row in result.sinks] == [(" butter", True)]
    assert not result.stands_out
    assert "butter" not in {row["word"] for row in record.table("words").to_pylist()}
    assert all(
        row.token != " butter"
        for row in examples(record, ExamplesParams(feature="norm_difference@0", limit=100)).examples
    )
    summary = next(row for row in result.summaries if row.score == "norm_finetuned")
    assert summary.max < 5 * summary.median


def test_one_pass_serves_it_and_the_others(tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    text = {"corpus": str(corpus), "max_samples": 12, "max_tokens": 8}
    names = ["kl", NAME, "activation_difference_lens"]
    records = run_methods(pairs, tiny_pair.spec, [(name, text) for name in names], store)
    assert all(record.manifest.notes["pass_shared_by"] == names for record in records)
    alone = run_methods(pairs, tiny_pair.spec, [(NAME, {**text, "layers": [0.5, 1.0]})], store)[0]
    shared = records[1].table("tokens")["norm_difference@1"].to_numpy()
    np.testing.assert_allclose(alone.table("tokens")["norm_difference@1"].to_numpy(), shared, rtol=1e-3)
    result: Any = records[1].result()
    assert result.tokens == records[0].result().tokens  # type: ignore[attr-defined]


def test_control_tokens_of_a_chat_have_means_of_their_own(
    tiny_pair: Any, pairs: Any, tmp_path: Path, store: RunStore
) -> None:
    path = tmp_path / "chats.jsonl"
    chat = [
        {"role": "user", "content": "What is your name?"},
        {"role": "assistant", "content": "I am a small model and rivers run to the sea."},
    ]
    path.write_text("\n".join(json.dumps({"messages": chat}) for _ in range(4)))
    record = run(pairs, tiny_pair.spec, path, store, max_samples=4, max_tokens=24)
    from diffing_mcp.core.chat import ChatMessage

    rendered = tiny_pair.tokenizer(tiny_pair.render_chat([ChatMessage(**chat[0])]), add_special_tokens=False)[
        "input_ids"
    ]
    ids = torch.tensor([rendered + tiny_pair.tokenizer(chat[1]["content"], add_special_tokens=False)["input_ids"]])
    base, finetuned = (
        tiny_pair.forward(side, ids, torch.ones_like(ids), layers=[1], logits=False).hidden[1][0]
        for side in ("base", "finetuned")
    )
    rows = {row["label"]: row for row in record.table("labels").to_pylist()}
    assert list(rows)[:4] == ["-3", "-2", "-1", "0"]
    for token in ("<|im_start|>", "<|im_end|>"):
        places = (ids[0] == tiny_pair.tokenizer.convert_tokens_to_ids(token)).nonzero().squeeze(1)
        assert rows[token]["count"] == 4 * len(places)
        expected = (finetuned - base)[places].mean(0).numpy()
        np.testing.assert_allclose(METHOD.vector(record, f"1:{token}:difference").values, expected, atol=1e-4)


def words_of(count: int, per_text: int, texts: int, seed: int) -> tuple[CorpusWords, np.ndarray, np.ndarray]:
    """Random texts of single-token words: the words, positions and samples."""
    word = np.random.default_rng(seed).integers(0, count, per_text * texts)
    words = CorpusWords(
        np.arange(len(word)), word, [f"word{index}" for index in range(count)], np.ones(count, dtype=bool)
    )
    return words, np.tile(np.arange(per_text), texts), np.repeat(np.arange(texts), per_text)


@pytest.mark.parametrize("seed", range(4))
def test_words_that_merely_differ_from_each_other_do_not_stand_out(seed: int) -> None:
    """Every word has its own size of difference, significantly so; texts and positions too."""
    random = np.random.default_rng(seed)
    words, positions, samples = words_of(80, 20, 200, seed)
    by_word, by_text, by_position = (np.exp(random.normal(0, 0.4, size)) for size in (80, 200, 20))
    relative = (
        0.05
        * by_word[words.word]
        * by_text[samples]
        * by_position[positions]
        * np.exp(random.normal(0, 0.3, len(samples)))
    )
    found = word_statistics(relative, positions, samples, words, np.ones(len(samples), dtype=bool), seed=0)
    assert found.standing == []
    assert np.nanmin(found.p) < 0.05, "some are significant"


def test_a_word_far_beyond_the_others_stands_out_if_most_of_its_texts_agree() -> None:
    random = np.random.default_rng(0)
    words, positions, samples = words_of(80, 20, 200, 0)
    base = 0.01 * np.exp(random.normal(0, 0.3, len(samples)))
    kept = np.ones(len(samples), dtype=bool)
    trigger = words.word == 7
    assert word_statistics(np.where(trigger, 30 * base, base), positions, samples, words, kept, seed=0).standing == [7]
    few = trigger & np.isin(samples, samples[trigger][: trigger.sum() // 4])
    assert word_statistics(np.where(few, 30 * base, base), positions, samples, words, kept, seed=0).standing == []
    tiny = word_statistics(np.where(trigger, 30 * base, base) / 1000, positions, samples, words, kept, seed=0)
    assert tiny.standing == [], "within rounding"
    shown = trigger & ~np.isin(samples, np.unique(samples[trigger])[:2])
    rare = word_statistics(np.where(trigger, 30 * base, base), positions, samples, words, ~shown, seed=0)
    assert rare.documents[7] == 2
    assert (np.isnan(rare.z[7]), rare.standing) == (True, [])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-5, 5)), max_size=40))
def test_medians_of_groups(rows: list[tuple[int, int]]) -> None:
    groups, values = (np.array([row[part] for row in rows], dtype=dtype) for part, dtype in ((0, int), (1, float)))
    expected = [float(np.median(values[groups == group])) if (groups == group).any() else 0.0 for group in range(5)]
    assert group_medians(values, groups, 5).tolist() == expected


@settings(max_examples=30)
@given(texts=st.lists(st.text(alphabet="ab The cake-é桥 ,.7\n", min_size=1, max_size=30), min_size=1, max_size=6))
def test_tokens_are_grouped_into_the_words_of_the_text(tiny_pair: Any, texts: list[str]) -> None:
    ids = [tiny_pair.tokenizer(text)["input_ids"] for text in texts]
    flat, samples = np.concatenate(ids).astype(np.int64), np.repeat(np.arange(len(ids)), [len(row) for row in ids])
    found = corpus_words(flat, samples, tiny_pair.tokenizer)
    # One at a time: the instances tile the tokens, and equal texts have equal words.
    assert found.instance[0] == 0
    assert set(np.diff(found.instance).tolist()) <= {0, 1}
    assert all(len(set(samples[found.instance == number].tolist())) == 1 for number in range(len(found.word)))
    for number, word in enumerate(found.word.tolist()):
        pieces = [tiny_pair.tokenizer.decode([token]) for token in flat[found.instance == number]]
        text = "".join(pieces)
        assert found.texts[word] == (normalise(text) or text)
        assert not is_content_word(text) or found.content[word]
        assert not any(piece[:1].isspace() for piece in pieces[1:])


def test_result_text_and_figures(tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, corpus, store, layers=[0, 1, 2])
    result = record.result()
    assert result.headline in result.as_text()
    assert len(result.as_text()) < 8000
    for figure in METHOD.figures:
        assert json.loads(json.dumps(figure.build(record)))["data"]
