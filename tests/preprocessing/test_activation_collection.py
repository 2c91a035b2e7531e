"""Collections on disk: shards, stops, kills, full disks, other processes, damage and deletion."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from transformers import LlamaForCausalLM

from diffing_mcp.core.errors import Cancelled, InvalidInput, OutOfRoom
from diffing_mcp.core.settings import settings as project_settings
from diffing_mcp.model_pairs import loading
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.resident import ResidentModel
from diffing_mcp.model_pairs.specs import ModelFiles
from diffing_mcp.preprocessing import activation_collection
from diffing_mcp.preprocessing.activation_collection import CollectionParams, collect, collection_key
from diffing_mcp.preprocessing.activation_sources import ActivationSourceParams
from diffing_mcp.preprocessing.activation_store import ActivationStore
from diffing_mcp.preprocessing.activation_summary import broken_rows
from diffing_mcp.preprocessing.text_sources import source_identity
from tests.preprocessing.plain_rows import LAYERS, check_rows, expected, stop_at
from tests.word_pairs import save_pair


@pytest.mark.long
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


def test_cancelled_collection_is_not_readable_and_goes_on_where_it_stopped(
    pair: LoadedPair, texts: str, store: ActivationStore
) -> None:
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


def test_a_killed_collection_goes_on_at_the_last_finished_shard(
    pair: LoadedPair, texts: str, store: ActivationStore
) -> None:
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from diffing_mcp.model_pairs.residency import ModelPairs
        from diffing_mcp.model_pairs.specs import PairSpec
        from diffing_mcp.preprocessing import activation_collection
        from diffing_mcp.preprocessing.activation_store import ActivationStore
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
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=False
    )
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


def test_no_room_is_refused_before_anything_is_written(
    pair: LoadedPair, texts: str, store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_broken_index_is_listed_can_be_deleted_and_is_replaced(
    pair: LoadedPair, texts: str, store: ActivationStore
) -> None:
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
