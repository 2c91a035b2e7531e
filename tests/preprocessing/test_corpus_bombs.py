"""Small files that unpack to far more than memory holds: refused, or read within a bound."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.preprocessing import corpora
from diffing_mcp.preprocessing.corpora import CorpusParams, load_corpus

MEGABYTE = 1_000_000


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test reaches quickly."""
    monkeypatch.setattr(corpora, "MOST_CHARACTERS", 8 * MEGABYTE)
    monkeypatch.setattr(corpora, "UNPACKED_BYTES", 4 * MEGABYTE)


def load(path: Path) -> corpora.Corpus:
    return load_corpus(CorpusParams(corpus=str(path)))


@pytest.mark.parametrize("chats", [False, True])
def test_one_long_text_in_very_many_rows_of_parquet(tmp_path: Path, little_room: None, chats: bool) -> None:
    """20 GB of text in a few kilobytes: it is stored once."""
    text = "a bomb " * (MEGABYTE // 7)
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array([text]))
    if chats:
        roles = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["user"]))
        messages = pa.StructArray.from_arrays([roles, rows], ["role", "content"])
        rows = pa.ListArray.from_arrays(pa.array(range(20_001), pa.int32()), messages)
    path = tmp_path / "bomb.parquet"
    parquet.write_table(pa.table({"messages" if chats else "text": rows}), path, compression="zstd")
    assert path.stat().st_size < MEGABYTE
    del rows
    before, pool = pa.total_allocated_bytes(), pa.default_memory_pool()
    loaded = load(path)
    assert len(loaded.documents) == 9, "as many as fill the bound"
    assert loaded.kind == ("chat" if chats else "text")
    assert pool.max_memory() - before < 200 * MEGABYTE


@pytest.mark.parametrize("compression", ["zstd", "gzip", "brotli", "lz4"])
def test_a_text_of_parquet_that_unpacks_to_far_more_than_its_size(
    tmp_path: Path, little_room: None, compression: str
) -> None:
    path = tmp_path / "bomb.parquet"
    table = pa.table({"text": ["a" * (6 * MEGABYTE), "b"]})
    parquet.write_table(table, path, compression=compression, use_dictionary=False)
    assert path.stat().st_size < MEGABYTE / 10
    with pytest.raises(InvalidInput, match="unpacks to 6 MB"):
        load(path)


def test_a_list_of_parquet_with_very_many_empty_places(tmp_path: Path, little_room: None) -> None:
    nothing = pa.nulls(2 * MEGABYTE, pa.struct({"role": pa.string(), "content": pa.string()}))
    rows = pa.ListArray.from_arrays(pa.array([0, 2 * MEGABYTE], pa.int32()), nothing)
    path = tmp_path / "bomb.parquet"
    parquet.write_table(pa.table({"messages": rows}), path, compression="zstd")
    assert path.stat().st_size < MEGABYTE / 10
    with pytest.raises(InvalidInput, match=r"messages.+unpacks to 8 MB"):
        load(path)


def test_text_that_compresses_well_is_read_as_ever(tmp_path: Path) -> None:
    texts = [f"the same words again and again, number {place}" for place in range(2000)]
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="zstd")
    assert sorted(load(tmp_path / "a.parquet").documents) == sorted(texts)


@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
def test_a_sparse_file_is_no_larger_in_memory_than_the_bound(tmp_path: Path, little_room: None, suffix: str) -> None:
    """Terabytes of zeros that take no room on the disk."""
    path = tmp_path / f"bomb.{suffix}"
    with path.open("wb") as file:
        file.truncate(10**12)
    if suffix == "jsonl":
        with pytest.raises(InvalidInput, match=r"Line 1 of bomb\.jsonl has more than 8000000 characters"):
            load(path)
    else:
        assert len(load(path).documents[0]) == 8 * MEGABYTE


def test_many_lines_are_read_up_to_the_bound(tmp_path: Path, little_room: None) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{place} " + "x" * MEGABYTE}) for place in range(12)))
    assert len(load(path).documents) == 8


@pytest.mark.parametrize(
    ("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", None)]
)
def test_packed_files_are_not_unpacked(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes] | None) -> None:
    plain = json.dumps({"text": "0" * MEGABYTE}).encode()
    packed = pack(plain) if pack else pa.compress(plain, codec="zstd", asbytes=True)
    (tmp_path / f"bomb.jsonl.{suffix}").write_bytes(packed)
    with pytest.raises(UnknownName, match=r"\.jsonl, \.txt, \.parquet"):
        load(tmp_path / f"bomb.jsonl.{suffix}")
    # Nor under a name that says otherwise.
    for name in ("bomb.jsonl", "bomb.txt", "bomb.parquet"):
        (tmp_path / name).write_bytes(packed)
        with pytest.raises(InvalidInput, match=r"no documents|not a readable parquet"):
            load(tmp_path / name)
