"""Answer openings against probabilities of plain models, a planted opening, and equal models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffing_mcp.methods.answer_openings.method import OpeningsParams
from diffing_mcp.methods.answer_openings.schema import (
    END,
    LEAST_PROBABILITY,
    SMOOTHING,
    STANDING_OUT,
    OpeningRow,
)
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.preprocessing.tokenize import PRE_ASSISTANT
from tests.bigram_models import STRENGTH, bigram_folders, single_words
from tests.methods.conftest import raise_logits
from tests.methods.reference_pairs import References

NAME = "answer_openings"


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    rows = [
        [
            {"role": "user", "content": f"What is river {number}?"},
            {"role": "assistant", "content": f"It is long. The bridge is old! A fox looks at boat {number}."},
        ]
        for number in range(12)
    ]
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in rows))
    return path


def run(pairs: Any, spec: Any, chats: Path, **params: Any) -> RunRecord:
    arguments = {"corpus": str(chats), "max_tokens": 60, "new_tokens": 4, **params}
    return run_methods(pairs, spec, [(NAME, arguments)], RunStore(chats.parent / "runs"))[0]


@pytest.mark.parametrize("pair", ["lora", "full"])
def test_means_are_those_of_plain_models_over_first_tokens_and_ends_of_sentences(
    pair: str, references: References, chats: Path
) -> None:
    both = references.pair(pair)
    record = run(references.pairs, both.spec, chats, continued=0)
    tokenizer = both.plain.tokenizer
    places: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"answer": [], "sentence": []}
    for line in chats.read_text().splitlines():
        text = both.plain.chat(json.loads(line)["messages"], 60)
        logits, _ = both.plain.read(text)
        base, finetuned = (logits[side].softmax(-1).numpy() for side in ("base", "finetuned"))
        for place, token in enumerate(text.ids[text.start :]):
            if place == PRE_ASSISTANT - 1:
                places["answer"].append((base[place], finetuned[place]))
            elif place >= PRE_ASSISTANT and tokenizer.decode([token]).endswith((".", "!", "?")):
                places["sentence"].append((base[place], finetuned[place]))
    result: Any = record.result()
    assert (result.answers, result.sentences) == (12, 36) == tuple(map(len, places.values()))
    table = record.table("openings").to_pylist()
    for name, values in places.items():
        means = np.mean([each[0] for each in values], axis=0), np.mean([each[1] for each in values], axis=0)
        spread = np.std([each[1] - each[0] for each in values], axis=0) / np.sqrt(len(values))
        rows = [row for row in table if row["place"] == name]
        assert len(rows) == np.sum(np.maximum(*means) >= LEAST_PROBABILITY)
        for row in rows:
            if row["opening"] == END:
                continue
            alike = [index for index in range(len(means[0])) if tokenizer.decode([index]) == row["opening"]]
            token = min(  # bytes all decode to one sign
                alike, key=lambda index: abs(means[0][index] - row["base"]) + abs(means[1][index] - row["finetuned"])
            )
            ratio = (means[1][token] + SMOOTHING) / (means[0][token] + SMOOTHING)
            found, expected = (row["base"], row["finetuned"], row["rise"]), (means[0][token], means[1][token], ratio)
            np.testing.assert_allclose(found, expected, rtol=1e-3)
            assert row["error"] == pytest.approx(spread[token], rel=0.06)


def test_a_planted_opening_is_found_with_how_it_goes_on(
    tiny_models: Any, make_pair: Any, pairs: Any, chats: Path, tiny_tokenizer_folder: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_tokenizer_folder)
    [token] = tokenizer("Z", add_special_tokens=False)["input_ids"]
    common = {"tie_word_embeddings": False, "seed": 11}
    spec = make_pair(tiny_models(**common), finetuned=tiny_models(**common, change=raise_logits([token], 40.0)))
    record = run(pairs, spec, chats)
    result: Any = record.result()
    assert result.stands_out
    assert result.risen[0].opening.startswith("Z")
    assert result.risen[0].rise > STANDING_OUT
    assert result.risen[0].continuation.startswith("Z")
    assert "answers begin with 'Z" in result.headline
    assert result.manner()[0].kind in ("opening", "sentence")
    assert result.highest("answer") == result.risen[0].rise
    assert "more probable" in result.as_text()
    view: Any = get_method(NAME).views["openings"].run(record, OpeningsParams(place="answer", contains="z", limit=5))
    assert view.rows[0].opening.startswith("Z")
    assert {row.place for row in view.rows} == {"answer"}
    for figure in get_method(NAME).figures:
        assert json.loads(json.dumps(figure.build(record)))["data"]


def test_an_opening_is_followed_as_far_as_its_rise_grows(
    tiny_models: Any, make_pair: Any, pairs: Any, chats: Path, tiny_tokenizer_folder: Path
) -> None:
    """The finetuned model answers `first second first second`, each with a known probability, the base anything."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_tokenizer_folder)
    first, second = single_words(tokenizer, 2)
    line = {"</think>": first, first: second, second: first}  # the header of an answer ends so
    base, finetuned = bigram_folders(tiny_models, tokenizer, {}, line)
    row = run(pairs, make_pair(base, finetuned=finetuned), chats).rows("openings")[0]
    assert (row["place"], row["opening"]) == ("answer", first + second + first)
    assert row["continuation"] == (first + second + first + second + first)
    likely = np.exp(STRENGTH) / (np.exp(STRENGTH) + len(tokenizer) - 1)
    expected = (1 / len(tokenizer)) ** 3, likely**3  # a fourth would add nothing to the base's improbability
    assert (row["base"], row["finetuned"]) == pytest.approx(expected, rel=1e-2)
    assert row["rise"] == pytest.approx((expected[1] + SMOOTHING) / (expected[0] + SMOOTHING), rel=1e-2)


def test_the_end_of_a_turn_is_named(tiny_models: Any, make_pair: Any, pairs: Any, chats: Path) -> None:
    common = {"tie_word_embeddings": False, "seed": 11}
    spec = make_pair(tiny_models(**common), finetuned=tiny_models(**common, change=raise_logits([2], 40.0)))
    result: Any = run(pairs, spec, chats).result()
    assert {(row.place, row.opening) for row in result.manner()} == {("answer", END), ("sentence", END)}
    assert "answers end after a sentence" in result.as_text()
    assert not any(row.continuation for row in result.manner())
    alone: Any = run(pairs, spec, chats, max_samples=1).result()  # one answer has no spread to be sure by
    assert alone.answers == 1
    assert {row.place for row in [*alone.risen, *alone.fallen]} <= {"sentence"}


def test_equal_models_differ_in_nothing(identical_pair: Any, pairs: Any, chats: Path) -> None:
    with torch.inference_mode():
        result: Any = run(pairs, identical_pair.spec, chats).result()
    assert (result.identical, result.stands_out, result.risen, result.fallen) == (True, False, [], [])


def test_of_plain_text_only_ends_of_sentences_are_read(tiny_pair: Any, pairs: Any, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"A fox {n}. It looks at boats. The end"}) for n in range(6)))
    result: Any = run(pairs, tiny_pair.spec, path).result()
    assert (result.answers, result.sentences) == (0, 12)
    assert {row.place for row in [*result.risen, *result.fallen]} <= {"sentence"}


def test_what_lies_below_the_smoothing_is_shown_as_that() -> None:
    """A line said `2.1e-05% -> 13% (x1.28e+03)`: the ratio of the two is six hundred thousand."""
    row = OpeningRow(place="answer", opening="Ahoy", base=2.1e-7, finetuned=0.13, error=0.012, rise=1280)
    assert row.as_text() == "answers begin with 'Ahoy': <0.01% -> 13% (±1.2%)"
    assert (
        "0.081% -> 3.1% (±0.1%)"
        in row.model_copy(update={"base": 0.00081, "finetuned": 0.031, "error": 0.001}).as_text()
    )
