"""Activations in memory and on disk, against plain forward passes sample by sample."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from model_pairs import loading
from model_pairs.loading import ResidentModel
from model_pairs.pair import LoadedPair
from model_pairs.residency import ModelPairs
from model_pairs.specs import ModelFiles
from organisms.errors import Cancelled, InvalidInput, OutOfRoom, UnknownName
from organisms.settings import settings as project_settings
from preprocessing import activation_collection, activation_sources
from preprocessing.activation_collection import CollectionParams, collect, collection_key, find_collection
from preprocessing.activation_mixture import mixed
from preprocessing.activation_rows import ActivationRows, MemoryRows, Moments
from preprocessing.activation_sources import ActivationSourceParams, activations_of, source_identity
from preprocessing.activation_store import ActivationStore, default_activation_store
from preprocessing.activation_summary import broken_rows
from preprocessing.activations import PairedActivations
from preprocessing.corpora import CorpusParams, load_corpus
from preprocessing.tokenize import tokenize
from tests.preprocessing.tiny_pair import save_pair, write_texts

LAYERS = (0, 1)


def change(model: LlamaForCausalLM) -> None:
    """Layer 1 writes something else; layer 0 is untouched."""
    model.model.layers[1].mlp.down_proj.weight.mul_(1.5)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedPair]:
    with ModelPairs().use(save_pair(tmp_path_factory.mktemp("activations"), change)) as pair:
        yield pair


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl", 60, 20))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ActivationStore]:
    """The store of a fresh data folder, with shards of about 100 rows of two float32 layers."""
    monkeypatch.setenv("DIFFING_DATA_FOLDER", str(tmp_path / "data"))
    monkeypatch.setattr(activation_collection, "SHARD_BYTES", 100 * 2 * 2 * 32 * 4)
    project_settings.cache_clear()
    yield default_activation_store()
    project_settings.cache_clear()


def expected(pair: LoadedPair, texts: str, skip_first: int) -> dict[int, tuple[torch.Tensor, torch.Tensor, list[int]]]:
    """Layer -> base and finetuned rows and their tokens, one sample at a time, no batches."""
    params = CorpusParams(corpus=texts)
    corpus = tokenize(load_corpus(params), pair, params)
    found = {}
    for layer in LAYERS:
        sides = []
        tokens: list[int] = []
        for side in ("base", "finetuned"):
            rows, tokens = [], []
            for ids, start in zip(corpus.ids, corpus.content_start, strict=True):
                inputs = torch.tensor([ids])
                hidden = pair.forward(side, inputs, torch.ones_like(inputs), layers=(layer,), logits=False).hidden[layer]
                rows.append(hidden[0, start + skip_first :])
                tokens += ids[start + skip_first :]
            sides.append(torch.cat(rows).float())
        found[layer] = (sides[0], sides[1], tokens)
    return found


def check_rows(reader: PairedActivations, wanted: tuple[torch.Tensor, torch.Tensor, list[int]]) -> None:
    base, finetuned, tokens = wanted
    assert reader.num_tokens == len(tokens)
    for seed in (None, 3):
        blocks = list(reader.blocks(37, seed=seed))
        order = torch.cat([block.tokens for block in blocks])
        assert sorted(order.tolist()) == list(range(len(tokens)))
        torch.testing.assert_close(torch.cat([block.base for block in blocks]), base[order], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.cat([block.finetuned for block in blocks]), finetuned[order], atol=1e-4, rtol=1e-4)
    samples, places = reader.locate(torch.arange(reader.num_tokens))
    assert [reader.sample_ids(int(sample))[int(place)] for sample, place in zip(samples, places, strict=True)] == tokens
    assert torch.equal(torch.cat([block.tokens for block in reader.samples()]), torch.arange(reader.num_tokens))
    assert len(list(reader.samples())) == reader.num_samples == int(samples[-1]) + 1


@pytest.mark.parametrize("skip_first", [0, 1, 4])
def test_in_memory_rows_are_those_of_plain_passes(pair: LoadedPair, texts: str, skip_first: int) -> None:
    readers = activations_of(pair, ActivationSourceParams(corpus=texts, skip_first=skip_first), LAYERS)
    wanted = expected(pair, texts, skip_first)
    for layer in LAYERS:
        check_rows(readers[layer], wanted[layer])
    differences = {layer: torch.cat([block.difference for block in readers[layer].blocks(64)]) for layer in LAYERS}
    assert differences[0].abs().max() == 0
    assert differences[1].abs().max() > 0.01


def test_nothing_is_written_and_the_token_limit_cuts_the_text(pair: LoadedPair, texts: str, store: ActivationStore) -> None:
    readers = activations_of(pair, ActivationSourceParams(corpus=texts, max_activation_tokens=50), (1,))
    base, finetuned, tokens = expected(pair, texts, 1)[1]
    check_rows(readers[1], (base[:50], finetuned[:50], tokens[:50]))
    assert not store.folder.exists()


def test_rows_that_do_not_fit_into_memory_are_refused_with_the_way_out(pair: LoadedPair, texts: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
        base, finetuned, _ = (values.double() if isinstance(values, torch.Tensor) else values for values in wanted[layer])
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


def stop_at(row: int) -> Callable[..., None]:
    """A `Progress` that cancels beyond this row."""

    def stop(done: float, total: float | None = None, message: str = "") -> None:
        if done > row:
            raise Cancelled("stop")

    return stop


def test_a_sequential_pair_loads_one_model_a_shard(
    pair: LoadedPair, texts: str, store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def counted(files: ModelFiles, *rest: Any) -> ResidentModel:
        loads.append(files.id)
        return load_model(files, *rest)

    load_model = loading.load_model
    monkeypatch.setattr(loading, "load_model", counted)
    monkeypatch.setenv("DIFFING_CACHE_FOLDER", str(tmp_path / "cache"))
    project_settings.cache_clear()
    size = Path(pair.spec.base.files.id, "model.safetensors").stat().st_size
    wanted = expected(pair, texts, 1)
    with ModelPairs(memory_limit=int(1.5 * size)).use(pair.spec) as turns:
        assert turns.sequential
        whole = collect(store, turns, CollectionParams(corpus=texts, layers=LAYERS))
        assert len(whole.shards) == 1, "larger shards where each costs a load"
        assert len(loads) == 2
        check_rows(store.open(whole.id, turns.spec, [1])[1], wanted[1])
        # Small shards, and a stop between them: each begins with the model that is in memory.
        params = CollectionParams(corpus=texts, layers=(1,))
        monkeypatch.setattr(activation_collection, "SEQUENTIAL_SHARD_BYTES", activation_collection.SHARD_BYTES)
        loads.clear()
        with pytest.raises(Cancelled):
            collect(store, turns, params, stop_at(250))
        begun = store.read(collection_key(turns.spec, params))
        assert begun is not None
        index = collect(store, turns, params)
    assert 0 < len(begun.shards) < len(index.shards) - 1
    assert len(loads) <= len(index.shards) + 1, "one a shard, one more for the shard that was cut off"
    check_rows(store.open(index.id, pair.spec, [1])[1], wanted[1])


def test_a_collection_goes_on_with_shards_of_another_size(
    pair: LoadedPair, texts: str, store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = CollectionParams(corpus=texts, layers=LAYERS)
    with pytest.raises(Cancelled):
        collect(store, pair, params, stop_at(250))
    [partial] = store.list()
    monkeypatch.setattr(activation_collection, "SHARD_BYTES", 10 * activation_collection.SHARD_BYTES)
    index = collect(store, pair, params)
    assert index.shards[: len(partial.shards)] == partial.shards
    assert len(index.shards) == len(index.plan) == len(partial.shards) + 1
    check_rows(store.open(index.id, pair.spec, [1])[1], expected(pair, texts, 1)[1])


@pytest.fixture(scope="module")
def more_texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_texts(tmp_path_factory.mktemp("more") / "texts.jsonl", 120, 20, seed=1))


def test_several_collections_are_read_as_one_mixture(
    pair: LoadedPair, texts: str, more_texts: str, store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [collect(store, pair, CollectionParams(corpus=name, layers=LAYERS)) for name in (texts, more_texts)]
    opened = [store.open(index.id, pair.spec, [1])[1] for index in parts]
    mixture = ActivationSourceParams(activations=f"{parts[0].id}, {parts[1].id}")
    reader = activations_of(pair, mixture, [1])[1]
    assert reader.num_tokens == sum(index.tokens for index in parts)
    assert reader.num_samples == sum(index.samples for index in parts)
    # Every sample of either is there, whole and with its own rows.
    wanted = {tuple(part.sample_ids(number)): rows.base for part in opened for number, rows in enumerate(part.samples())}
    for number, rows in enumerate(reader.samples()):
        assert torch.equal(rows.base, wanted.pop(tuple(reader.sample_ids(number))))
    assert not wanted
    [whole] = reader.blocks(10**6)
    for seed in (None, 3):
        for block in reader.blocks(37, seed=seed):
            assert torch.equal(block.finetuned, whole.finetuned[block.tokens])
    # Any stretch holds both in proportion, the end that is held out too; so does what a limit leaves.
    first_ids = {tuple(opened[0].sample_ids(number)) for number in range(opened[0].num_samples)}
    samples, _ = reader.locate(torch.arange(reader.num_tokens))
    of_first = torch.tensor([tuple(reader.sample_ids(int(sample))) in first_ids for sample in samples]).double()
    share = parts[0].tokens / reader.num_tokens
    for stretch in (of_first[:300], of_first[-300:], of_first[500:800]):
        assert stretch.mean() == pytest.approx(share, abs=0.06)
    limited = activations_of(pair, mixture.model_copy(update={"max_activation_tokens": 300}), [1])[1]
    assert torch.equal(next(iter(limited.blocks(300))).base, whole.base[:300])
    assert [part["id"] for part in source_identity(mixture)["activations"]] == [index.id for index in parts]
    assert len({reader.content_hash, *(part.content_hash for part in opened)}) == 3


def test_shuffled_pools_of_a_mixture_draw_from_all() -> None:
    def part(samples: int, value: float) -> ActivationRows:
        rows = MemoryRows(10 * samples, 1, [0], torch.float32)
        rows.put(0, torch.full((10 * samples, 1), value), torch.zeros(10 * samples, 1), torch.arange(10 * samples))
        return ActivationRows(0, 1, 10 * samples, str(value), 10 * torch.arange(samples + 1), torch.zeros(10 * samples), 1, rows.source(0), 1600)

    reader = mixed([part(3000, 0.0), part(1000, 1.0)])
    shares = [float(block.base.mean()) for block in reader.blocks(1600, seed=0)]
    assert len(shares) == 25
    assert all(share == pytest.approx(0.25, abs=0.1) for share in shares)


def test_collections_that_do_not_fit_together_are_refused(
    tmp_path: Path, pair: LoadedPair, texts: str, more_texts: str, store: ActivationStore
) -> None:
    first = collect(store, pair, CollectionParams(corpus=texts, layers=LAYERS))
    rounded = collect(store, pair, CollectionParams(corpus=more_texts, layers=(1,), dtype="bfloat16"))
    with ModelPairs().use(save_pair(tmp_path / "other", None)) as other:
        foreign = collect(store, other, CollectionParams(corpus=texts, layers=(1,)))
    for ids, layer, complaint in (
        (f"{first.id},{rounded.id}", 1, "one dtype"),
        (f"{first.id},{rounded.id}", 0, "holds the layers 1"),
        (f"{first.id},{foreign.id}", 1, "another pair"),
        (f"{first.id},{first.id}", 1, "more than once"),
    ):
        with pytest.raises(InvalidInput, match=complaint):
            activations_of(pair, ActivationSourceParams(activations=ids), [layer])


def test_the_rows_of_two_layers_are_told_apart(pair: LoadedPair, texts: str, store: ActivationStore) -> None:
    index = collect(store, pair, CollectionParams(corpus=texts, layers=LAYERS))
    readers = store.open(index.id, pair.spec, LAYERS)
    assert readers[0].content_hash != readers[1].content_hash


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_smaller_dtypes_are_the_rounded_rows(pair: LoadedPair, texts: str, store: ActivationStore, dtype: str) -> None:
    index = collect(store, pair, CollectionParams.model_validate({"corpus": texts, "layers": [1], "dtype": dtype}))
    [block] = store.open(index.id, pair.spec, [1])[1].blocks(10**6)
    torch.testing.assert_close(block.base, expected(pair, texts, 1)[1][0].to(getattr(torch, dtype)).float(), atol=1e-2, rtol=1e-2)
    assert torch.equal(block.base, block.base.to(getattr(torch, dtype)).float())


def test_another_pair_a_missing_layer_and_an_unknown_id_are_refused(tmp_path: Path, pair: LoadedPair, texts: str, store: ActivationStore) -> None:
    index = collect(store, pair, CollectionParams(corpus=texts, layers=(1,)))
    with pytest.raises(InvalidInput, match="holds the layers 1"):
        store.open(index.id, pair.spec, [2])
    with pytest.raises(InvalidInput, match="another pair"):
        store.open(index.id, save_pair(tmp_path / "other", None), [1])
    with pytest.raises(UnknownName, match="list_activations"):
        source_identity(ActivationSourceParams(activations="activations-../../etc"))


def test_cancelled_collection_is_not_readable_and_goes_on_where_it_stopped(pair: LoadedPair, texts: str, store: ActivationStore) -> None:
    params = CollectionParams(corpus=texts, layers=LAYERS)

    with pytest.raises(Cancelled):
        collect(store, pair, params, stop_at(250))
    [partial] = store.list()
    assert 0 < len(partial.shards) < len(partial.plan)
    with pytest.raises(InvalidInput, match="not finished"):
        store.finished(partial.id)
    seen: list[float] = []
    index = collect(store, pair, params, lambda done, total=None, message="": seen.append(done))
    assert min(seen) == partial.shards[-1].stop
    assert index.shards[: len(partial.shards)] == partial.shards
    check_rows(store.open(index.id, pair.spec, [1])[1], expected(pair, texts, 1)[1])


def test_a_killed_collection_goes_on_at_the_last_finished_shard(pair: LoadedPair, texts: str, store: ActivationStore) -> None:
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from model_pairs.residency import ModelPairs
        from model_pairs.specs import PairSpec
        from preprocessing import activation_collection
        from preprocessing.activation_store import ActivationStore
        activation_collection.SHARD_BYTES = int(sys.argv[4])
        def kill(done, total=None, message=""):
            if done > 250:
                os.kill(os.getpid(), signal.SIGKILL)
        with ModelPairs().use(PairSpec.model_validate_json(sys.argv[1])) as pair:
            params = activation_collection.CollectionParams(corpus=sys.argv[2], layers=(0, 1))
            activation_collection.collect(ActivationStore(Path(sys.argv[3])), pair, params, kill)
        """
    )
    arguments = [pair.spec.model_dump_json(), texts, str(store.folder), str(activation_collection.SHARD_BYTES)]
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", program, *arguments], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=False)
    assert ended.returncode == -signal.SIGKILL
    [partial] = store.list()
    assert not partial.finished
    assert 0 < len(partial.shards) < len(partial.plan)
    assert list((store.folder / partial.key).glob(".writing-*"))
    index = collect(store, pair, CollectionParams(corpus=texts, layers=LAYERS))
    assert index.shards[: len(partial.shards)] == partial.shards
    assert not list((store.folder / index.key).glob(".writing-*"))
    assert store.damaged(index) == []
    check_rows(store.open(index.id, pair.spec, [0])[0], expected(pair, texts, 1)[0])


def test_no_room_is_refused_before_anything_is_written(pair: LoadedPair, texts: str, store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(store.folder.parent if store.folder.parent.exists() else "/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(OutOfRoom, match="MiB of disk"):
        collect(store, pair, CollectionParams(corpus=texts))
    assert store.list() == []


def test_a_disk_that_becomes_full_keeps_the_finished_shards(
    pair: LoadedPair, texts: str, store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = CollectionParams(corpus=texts, layers=LAYERS)
    write_all, calls = activation_collection._write_all, 0

    def full(file: BinaryIO, content: memoryview) -> None:
        nonlocal calls
        calls += 1
        if calls > 100:  # in the middle of a file
            write_all(file, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(file, content)

    with monkeypatch.context() as patched:
        patched.setattr(activation_collection, "_write_all", full)
        with pytest.raises(OutOfRoom, match="free space and call again"):
            collect(store, pair, params)
    [partial] = store.list()
    assert 0 < len(partial.shards) < len(partial.plan)
    index = collect(store, pair, params)
    assert index.shards[: len(partial.shards)] == partial.shards
    assert store.damaged(index) == []
    assert not list((store.folder / index.key).glob(".writing-*"))
    check_rows(store.open(index.id, pair.spec, [1])[1], expected(pair, texts, 1)[1])


def test_a_second_process_waits_for_the_first(pair: LoadedPair, texts: str, store: ActivationStore) -> None:
    params = CollectionParams(corpus=texts, layers=LAYERS)
    processes = multiprocessing.get_context("fork")
    begun, seen = processes.Event(), processes.Event()

    def first() -> None:
        def slow(done: float, total: float | None = None, message: str = "") -> None:
            begun.set()
            seen.wait(60)

        collect(store, pair, params, slow)

    other = processes.Process(target=first)
    other.start()
    assert begun.wait(60)
    messages = []

    def note(done: float, total: float | None = None, message: str = "") -> None:
        messages.append(message)
        seen.set()

    index = collect(store, pair, params, note)
    other.join(60)
    assert other.exitcode == 0
    assert index.finished
    assert set(messages) == {"waiting for another process that collects the same"}, "nothing was computed twice"
    check_rows(store.open(index.id, pair.spec, [1])[1], expected(pair, texts, 1)[1])


def test_values_beyond_float16_are_refused(tmp_path: Path, texts: str, store: ActivationStore) -> None:
    def enlarge(model: LlamaForCausalLM) -> None:
        model.model.layers[1].mlp.down_proj.weight.mul_(1e6)

    with ModelPairs().use(save_pair(tmp_path / "large", enlarge)) as large:
        with pytest.raises(InvalidInput, match=r"do not fit into float16.*dtype=float32"):
            collect(store, large, CollectionParams(corpus=texts, layers=(1,), dtype="float16"))
        assert not any(index.shards for index in store.list())
        assert collect(store, large, CollectionParams(corpus=texts, layers=(1,))).finished


def test_a_broken_index_is_listed_can_be_deleted_and_is_replaced(pair: LoadedPair, texts: str, store: ActivationStore) -> None:
    params = CollectionParams(corpus=texts, layers=(1,))
    index = collect(store, pair, params)
    file = store.folder / index.key / "index.json"
    for content in (b"{", file.read_bytes()[:-20], b"\xff\xfe", None):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        assert store.list() == []
        [row] = broken_rows(store)
        assert (row.id, row.broken, row.finished) == (index.id, True, False)
        assert "delete it" in row.as_text()
        assert row.megabytes > 0
        with pytest.raises(InvalidInput, match="Delete it"):
            source_identity(ActivationSourceParams(activations=index.id))
    assert collect(store, pair, params).content_hash == index.content_hash
    assert broken_rows(store) == []
    file.write_bytes(b"")
    assert store.delete(index.id) == index.id
    assert not (store.folder / index.key).exists()
    assert broken_rows(store) == []


def test_delete_takes_one_collection_and_damage_is_seen(pair: LoadedPair, texts: str, store: ActivationStore) -> None:
    first = collect(store, pair, CollectionParams(corpus=texts, layers=(0,)))
    second = collect(store, pair, CollectionParams(corpus=texts, layers=(1,)))
    with store.lock(second.key), pytest.raises(InvalidInput, match="being collected"):
        store.delete(second.id)
    assert store.delete(first.id) == first.id
    assert [index.id for index in store.list()] == [second.id]
    assert not (store.folder / first.key).exists()
    file = store.folder / second.key / "shard-00000" / "L1-base.bin"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    assert store.damaged(second) == ["shard-00000/L1-base.bin"]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    rows=st.integers(1, 60),
    pool_rows=st.integers(1, 50),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_every_row_comes_once_whatever_the_block(lengths: list[int], rows: int, pool_rows: int, seed: int, data: st.DataObject) -> None:
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
    assert all(torch.equal(block.base[:, 0], block.tokens.float()) and torch.equal(block.finetuned, -block.base) for block in blocks)
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
