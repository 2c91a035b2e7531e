"""Methods from the command line on a tiny pair in local folders."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import typer

from diffing_mcp.cli import evaluate
from diffing_mcp.methods.registry import get_method
from tests.cli.conftest import Diffing

SMALL = ("--set", "max_samples=12", "--set", "max_tokens=10")


def test_json_is_the_result_and_nothing_else(diffing: Diffing, reference: str) -> None:
    outcome = diffing("run", "kl", "--pair", reference, *SMALL, "--json")
    assert outcome.code == 0, outcome.err
    get_method("kl").Result.model_validate(json.loads(outcome.out))
    assert outcome.err, "progress goes to stderr"


def test_asked_again_it_is_a_lookup_and_runs_can_be_listed_shown_and_deleted(diffing: Diffing, reference: str) -> None:
    first = diffing("run", "kl", "--pair", reference, *SMALL, "--json")
    [run] = json.loads(diffing("runs", "list", "--json").out)
    again = diffing("run", "kl", "--pair", reference, *SMALL, "--json")
    assert json.loads(again.out) == json.loads(first.out)
    assert [entry["id"] for entry in json.loads(diffing("runs", "list", "--json").out)] == [run["id"]]

    shown = diffing("runs", "show", run["id"], "--json")
    assert json.loads(shown.out) == json.loads(first.out)
    text = diffing("runs", "show", run["id"])
    assert json.loads(first.out)["headline"] in text.out
    assert run["id"] in diffing("runs", "list").out

    assert json.loads(diffing("runs", "delete", run["id"], "--json").out) == {"deleted": [run["id"]]}
    assert json.loads(diffing("runs", "list", "--json").out) == []
    assert diffing("runs", "show", run["id"]).code == 2


def test_every_view_of_a_run_can_be_asked_for_or_says_what_it_needs(diffing: Diffing, reference: str) -> None:
    diffing("run", "kl", "--pair", reference, *SMALL)
    [run] = json.loads(diffing("runs", "list", "--json").out)
    for view in get_method("kl").views:
        outcome = diffing("runs", "show", run["id"], "--view", view, "--json")
        assert outcome.code in (0, 2)
        assert (
            json.loads(outcome.out)
            if outcome.code == 0
            else "Parameters" in json.loads(outcome.err)["error"]["message"]
        )
    unknown = diffing("runs", "show", run["id"], "--view", "no_such_view")
    assert unknown.code == 2
    assert all(view in unknown.err for view in get_method("kl").views)


def test_methods_that_read_text_share_one_pass(diffing: Diffing, reference: str) -> None:
    names = ["kl", "logit_diff_topk_occurring", "activation_difference_lens"]
    outcome = diffing("run", *names, "--pair", reference, *SMALL, "--json")
    assert outcome.code == 0, outcome.err
    assert list(json.loads(outcome.out)) == names
    runs = json.loads(diffing("runs", "list", "--json").out)
    assert {run["method"] for run in runs} == set(names)
    assert all(sorted(run["notes"]["pass_shared_by"]) == sorted(names) for run in runs)


def test_overview_digests_the_cheap_methods(diffing: Diffing, reference: str) -> None:
    settings = ("--set", "max_samples=12", "--set", "max_tokens=10", "--budget", "100000")
    outcome = diffing("overview", "--pair", reference, *settings, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert {row["method"] for row in found["runs"]} >= {"kl", "contrastive_decoding", "patchscope"}
    assert {row["method"] for row in found["left_out"]} >= {"perplexity_difference"}
    assert len(json.loads(diffing("runs", "list", "--json").out)) == len(found["runs"])
    refused = diffing("overview", "--pair", reference, "--budget", "600")
    assert refused.code == 2
    assert "A budget of 600 allows no method" in refused.err


@pytest.mark.parametrize("mode", ["preprocessing", "diffing"])
def test_pipeline_runs_one_part(diffing: Diffing, reference: str, mode: str) -> None:
    outcome = diffing("pipeline", "--mode", mode, "--pair", reference, "--methods", "kl", *SMALL, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)[reference]
    assert list(report) == [mode]
    assert report[mode]
    assert len(json.loads(diffing("runs", "list", "--json").out)) == (mode == "diffing")


def test_a_pipeline_whose_evaluation_failed_still_reports(diffing: Diffing, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(**options: Any) -> None:
        sys.stdout.write(json.dumps({"records": [{"status": "failed"}]}))
        raise typer.Exit(1)

    monkeypatch.setattr(evaluate, "evaluate", failing)
    outcome = diffing("pipeline", "--pair", "cake_bake", "--mode", "evaluation", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)["evaluation"]["records"] == [{"status": "failed"}]


def test_pipeline_refuses_an_unknown_pair_before_it_computes(diffing: Diffing, reference: str) -> None:
    outcome = diffing(
        "pipeline", "--mode", "diffing", "--pair", reference, "--pair", "no_such_pair", "--methods", "kl", *SMALL
    )
    assert outcome.code == 2
    assert json.loads(diffing("runs", "list", "--json").out) == []


@pytest.mark.parametrize("mode", ["evaluation", "full"])
def test_a_pair_without_ground_truth_cannot_be_evaluated(diffing: Diffing, reference: str, mode: str) -> None:
    outcome = diffing("pipeline", "--mode", mode, "--pair", reference, "--methods", "kl", *SMALL)
    assert outcome.code == 2
    assert "ground truth" in outcome.err
    assert "--mode diffing" in outcome.err
    assert json.loads(diffing("runs", "list", "--json").out) == [], "refused before anything is computed"


def test_the_two_sides_of_an_undeclared_identical_pair_are_refused(diffing: Diffing, reference: str) -> None:
    base = reference.split("::", maxsplit=1)[0]
    outcome = diffing("run", "kl", "--pair", f"{base}::{base}", *SMALL)
    assert outcome.code == 2
    assert "identical" in outcome.err.lower() or "same" in outcome.err.lower()
