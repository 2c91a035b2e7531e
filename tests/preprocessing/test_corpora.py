"""Local, bundled and hub corpora."""

import json
import string
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.preprocessing.corpora import CorpusParams, corpus_identity, load_corpus, parse_hub

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]


def test_bundled_corpora() -> None:
    texts = load_corpus(CorpusParams())
    assert texts.kind == "text"
    assert len(texts.documents) > 100
    chats = load_corpus(CorpusParams(corpus="chat_exchanges"))
    assert chats.kind == "chat"
    assert {message["role"] for message in chats.documents[0]} >= {"user", "assistant"}


def test_formats_give_the_same_documents(tmp_path: Path) -> None:
    texts = [f"text number {index}" for index in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n\n")
    (tmp_path / "b.txt").write_text("\n".join(texts))
    (tmp_path / "c.txt").write_text("\r\n\r\n\r\n".join(texts), newline="")
    parquet.write_table(pa.table({"text": texts, "other": list(range(20))}), tmp_path / "d.parquet")
    parquet.write_table(pa.table({"body": texts}), tmp_path / "e.parquet")
    corpora = [
        load_corpus(CorpusParams(corpus=str(tmp_path / name))) for name in ("a.jsonl", "b.txt", "c.txt", "d.parquet")
    ]
    corpora.append(load_corpus(CorpusParams(corpus=str(tmp_path / "e.parquet"), column="body")))
    assert len({corpus.content_hash for corpus in corpora}) == 1
    assert sorted(corpora[0].documents) == sorted(texts)
    assert corpora[0].documents != tuple(texts)  # drawn in a seeded order
    other = load_corpus(CorpusParams(corpus=str(tmp_path / "a.jsonl"), seed=1))
    assert sorted(other.documents) == sorted(texts)
    assert other.documents != corpora[0].documents


def test_paragraphs_and_chats(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\none\ntwo\n\nthree\n\n\n")
    assert sorted(load_corpus(CorpusParams(corpus=str(tmp_path / "a.txt"))).documents) == ["one\ntwo", "three"]
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": CHAT}))
    chat = load_corpus(CorpusParams(corpus=str(tmp_path / "b.jsonl")))
    assert chat.kind == "chat"
    assert chat.documents == (CHAT,)
    parquet.write_table(pa.table({"messages": [CHAT, CHAT]}), tmp_path / "c.parquet")
    assert load_corpus(CorpusParams(corpus=str(tmp_path / "c.parquet"))).documents == (CHAT, CHAT)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one line")
    before = corpus_identity(CorpusParams(corpus=str(file)))
    file.write_text("another line")
    assert corpus_identity(CorpusParams(corpus=str(file))) != before


def test_half_characters_become_replacement_characters(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(r'{"text": "\ud83e cut, \ud83e\uddc1 whole"}')
    assert load_corpus(CorpusParams(corpus=str(tmp_path / "a.jsonl"))).documents == ("\ufffd cut, \U0001f9c1 whole",)


@pytest.mark.parametrize(
    "name",
    ["no_such_corpus", "/no/such/file.jsonl", "file.csv", "a\0b.txt", "long" * 200 + ".txt", "~nobody-at-all/a.txt"],
)
def test_unknown(name: str) -> None:
    with pytest.raises(UnknownName):
        load_corpus(CorpusParams(corpus=name))


def test_datasets_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of parquet files is a dataset to `datasets`, as a hub repository is."""
    from datasets.packaged_modules.parquet.parquet import Parquet

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(Parquet, "SLEEP_ON_THREADS_SHUTDOWNS", False)  # 5 s, for the end of an interpreter
    (tmp_path / "data").mkdir()
    texts = [f"row {index}" for index in range(30)]
    parquet.write_table(pa.table({"body": texts}), tmp_path / "data" / "validation-00000-of-00001.parquet")
    name = f"hub:{tmp_path}#body@validation"
    corpus = load_corpus(CorpusParams(corpus=name, max_samples=100))
    assert sorted(corpus.documents) == sorted(texts)
    assert load_corpus(CorpusParams(corpus=name, max_samples=100, seed=3)).documents != corpus.documents
    with pytest.raises(InvalidInput, match="columns: body"):
        load_corpus(CorpusParams(corpus=f"hub:{tmp_path}#wrong@validation"))
    with pytest.raises(InvalidInput, match="could not be read"):
        load_corpus(CorpusParams(corpus=f"hub:{tmp_path}/missing"))


part = st.text(alphabet=string.ascii_letters + string.digits + "-_./", min_size=1, max_size=20)


@given(part, st.none() | part, st.none() | part, st.none() | part)
def test_hub_names_round_trip(identifier: str, config: str | None, column: str | None, split: str | None) -> None:
    name = (
        f"hub:{identifier}"
        + (f":{config}" if config else "")
        + (f"#{column}" if column else "")
        + (f"@{split}" if split else "")
    )
    assert parse_hub(name) == (identifier, config, column, split or "train")


@pytest.mark.parametrize("name", ["hub:", "hub:a@", "hub:a#", "hub::x", "hub:a:"])
def test_malformed_hub_names(name: str) -> None:
    with pytest.raises(InvalidInput):
        parse_hub(name)


def test_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match="at most max_tokens"):
        CorpusParams(max_tokens=5, min_tokens=6)
    assert CorpusParams(max_tokens=1).shortest == 1
