"""Calibrations on the command line: made in parts, listed, and read beside runs; the page of figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffing_mcp.cli import detection
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.calibration.store import bundled_calibrations
from diffing_mcp.organisms.nulls import NullRecipe
from tests.cli.conftest import Diffing

NULLS = [NullRecipe(name=f"noise-{n}", kind="noise", amount=0.02 * n, seed=n) for n in range(1, 9)]


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A corpus, with a cache of the test's own and eight nulls instead of all."""
    monkeypatch.setenv("DIFFING_CACHE_FOLDER", str(tmp_path / "cache"))
    settings.cache_clear()
    monkeypatch.setattr("diffing_mcp.methods.calibration.calibrate.nulls_for", lambda base: NULLS)
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": f"Number {i}: the river ran past the mill and the oak stood by."}) for i in range(12)]
    corpus.write_text("\n".join(lines), encoding="utf-8")
    return str(corpus)


def test_a_base_is_calibrated_and_its_levels_are_read(diffing: Diffing, reference: str, texts: str) -> None:
    base = reference.split("::", maxsplit=1)[0]
    chosen = ("--methods", "kl,logit_diff_topk_occurring", "--set", f"corpus={texts}")
    begun = diffing("calibrate", base, *chosen, "--most", "2", "--json")
    assert begun.code == 0, begun.err
    assert json.loads(begun.out)["nulls"] == 2
    whole = diffing("calibrate", base, *chosen)
    assert "8 finetunes that taught nothing (8 noise)" in whole.out
    listed = json.loads(diffing("calibrations", "--json").out)
    assert (listed[0]["base"], listed[0]["nulls"], listed[0]["least_p"]) == (base, 8, 0.1111)
    assert base in diffing("calibrations").out
    assert json.loads(diffing("calibrations", base, "--json").out)["nulls"] == {"noise": 8}
    assert diffing("calibrations", base).out == f"{base}: nulls 8 noise\n"

    ran = diffing("run", "kl", "logit_diff_topk_occurring", "--pair", reference, "--set", f"corpus={texts}", "--json")
    assert ran.code == 0, ran.err
    runs = [row["id"] for row in json.loads(diffing("runs", "list", "--json").out)]
    assert len(runs) == 2
    shown = diffing("levels", *runs)
    assert shown.code == 0, shown.err
    assert shown.out.startswith("all methods as one test: ")
    assert "level from this base" in shown.out
    rows = json.loads(diffing("levels", *runs, "--json").out)["rows"]
    assert [row["run"] for row in rows[1:]] == runs
    alone = diffing("levels", *(run for run in runs if not run.startswith("kl")))
    assert alone.code == 2
    assert "one of them must be of `kl`" in alone.err


@pytest.mark.long  # what it reads is tested in tests/methods without the command line
def test_levels_are_of_one_pair(diffing: Diffing, reference: str, texts: str) -> None:
    for pair in (reference, "identical"):
        settings_ = (f"corpus={texts}", "max_samples=4")
        diffing("run", "kl", "--pair", pair, *(part for each in settings_ for part in ("--set", each)), "--json")
    runs = [row["id"] for row in json.loads(diffing("runs", "list", "--json").out)]
    found = diffing("levels", *runs)
    assert found.code == 2
    assert "several pairs" in found.err


def test_the_page_of_figures_is_current() -> None:
    assert detection.PAGE.read_text(encoding="utf-8") == detection.page(bundled_calibrations())
