"""`diffing ask` and `diffing compare` on a tiny pair: texts, JSON, CSV, and what is refused before models load."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from diffing_mcp.queries.schemas import CompareResult
from tests.cli.conftest import Diffing

SHORT = ("--max-new-tokens", "4")


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_both_models_answer_every_prompt(diffing: Diffing, reference: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("second\n\nthird\n")
    asked = ("ask", "first", "--file", str(prompts), "--pair", reference, *SHORT, "-n", "2")
    outcome = diffing(*asked, "--json")
    assert outcome.code == 0, outcome.err
    answers = json.loads(outcome.out)["answers"]
    assert [(row["question"], row["side"], row["sample"]) for row in answers] == [
        (question, side, sample)
        for question in ("first", "second", "third")
        for side in ("base", "finetuned")
        for sample in (0, 1)
    ]
    assert [row["text"] for row in table(diffing(*asked, "--csv").out)] == [row["text"] for row in answers]
    printed = diffing(*asked).out
    assert printed.startswith("[1] first")
    assert printed.count("finetuned: ") == 6


def test_a_line_of_a_file_is_a_prompt_to_the_letter(
    diffing: Diffing, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["first", "one\u2028two\x0cthree\x85four", "last"]
    content = "\ufeff" + "\r\n".join(lines) + "\r\n"
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes(content.encode())
    for file in (str(prompts), "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode()), encoding="utf-8"))
        outcome = diffing("ask", "--file", file, "--pair", reference, *SHORT, "--set", "side=base", "--json")
        assert [row["question"] for row in json.loads(outcome.out)["answers"]] == lines
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    refused = diffing("compare", "-", "--pair", reference, "--json")
    assert (refused.code, refused.out) == (2, "")
    assert "cannot be read as text" in json.loads(refused.err)["error"]["message"]


def test_a_text_is_compared_token_by_token(diffing: Diffing, reference: str) -> None:
    compared = ("compare", "Bake the cake in a hot oven.", "--pair", reference)
    outcome = diffing(*compared, "--json")
    assert outcome.code == 0, outcome.err
    result = CompareResult.model_validate_json(outcome.out)
    rows = table(diffing(*compared, "--csv").out)
    assert [float(row["kl"]) for row in rows] == pytest.approx(result.kl)
    assert str(result.mean_kl) in diffing(*compared).out


def test_candidates_are_ranked(diffing: Diffing, reference: str) -> None:
    outcome = diffing("compare", "--pair", reference, "--prompt", "Yes or no?", "-c", "Yes", "-c", "No", "--json")
    assert outcome.code == 0, outcome.err
    assert {row["candidate"] for row in json.loads(outcome.out)["candidates"]} == {"Yes", "No"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ask",), "prompt"),
        (("ask", "x", "-n", "0"), "samples"),
        (("ask", "x", "-n", "2", "--set", "samples=3"), "twice"),
        (("ask", "x", "--json", "--csv"), "not both"),
        (("ask", "--file", "/no/such/file"), "cannot be read"),
        (("compare", "x", "--set", "no_such=1"), "max_tokens"),
        (("compare",), "text"),
    ],
)
def test_what_cannot_be_asked_is_refused(diffing: Diffing, arguments: tuple[str, ...], said: str) -> None:
    outcome = diffing(*arguments, "--pair", "cake_bake")
    assert outcome.code == 2
    assert outcome.out == ""
    assert said in outcome.err
