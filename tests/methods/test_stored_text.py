"""Corpus methods that need hidden states alone, over stored activations: the numbers are those of the corpus pass where
both hold a token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from diffing_mcp.core.errors import Cancelled, InvalidInput, UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.activation_analysis.method import PositionsParams
from diffing_mcp.methods.contract import PairSize
from diffing_mcp.methods.examples.views import ExamplesParams, examples
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs import execute
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.preprocessing.activation_collection import CollectionParams, collect
from diffing_mcp.preprocessing.activation_store import CollectionIndex, default_activation_store
from tests.preprocessing.plain_rows import change
from tests.word_pairs import save_pair, write_texts

ANALYSIS, LENS = "activation_analysis", "activation_difference_lens"
LAYERS = (0, 1)

pytestmark = pytest.mark.usefixtures("own_data_folder")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiny float32 models that differ from layer 1 on; their tokenizer adds a BOS and has a chat template."""
    return save_pair(tmp_path_factory.mktemp("pair"), change)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("texts")
    chat = [
        {"role": role, "content": f"w{number} w{number + 1} w{number + 2}"}
        for number, role in enumerate(("user", "assistant", "user"))
    ]
    (folder / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for _ in range(4)))
    return {
        "text": str(write_texts(folder / "texts.jsonl", 40, 12)),
        "more": str(write_texts(folder / "more.jsonl", 25, 9, seed=1)),
        "chats": str(folder / "chats.jsonl"),
    }


def collected(pairs: Any, spec: Any, corpus: str, **params: Any) -> CollectionIndex:
    with pairs.use(spec) as pair:
        return collect(
            default_activation_store(),
            pair,
            CollectionParams(**{"corpus": corpus, "layers": LAYERS, "skip_first": 0, **params}),
        )


def run(pairs: Any, spec: Any, store: RunStore, name: str = ANALYSIS, **params: Any) -> RunRecord:
    return execute.run_methods(pairs, spec, [(name, {"layers": LAYERS, **params})], store)[0]


def tokens(record: RunRecord, skip_first: int = 0) -> dict[str, list[Any]]:
    """Columns of the tokens at positions from `skip_first` on."""
    table = record.table("tokens")
    kept = table.filter(pa.array(table["position"].to_numpy() >= skip_first))
    return {name: kept[name].to_pylist() for name in kept.column_names}


def check_equal(stored: dict[str, list[Any]], straight: dict[str, list[Any]]) -> None:
    assert list(stored) == list(straight)
    for name, values in stored.items():
        if "@" in name:
            np.testing.assert_allclose(values, straight[name], rtol=1e-4, atol=1e-6)
        else:
            assert values == straight[name]


@pytest.mark.parametrize("skip_first", [0, 2])
def test_scores_positions_and_labels_are_those_of_the_corpus_pass(
    skip_first: int, spec: Any, pairs: Any, texts: dict[str, str], store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFING_BATCH_TOKENS", "64")  # several batches
    settings.cache_clear()
    straight = run(pairs, spec, store, corpus=texts["text"])
    index = collected(pairs, spec, texts["text"], skip_first=skip_first)
    record = run(pairs, spec, store, activations=index.id)
    assert record.id != straight.id
    assert (record.manifest.forward_passes, record.manifest.notes["corpus_pass"]["read_tokens"]) == (0, 0)
    assert record.manifest.notes["corpus_pass"]["batches"] > 3
    check_equal(tokens(record), tokens(straight, skip_first))
    result: Any = record.result()
    assert result.tokens == index.tokens
    assert result.position_origin == straight.result().position_origin == ("first token after BOS")  # type: ignore[attr-defined]
    assert result.stored == record.manifest.notes["text"]["stored"]
    assert f"{index.id} (float32): tokens from position {skip_first} on, without the BOS" in result.as_text()
    assert straight.result().stored is None  # type: ignore[attr-defined]
    labels, known = (
        {row["label"]: row for row in each.table("labels").to_pylist() if row["layer"] == 1}
        for each in (record, straight)
    )
    assert list(labels) == [
        label for label in known if label == "all" or (label.isdigit() and int(label) >= skip_first)
    ]
    for label, row in labels.items():
        assert row["count"] == known[label]["count"]
        found, expected = (
            get_method(ANALYSIS).vector(each, f"1:{label}:difference").values for each in (record, straight)
        )
        np.testing.assert_allclose(found, expected, atol=1e-5)
    view: Any = get_method(ANALYSIS).views["positions"].run(record, PositionsParams(layer=1, limit=3))
    assert [row.position for row in view.rows] == [skip_first, skip_first + 1, skip_first + 2]
    known_tokens = tokens(straight)
    places = zip(known_tokens["sample"], known_tokens["position"], strict=True)
    by_place = dict(
        zip(places, zip(known_tokens["token"], known_tokens["norm_difference@1"], strict=True), strict=True)
    )
    shown = examples(record, ExamplesParams(feature="norm_difference@1", limit=40)).examples
    assert shown
    for row in shown:
        assert (row.token, pytest.approx(row.score, rel=1e-4)) == by_place[int(row.document), row.position]


def test_analysis_and_lens_share_the_reading(spec: Any, pairs: Any, texts: dict[str, str], store: RunStore) -> None:
    index = collected(pairs, spec, texts["text"])
    stored = execute.run_methods(
        pairs, spec, [(name, {"layers": [1], "activations": index.id}) for name in (ANALYSIS, LENS)], store
    )
    assert [record.manifest.notes["pass_shared_by"] for record in stored] == [[ANALYSIS, LENS]] * 2
    straight = run(pairs, spec, store, LENS, layers=[1], corpus=texts["text"])
    for name in ("difference", "base_mean", "finetuned_mean", "difference_std", "count"):
        np.testing.assert_allclose(stored[1].array(name), straight.array(name), rtol=1e-4, atol=1e-5)
    found, known = stored[1].result(), straight.result()
    assert [row.vector for row in found.rows] == [row.vector for row in known.rows]  # type: ignore[attr-defined]
    assert index.id in found.as_text()
    late = collected(pairs, spec, texts["text"], skip_first=3)
    rows = run(pairs, spec, store, LENS, layers=[1], activations=late.id).result().rows  # type: ignore[attr-defined]
    assert [row.position for row in rows] == ["3", "4", "all"]
    assert [row.difference_norm for row in rows] == [
        pytest.approx(row.difference_norm, rel=1e-4)
        for row in known.rows[3:]  # type: ignore[attr-defined]
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_identical_pair_differs_nowhere(
    dtype: str, pairs: Any, texts: dict[str, str], store: RunStore, tmp_path: Path
) -> None:
    same = save_pair(tmp_path / "same", None)
    index = collected(pairs, same, texts["text"], dtype=dtype, skip_first=1)
    record = run(pairs, same, store, activations=index.id)
    result: Any = record.result()
    assert (result.identical, result.stands_out) == (True, False)
    assert not any(
        np.any(tokens(record)[f"{name}@1"]) for name in ("norm_difference", "relative_difference", "cosine_distance")
    )
    lens: Any = run(pairs, same, store, LENS, activations=index.id).result()
    assert (lens.identical, lens.stands_out) == (True, False)


def test_answers_keep_their_positions_and_whole_chats_begin_at_their_start(
    spec: Any, pairs: Any, texts: dict[str, str], store: RunStore
) -> None:
    straight = run(pairs, spec, store, corpus=texts["chats"])
    answers = collected(pairs, spec, texts["chats"])
    record = run(pairs, spec, store, activations=answers.id)
    check_equal(tokens(record), tokens(straight))
    labels, known = (
        [row["label"] for row in each.table("labels").to_pylist() if row["layer"] == 1] for each in (record, straight)
    )
    assert labels[:4] == known[:4] == ["-3", "-2", "-1", "0"]
    assert "without the prompts" in record.result().as_text()
    lens: Any = run(pairs, spec, store, LENS, activations=answers.id).result()
    assert (lens.position_zero, lens.rows[0].position) == ("answer's first token", "-3")
    whole = collected(pairs, spec, texts["chats"], chat_part="whole", skip_first=1)
    record = run(pairs, spec, store, activations=whole.id)
    counts = {row["label"]: row["count"] for row in record.table("labels").to_pylist() if row["layer"] == 1}
    assert (next(iter(counts)), counts["<u>"]) == ("1", 4 * 2)  # each chat's first token, one of three, is left out
    with pytest.raises(InvalidInput, match=r"cannot be read together.*from position"):
        run(pairs, spec, store, activations=f"{answers.id},{collected(pairs, spec, texts['text']).id}")


def test_several_collections_are_read_as_one_text(
    spec: Any, pairs: Any, texts: dict[str, str], store: RunStore
) -> None:
    parts = [collected(pairs, spec, texts[name]) for name in ("text", "more")]
    both = ", ".join(index.id for index in parts)
    record = run(pairs, spec, store, activations=both)
    expected = [
        score
        for name in ("text", "more")
        for score in tokens(run(pairs, spec, store, corpus=texts[name]))["norm_difference@1"]
    ]
    np.testing.assert_allclose(sorted(tokens(record)["norm_difference@1"]), sorted(expected), rtol=1e-4)
    result: Any = record.result()
    assert all(index.id in result.stored for index in parts)
    assert result.samples == sum(index.samples for index in parts)
    # What it costs is known without a model, for methods of either kind.
    size = PairSize(num_layers=3, d_model=32, vocab_size=300, tokens_per_second=1000.0)
    for name in (ANALYSIS, "crosscoder"):
        assert get_method(name).estimate(size, get_method(name).Params(activations=both)).forward_passes == 0
    cost = execute.estimate(size, [(ANALYSIS, {"activations": both}), (LENS, {"activations": both})])
    assert (cost.tokens, cost.forward_passes) == (0, 0)
    assert cost.bytes > 2 * 40 * result.tokens


def test_what_cannot_be_read_is_refused_in_words(
    spec: Any, pairs: Any, texts: dict[str, str], store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, late = collected(pairs, spec, texts["text"]), collected(pairs, spec, texts["more"], layers=(2,))
    foreign = collected(pairs, save_pair(tmp_path / "other", None), texts["text"])
    for ids, layers, complaint in (
        (index.id, [2], "holds the layers 0, 1 of 3, not 2"),
        (foreign.id, [1], "of another pair"),
        (f"{index.id},{index.id}", [1], "more than once"),
        (f"{index.id},{late.id}", [1], "no layer in common"),
    ):
        with pytest.raises(InvalidInput, match=complaint):
            run(pairs, spec, store, activations=ids, layers=layers)
    with pytest.raises(UnknownName, match="list_activations"):
        run(pairs, spec, store, activations="activations-000000000000")
    with pytest.raises(InvalidInput, match="activations"):
        run(pairs, spec, store, "kl", activations=index.id)  # needs logits

    def stop(done: float, total: float | None = None, message: str = "") -> None:
        if "stored" in message:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        execute.run_methods(pairs, spec, [(ANALYSIS, {"activations": index.id, "layers": [1]})], store, stop)
