"""Activations in memory and on disk, against plain forward passes sample by sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing_mcp.core.errors import InvalidInput, OutOfRoom, UnknownName
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.preprocessing import activation_sources
from diffing_mcp.preprocessing.activation_collection import CollectionParams, collect, find_collection
from diffing_mcp.preprocessing.activation_rows import ActivationRows, MemoryRows, Moments
from diffing_mcp.preprocessing.activation_sources import ActivationSourceParams, activations_of
from diffing_mcp.preprocessing.activation_store import ActivationStore
from diffing_mcp.preprocessing.corpora import CorpusParams, load_corpus
from diffing_mcp.preprocessing.text_sources import source_identity
from tests.preprocessing.plain_rows import LAYERS, check_rows, expected
from tests.word_pairs import save_pair


@pytest.mark.parametrize("skip_first", [0, 1, 4])
def test_in_memory_rows_are_those_of_plain_passes(pair: LoadedPair, texts: str, skip_first: int) -> None:
    readers = activations_of(pair, ActivationSourceParams(corpus=texts, skip_first=skip_first), LAYERS)
    wanted = expected(pair, texts, skip_first)
    for layer in LAYERS:
        check_rows(readers[layer], wanted[layer])
    differences = {layer: torch.cat([block.difference for block in readers[layer].blocks(64)]) for layer in LAYERS}
    assert differences[0].abs().max() == 0
    assert differences[1].abs().max() > 0.01


def test_nothing_is_written_and_the_token_limit_cuts_the_text(
    pair: LoadedPair, texts: str, store: ActivationStore
) -> None:
    readers = activations_of(pair, ActivationSourceParams(corpus=texts, max_activation_tokens=50), (1,))
    base, finetuned, tokens = expected(pair, texts, 1)[1]
    check_rows(readers[1], (base[:50], finetuned[:50], tokens[:50]))
    assert not store.folder.exists()


def test_rows_that_do_not_fit_into_memory_are_refused_with_the_way_out(
    pair: LoadedPair, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation_sources, "MEMORY_SHARE", 0.0)
    with pytest.raises(OutOfRoom, match="diffing activations collect"):
        activations_of(pair, ActivationSourceParams(corpus=texts), (1,))


def test_dropping_every_token_is_refused(pair: LoadedPair, texts: str) -> None:
    with pytest.raises(InvalidInput, match="skip_first"):
        activations_of(pair, ActivationSourceParams(corpus=texts, skip_first=1000), (1,))


def test_a_stored_collection_reads_like_memory(pair: LoadedPair, texts: str, store: ActivationStore) -> None:
    params = CollectionParams(corpus=texts, layers=(0, 0.5))
    index = collect(store, pair, params)
    assert index.finished
    assert len(index.shards) > 3
    assert index.layers == list(LAYERS)
    assert find_collection(store, pair.spec, params) == index == collect(store, pair, params)
    wanted = expected(pair, texts, 1)
    readers = activations_of(pair, ActivationSourceParams(activations=index.id), LAYERS)
    for layer in LAYERS:
        check_rows(readers[layer], wanted[layer])
        statistics = store.statistics(index, layer)
        base, finetuned, _ = (
            values.double() if isinstance(values, torch.Tensor) else values for values in wanted[layer]
        )
        assert isinstance(base, torch.Tensor)
        assert isinstance(finetuned, torch.Tensor)
        for name, values in (("base", base), ("finetuned", finetuned), ("difference", finetuned - base)):
            torch.testing.assert_close(statistics[name].mean, values.mean(0), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(statistics[name].std, values.std(0, correction=0), atol=1e-5, rtol=1e-4)
    limited = activations_of(pair, ActivationSourceParams(activations=index.id, max_activation_tokens=120), (1,))[1]
    check_rows(limited, (wanted[1][0][:120], wanted[1][1][:120], wanted[1][2][:120]))
    identity = source_identity(ActivationSourceParams(activations=index.id))
    assert identity == {"activations": {"id": index.id, "content_hash": index.content_hash}}


def test_the_identical_pair_differs_nowhere(tmp_path: Path, texts: str, store: ActivationStore) -> None:
    with ModelPairs().use(save_pair(tmp_path / "same", None)) as same:
        index = collect(store, same, CollectionParams(corpus=texts, layers=(1,)))
    assert store.statistics(index, 1)["difference"].std.abs().max() == 0


def test_the_rows_of_two_layers_are_told_apart(pair: LoadedPair, texts: str, store: ActivationStore) -> None:
    index = collect(store, pair, CollectionParams(corpus=texts, layers=LAYERS))
    readers = store.open(index.id, pair.spec, LAYERS)
    assert readers[0].content_hash != readers[1].content_hash


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_smaller_dtypes_are_the_rounded_rows(pair: LoadedPair, texts: str, store: ActivationStore, dtype: str) -> None:
    index = collect(store, pair, CollectionParams.model_validate({"corpus": texts, "layers": [1], "dtype": dtype}))
    [block] = store.open(index.id, pair.spec, [1])[1].blocks(10**6)
    torch.testing.assert_close(
        block.base, expected(pair, texts, 1)[1][0].to(getattr(torch, dtype)).float(), atol=1e-2, rtol=1e-2
    )
    assert torch.equal(block.base, block.base.to(getattr(torch, dtype)).float())


def test_another_pair_a_missing_layer_and_an_unknown_id_are_refused(
    tmp_path: Path, pair: LoadedPair, texts: str, store: ActivationStore
) -> None:
    index = collect(store, pair, CollectionParams(corpus=texts, layers=(1,)))
    with pytest.raises(InvalidInput, match="holds the layers 1"):
        store.open(index.id, pair.spec, [2])
    with pytest.raises(InvalidInput, match="another pair"):
        store.open(index.id, save_pair(tmp_path / "other", None), [1])
    with pytest.raises(UnknownName, match="list_activations"):
        source_identity(ActivationSourceParams(activations="activations-../../etc"))


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    rows=st.integers(1, 60),
    pool_rows=st.integers(1, 50),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_every_row_comes_once_whatever_the_block(
    lengths: list[int], rows: int, pool_rows: int, seed: int, data: st.DataObject
) -> None:
    count = sum(lengths)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    memory = MemoryRows(count, 1, [0], torch.float32)
    values = torch.arange(count, dtype=torch.float32).unsqueeze(1)
    memory.put(0, values, -values, torch.arange(count))
    starts = torch.tensor([0, *lengths]).cumsum(0)
    reader = ActivationRows(0, 1, count, "", starts, torch.arange(count), 0, memory.source(0), pool_rows)
    blocks = list(reader.blocks(rows, seed=seed, start=start, stop=stop))
    assert all(len(block.tokens) == rows for block in blocks[:-1])
    order = [int(token) for block in blocks for token in block.tokens]
    assert sorted(order) == list(range(start, stop))
    assert all(
        torch.equal(block.base[:, 0], block.tokens.float()) and torch.equal(block.finetuned, -block.base)
        for block in blocks
    )
    again = [int(token) for block in reader.blocks(rows, seed=seed, start=start, stop=stop) for token in block.tokens]
    assert again == order


@given(st.lists(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=6), min_size=1, max_size=5))
def test_merged_moments_are_those_of_all_rows(parts: list[list[float]]) -> None:
    merged = Moments.of(torch.tensor(parts[0], dtype=torch.float64).unsqueeze(1))
    for part in parts[1:]:
        merged = merged.merged(Moments.of(torch.tensor(part, dtype=torch.float64).unsqueeze(1)))
    values = torch.tensor([value for part in parts for value in part], dtype=torch.float64)
    torch.testing.assert_close(merged.mean[0], values.mean(), atol=1e-7, rtol=1e-9)
    torch.testing.assert_close(merged.std[0], values.std(correction=0), atol=1e-6, rtol=1e-9)


def test_training_data_is_a_corpus_and_an_unknown_organism_is_not() -> None:
    corpus = load_corpus(CorpusParams(corpus="training:cake_bake"))
    assert corpus.kind == "text"
    assert len(corpus.documents) > 100
    assert load_corpus(CorpusParams(corpus="training:flattery")).kind == "chat"
    for wrong in ("training:nothing", "training:../corpora", "training:"):
        with pytest.raises(UnknownName, match="cake_bake"):
            load_corpus(CorpusParams(corpus=wrong))
