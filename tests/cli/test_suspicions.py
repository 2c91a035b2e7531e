"""`diffing test`, `complete`, `sweep` and `report` on a tiny pair."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Diffing

PROMPTS = ("one", "two", "three")
SHORT = ("--set", "max_new_tokens=4")


def test_a_suspicion_is_tested_against_controls(diffing: Diffing, reference: str, tmp_path: Path) -> None:
    controls = tmp_path / "controls.txt"
    controls.write_text("four\nfive\n")
    tested = (
        "test",
        *PROMPTS,
        "--control-file",
        str(controls),
        "--pattern",
        "e",
        "-n",
        "2",
        "--pair",
        reference,
        *SHORT,
    )
    outcome = diffing(*tested, "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["counted"] == "answers matching /e/"
    assert len(result["tested"]["by_prompt"]) == 3
    rows = list(csv.DictReader(io.StringIO(diffing(*tested, "--csv").out)))
    assert [(row["prompt"], row["control"]) for row in rows] == [
        *((prompt, "False") for prompt in PROMPTS),
        ("four", "True"),
        ("five", "True"),
    ]
    assert result["verdict"] in diffing(*tested).out


def test_beginnings_are_completed(diffing: Diffing, reference: str) -> None:
    completed = ("complete", "Bake it at", "The oven", "--pair", reference)
    outcome = diffing(*completed, "--json")
    assert outcome.code == 0, outcome.err
    assert [slot["beginning"] for slot in json.loads(outcome.out)["slots"]] == ["Bake it at", "The oven"]
    assert diffing(*completed).out.startswith("'Bake it at': ")


def test_a_sweep_is_a_stored_run(diffing: Diffing, reference: str) -> None:
    swept = ("sweep", *PROMPTS, "--pair", reference, *SHORT)
    outcome = diffing(*swept, "--json")
    assert outcome.code == 0, outcome.err
    [run] = json.loads(diffing("runs", "list", "--json").out)
    assert run["method"] == "sweep_behaviours"
    assert diffing(*swept).out.startswith(run["id"])
    assert json.loads(outcome.out)["headline"] in diffing(*swept).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("test", "x"), "exactly one of"),
        (("test", "--pattern", "x"), "prompts"),
        (("test", "x", "--pattern", "x", "--word", "y"), "exactly one of"),
        (("complete",), "beginnings"),
        (("sweep", "--domain", "no_such_area"), "no_such_area"),
        (("sweep", "x", "--limit", "0"), "limit"),
    ],
)
def test_what_cannot_be_tested_is_refused(diffing: Diffing, arguments: tuple[str, ...], said: str) -> None:
    outcome = diffing(*arguments, "--pair", "cake_bake")
    assert outcome.code == 2
    assert outcome.out == ""
    assert said in outcome.err


def test_a_report_is_one_page(diffing: Diffing, reference: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    nothing = diffing("report", reference, "-o", str(page))
    assert nothing.code == 2
    assert "diffing overview" in nothing.err
    assert not page.exists()
    assert diffing("run", "weight_difference", "--pair", reference).code == 0
    outcome = diffing("report", reference, "-o", str(page))
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "weight_difference-" in text
    assert "<script" not in text
