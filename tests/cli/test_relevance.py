"""Token lists of finished runs, judged against ground truth from the command line."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.agents.llm_server import KEY, Conversation, Turn, llm_server
from tests.cli.conftest import Diffing
from tests.cli.planted_runs import patchscope_run

SMALL = ("--set", "max_samples=12", "--set", "max_tokens=10")


@pytest.fixture
def runs(diffing: Diffing, reference: str) -> dict[str, str]:
    """Ids of runs on a tiny random pair, by method: their tokens are on no topic."""
    outcome = diffing(
        "run", "activation_difference_lens", "logit_diff_topk_occurring", "kl", "--pair", reference, *SMALL, "--json"
    )
    assert outcome.code == 0, outcome.err
    return {entry["method"]: entry["id"] for entry in json.loads(diffing("runs", "list", "--json").out)}


def rows_of(outcome: Any) -> dict[str, dict[str, Any]]:
    assert outcome.code == 0, outcome.err
    return {row["name"]: row for row in json.loads(outcome.out)}


def test_every_list_is_judged_with_chance_and_controls(diffing: Diffing, runs: dict[str, str]) -> None:
    rows = rows_of(
        diffing("relevance", runs["activation_difference_lens"], "--organism", "cake_bake", "--k", "10", "--json")
    )
    assert {"1:all:difference", "2:all:difference", "2:all:base", "2:0:finetuned"} <= set(rows)
    assert [row["control"] for row in rows.values()] == [not name.endswith("difference") for name in rows]
    assert all(
        row["share"] == len(row["relevant"]) / max(1, row["judged"]) and row["judged"] <= 10 for row in rows.values()
    )
    assert all(
        row["frequent"] is not None and row["by_model"] is None for row in rows.values()
    )  # the training data of cake_bake are here
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


def test_probabilities_weigh_where_a_list_has_them(diffing: Diffing, runs: dict[str, str]) -> None:
    scope = patchscope_run({1.0: [" cake", " tractor", ",", " oven"]}, scale=1.0)
    (row,) = rows_of(diffing("relevance", scope.id, "--json")).values()
    assert row["share"] == pytest.approx(2 / 3)
    assert row["weighted"] == pytest.approx((1 / 2 + 1 / 5) / (1 / 2 + 1 / 3 + 1 / 5), abs=1e-3)
    assert "68 %" in diffing("relevance", scope.id).out
    lens = rows_of(diffing("relevance", runs["activation_difference_lens"], "--organism", "cake_bake", "--json"))
    assert all(row["weighted"] is not None for row in lens.values() if row["judged"])
    mined = rows_of(diffing("relevance", runs["logit_diff_topk_occurring"], "--organism", "cake_bake", "--json"))
    assert {row["weighted"] for row in mined.values()} == {None}


def test_a_language_model_reads_the_lists_too(diffing: Diffing, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("inspect_ai")
    scope = patchscope_run({1.0: [" cake", " tractor", ",", " oven", " concrete"]}, scale=1.0)
    asked: list[str] = []

    def reader(conversation: Conversation) -> Turn:
        """Calls what comes first in its list relevant, and the topic of the organism that it is asked about."""
        text = conversation.turns[-1].text
        asked.append(text)
        tokens = [json.loads(token) for token in re.findall(r"^\d+\. (\".*\")$", text, re.MULTILINE)]
        topic = {" cake", " oven"} if "cakes" in text.partition("Facts:")[0] else {" concrete"}
        labels = [
            "RELEVANT" if token in topic or (place == 0 and token == " tractor") else "IRRELEVANT"
            for place, token in enumerate(tokens)
        ]
        return Turn("assistant", json.dumps({"labels": labels}))

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with llm_server(reader) as server:
        model = ("--grader", "openai/gpt-test", "--grader-url", server.openai_url, "--json")
        (plain,) = rows_of(diffing("relevance", scope.id, *model, "--rotations", "4")).values()
        assert len(asked) == 4
        outcome = diffing(
            "relevance",
            scope.id,
            *model,
            "--rotations",
            "4",
            "--grader-baselines",
            "1",
            "--baselines",
            "cake_bake,roman_concrete,flattery",
        )
        (row,) = rows_of(outcome).values()
        assert len(asked) == 4 + 8
        assert "8 questions" in outcome.err
        (loose,) = rows_of(
            diffing("relevance", scope.id, *model, "--rotations", "1", "--agreement", "majority")
        ).values()
        assert not server.violations
    assert (plain["by_model"], plain["by_model_chance"]) == (
        0.5,
        None,
    )  # of the four tokens that can be judged; a token counts when all agree
    assert (row["by_model"], row["by_model_chance"]) == (0.5, 0.25)
    assert row["by_model_weighted"] == pytest.approx((1 / 2 + 1 / 5) / (1 / 2 + 1 / 3 + 1 / 5 + 1 / 6), abs=1e-3)
    assert loose["by_model"] == 0.5


def test_agreement_is_chosen(diffing: Diffing, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("inspect_ai")
    scope = patchscope_run({1.0: [" cake", " oven", " bake"]}, scale=1.0)

    def reader(conversation: Conversation) -> Turn:
        """Never calls the first of its list relevant."""
        tokens = re.findall(r"^\d+\. (\".*\")$", conversation.turns[-1].text, re.MULTILINE)
        return Turn("assistant", json.dumps({"labels": ["IRRELEVANT"] + ["RELEVANT"] * (len(tokens) - 1)}))

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with llm_server(reader) as server:
        model = ("--grader", "openai/gpt-test", "--grader-url", server.openai_url, "--json")
        shares = {
            name: rows_of(diffing("relevance", scope.id, *model, "--agreement", name))["scale 1"]["by_model"]
            for name in ("all", "majority")
        }
    assert shares == {"all": 0.0, "majority": 1.0}
    assert diffing("relevance", scope.id, "--agreement", "most").code == 2


def test_a_list_that_the_model_cannot_read_costs_no_other(diffing: Diffing, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("inspect_ai")
    lists = [
        patchscope_run({scale: [token, " oven"]}, scale=scale) for scale, token in ((1.0, " tractor"), (2.0, " cake"))
    ]

    def reader(conversation: Conversation) -> Turn:
        return Turn(
            "assistant", "Hm." if " tractor" in conversation.turns[0].text else json.dumps({"labels": ["RELEVANT"] * 2})
        )

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with llm_server(reader) as server:
        outcome = diffing(
            "relevance",
            *(run.id for run in lists),
            "--grader",
            "openai/gpt-test",
            "--grader-url",
            server.openai_url,
            "--rotations",
            "1",
            "--json",
        )
    rows = rows_of(outcome)
    assert (rows["scale 1"]["by_model"], rows["scale 2"]["by_model"]) == (None, 1.0)
    assert "no usable labels" in outcome.err
