"""Rows as people bring them: chats in all forms, and rows that are dropped, counted and named."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.preprocessing.corpora import Corpus, CorpusParams, corpus_identity, load_corpus
from diffing_mcp.preprocessing.corpus_rows import Dropped

ASKED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def read(file: Path, *rows: Any, column: str | None = None) -> Corpus:
    """The corpus of these rows: objects become JSON, text and bytes stand as they are."""
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    file.write_bytes(b"\n".join(lines))
    return load_corpus(CorpusParams(corpus=str(file), column=column))


@pytest.mark.parametrize(
    ("name", "content_hash"),
    [
        ("unrelated_texts", "809eb500acbe955c25f3b250b3fdbe20211899865fc0d5ae67bbdd2c85711992"),
        ("chat_exchanges", "02cde6d6feb1fbd1d7dba87ac309c8f48be522cf300ad3d6771ad703fe347c62"),
        ("training:cake_bake", "2db2f64212f3c9069e8dfe7e33371d7e2b9f0e00ecd14c98fa41c86c37adc1a2"),
        ("training:flattery", "c2c0f6e15897eacd1b94b163dc9972df34851575f012d8ca58f94a1e910e2d99"),
    ],
)
def test_runs_stored_on_bundled_corpora_are_still_found(name: str, content_hash: str) -> None:
    assert corpus_identity(CorpusParams(corpus=name)) == {"id": name, "content_hash": content_hash}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ASKED},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": ASKED[:1], "completion": ASKED[1:]},
        {"instruction": "Hi", "output": "Hello"},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"prompt": "Hi", "response": "Hello"},
        {"question": "Hi", "answer": "Hello", "source": 3},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image", "image": "x"}]},
                ASKED[1],
            ]
        },
        {
            "messages": [
                {"role": "user", "content": ["Hi"]},
                {"role": "assistant", "content": "Hello", "tool_calls": [{}]},
            ]
        },
    ],
)
def test_chats_in_every_form_read_alike(tmp_path: Path, row: dict[str, Any]) -> None:
    corpus = read(tmp_path / "a.jsonl", row)
    assert (corpus.kind, corpus.documents, corpus.dropped.count) == ("chat", (ASKED,), 0)


def test_pairs_of_columns_in_parquet(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"id": [1], "answer": ["Hello"], "question": ["Hi"]}), tmp_path / "a.parquet")
    assert load_corpus(CorpusParams(corpus=str(tmp_path / "a.parquet"))).documents == (ASKED,)


def test_parts_of_forms_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "two"}]
    corpus = read(
        tmp_path / "a.jsonl",
        {"instruction": "Translate.", "input": "chat", "output": "cat"},
        {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]},
    )
    assert sorted(corpus.documents, key=len, reverse=True) == [
        [{"role": "user", "content": "Translate.\n\nchat"}, {"role": "assistant", "content": "cat"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one\ntwo"}],
    ]


def test_a_named_column_holds_text_or_a_chat(tmp_path: Path) -> None:
    row = {"text": "no", "prompt": "yes", "turns": ASKED}
    assert read(tmp_path / "a.jsonl", row, column="prompt").documents == ("yes",)
    assert read(tmp_path / "b.jsonl", row, column="turns").documents == (ASKED,)


def test_bad_rows_are_dropped_counted_and_named(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    image = {"role": "user", "content": [{"type": "image"}]}
    corpus = read(
        tmp_path / "a.jsonl",
        {"messages": ASKED},
        "not json",
        "[" * 100_000,
        '{"messages": ' + "9" * 5000 + "}",
        b'{"messages": "\xff"}',
        {"messages": [ASKED[0], call]},
        {"messages": [image]},
        {"messages": 3},
        "",
        {"messages": [3]},
        {"body": "a"},
        {"messages": ASKED[::-1]},
        {"messages": []},
        {"text": "a plain text"},
        {"prompt": "Hi", "completion": None},
    )
    assert sorted(corpus.documents, key=str) == [ASKED[::-1], ASKED]
    assert corpus.dropped.count == 11
    lines = corpus.dropped.lines()
    for place, why in [
        (2, "not JSON"),
        (5, "not UTF-8"),
        (6, "'assistant' whose content is nothing"),
        (7, "'user' whose content is nothing"),
    ]:
        assert [line for line in lines if f"(a.jsonl, line {place})" in line and why in line], (place, lines)
    assert len(lines) == 9, "few reasons are told apart, so that the report stays short"
    assert "2 x other reasons (a.jsonl, lines 15, 14)" in lines
    assert corpus_identity(CorpusParams(corpus=str(tmp_path / "a.jsonl")))["dropped"] == "; ".join(lines)


def test_the_first_places_of_a_reason_are_named(tmp_path: Path) -> None:
    corpus = read(tmp_path / "a.jsonl", *["x" if number % 2 else {"text": f"text {number}"} for number in range(10)])
    assert (
        corpus.documents
        == read(tmp_path / "b.jsonl", *[{"text": f"text {number}"} for number in range(0, 10, 2)]).documents
    )
    assert corpus.dropped.lines() == ["5 x not JSON (Expecting value) (a.jsonl, lines 2, 4, 6, ...)"]
    numbers = dict(zip(corpus.documents, corpus.numbers, strict=True))
    assert numbers == {f"text {number}": number + 1 for number in range(0, 10, 2)}


def test_the_more_frequent_kind_is_kept(tmp_path: Path) -> None:
    text, chat = {"text": "a"}, {"messages": ASKED}
    for rows, kind, dropped in [
        ((text, chat, chat), "chat", "1 x a plain text among chats (a.jsonl, line 1)"),
        ((chat, text), "chat", "1 x a plain text among chats (a.jsonl, line 2)"),
        ((text, chat, text), "text", "1 x a chat among plain texts (a.jsonl, line 2)"),
    ]:
        corpus = read(tmp_path / "a.jsonl", *rows)
        assert (corpus.kind, corpus.dropped.lines()) == (kind, [dropped])
        (tmp_path / "a.jsonl").unlink()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b"", "It is empty"),
        ("a.jsonl", b"\xef\xbb\xbf", "It is empty"),
        ("a.txt", b"\r\n \r\n", "It is empty"),
        ("a.jsonl", b'{"text": ""}\n{"text": null}', "It is empty"),
        ("a.jsonl", b"[1]\n", r"a list, not a JSON object.*a\.jsonl, line 1"),
        (
            "a.jsonl",
            b'{"body": "a"}\n{"body": "b"}\n',
            r"2 x no column .*columns: body \(a\.jsonl, lines 1, 2\).*`column`",
        ),
        ("a.jsonl", b'{"text": 3}\n', "neither text nor a list of messages, but a number"),
        ("a.jsonl", b'{"question": "a", "answer": " "}\n', "'answer' holds blank text"),
        ("a.jsonl", b'{"messages": [{"content": "a"}]}\n', "without a role"),
        ("a.txt", "ascii".encode("utf-16"), "UTF-16"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "UTF-16"),
        ("a.txt", b"\xff\n", r"not UTF-8 \(a\.txt, document 1\)"),
        ("a.parquet", b"no parquet", "parquet"),
        ("a.parquet", b"", "parquet"),
    ],
)
def test_files_without_a_document(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=complaint):
        load_corpus(CorpusParams(corpus=str(tmp_path / name)))


def test_parquet_without_a_known_column(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"body": ["a"], "other": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match="columns: body, other"):
        load_corpus(CorpusParams(corpus=str(tmp_path / "a.parquet")))


def test_a_parquet_row_that_is_not_utf8_is_dropped(tmp_path: Path) -> None:
    values = pa.array([b"good", b"\xff\xfe", b"fine"]).view(pa.string())
    parquet.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    corpus = load_corpus(CorpusParams(corpus=str(tmp_path / "a.parquet")))
    assert sorted(corpus.documents) == ["fine", "good"]
    assert corpus.dropped.lines() == ["1 x not UTF-8 (a.parquet, row 2)"]


def test_bytes_that_editors_leave(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two\\u0000\\ud800"}\r\n')
    assert sorted(load_corpus(CorpusParams(corpus=str(tmp_path / "a.jsonl"))).documents) == ["one", "two\0\ufffd"]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\nt\0wo\r\n\r\nbad \xe9\r\n")
    corpus = load_corpus(CorpusParams(corpus=str(tmp_path / "a.txt")))
    assert sorted(corpus.documents) == ["one", "t\0wo"]
    assert corpus.dropped.lines() == ["1 x not UTF-8 (a.txt, document 3)"]


def test_half_characters_in_roles_and_columns(tmp_path: Path) -> None:
    corpus = read(tmp_path / "a.jsonl", r'{"messages": [{"role": "\ud800", "content": "a"}]}', r'{"\ud800": "a"}')
    assert corpus.documents == ([{"role": "\ufffd", "content": "a"}],)
    assert corpus.dropped.lines() == [
        "1 x no column text, messages or another that is known; columns: \ufffd (a.jsonl, line 2)"
    ]


def test_a_huge_row_is_a_row(tmp_path: Path) -> None:
    corpus = read(tmp_path / "a.jsonl", {"text": "word " * 2_000_000}, {"text": "short"})
    assert sorted(map(len, corpus.documents)) == [5, 10_000_000]


def test_what_two_steps_drop_adds_up() -> None:
    rows, documents = Dropped("a.jsonl", "line"), Dropped("a.jsonl", "line")
    rows.add("not JSON", 4)
    documents.add("fewer than 2 tokens", 9)
    documents.add("fewer than 2 tokens", 1)
    both = rows.and_then(documents)
    assert (both.count, rows.count, documents.count) == (3, 1, 2)
    assert both.lines() == ["2 x fewer than 2 tokens (a.jsonl, lines 9, 1)", "1 x not JSON (a.jsonl, line 4)"]
