"""Token lists of finished runs, judged against ground truth from the command line."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.agents.llm_server import KEY, Conversation, Turn, llm_server
from tests.cli.conftest import Diffing

SMALL = ("--set", "max_samples=12", "--set", "max_tokens=10")


@pytest.fixture
def runs(diffing: Diffing, reference: str) -> dict[str, str]:
    """Ids of runs on a tiny random pair, by method: their tokens are on no topic."""
    outcome = diffing("run", "activation_difference_lens", "logit_diff_topk_occurring", "kl", "--pair", reference, *SMALL, "--json")
    assert outcome.code == 0, outcome.err
    return {entry["method"]: entry["id"] for entry in json.loads(diffing("runs", "list", "--json").out)}


def rows_of(outcome: Any) -> dict[str, dict[str, Any]]:
    assert outcome.code == 0, outcome.err
    return {row["name"]: row for row in json.loads(outcome.out)}


def test_every_list_is_judged_with_chance_and_controls(diffing: Diffing, runs: dict[str, str]) -> None:
    rows = rows_of(diffing("relevance", runs["activation_difference_lens"], "--organism", "cake_bake", "--k", "10", "--json"))
    assert {"1:all:difference", "2:all:difference", "2:all:base", "2:0:finetuned"} <= set(rows)
    assert [row["control"] for row in rows.values()] == [not name.endswith("difference") for name in rows]
    assert all(row["share"] == len(row["relevant"]) / max(1, row["judged"]) and row["judged"] <= 10 for row in rows.values())
    assert all(row["frequent"] is not None and row["by_model"] is None for row in rows.values())  # the training data of cake_bake are here
    mined = rows_of(diffing("relevance", runs["logit_diff_topk_occurring"], "--organism", "cake_bake", "--json"))
    assert {"top_k_occurring", "fraction_positive_diff", "mean_difference", "log_odds_z"} <= set(mined)
    assert "top_k_occurring" in diffing("relevance", runs["logit_diff_topk_occurring"], "--organism", "cake_bake").out


def test_what_cannot_be_judged_says_why(diffing: Diffing, runs: dict[str, str]) -> None:
    nameless = diffing("relevance", runs["activation_difference_lens"])
    assert nameless.code == 2
    assert "--organism" in nameless.err
    tokenless = diffing("relevance", runs["kl"], "--organism", "cake_bake")
    assert tokenless.code == 2
    assert "shows no tokens" in tokenless.err


def test_a_language_model_reads_the_lists_too(diffing: Diffing, runs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("inspect_ai")

    def reader(conversation: Conversation) -> Turn:
        tokens = re.findall(r"^\d+\. (\".*\")$", conversation.turns[-1].text, re.MULTILINE)
        return Turn("assistant", json.dumps({"labels": ["RELEVANT"] * len(tokens)}))

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with llm_server(reader) as server:
        outcome = diffing(
            "relevance", runs["logit_diff_topk_occurring"], "--organism", "cake_bake", "--k", "8",
            "--grader", "openai/gpt-test", "--grader-url", server.openai_url, "--rotations", "2", "--json",
        )  # fmt: skip
        assert not server.violations
    rows = rows_of(outcome)
    assert {row["share"] for row in rows.values()} == {0.0}
    assert {row["by_model"] for row in rows.values()} == {1.0}
