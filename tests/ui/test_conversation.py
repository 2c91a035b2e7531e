"""Conversations with both models: what each side reads, what comes of an answer, and evidence that is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from diffing_mcp.agents.mcp_session import ToolFailed
from diffing_mcp.core.errors import UnknownName
from diffing_mcp.mcp_server.tools_models import AskArguments
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.queries.schemas import CompareQuery
from diffing_mcp.ui.ask import how_of, score_arguments
from diffing_mcp.ui.bench import Action, Bench
from diffing_mcp.ui.connection import ServerConnection
from diffing_mcp.ui.conversation import SIDES, Conversation, How, Side
from diffing_mcp.ui.conversation_view import conversation_html
from diffing_mcp.ui.report import pair_report
from diffing_mcp.ui.saved_evidence import EvidenceFolder, SavedEvidence
from diffing_mcp.ui.saved_view import saved_html
from tests.ui.panel_data import EVIL
from tests.ui.test_html import OURS, TEXTS, comparison, read


def sampled(*texts: str) -> list[dict[str, Any]]:
    return [{"model_text": text, "finish": "length"} for text in texts]


def spoken(how: How, *messages: str) -> Conversation:
    """A conversation in which each side answered every message twice, naming itself and the turn."""
    now = Conversation(pair="identical")
    for place, message in enumerate(messages):
        now = now.asking(message, how)
        for side in SIDES:
            now = now.answered(side, sampled(f"{side} {place}", f"{side} {place} again"))
    return now


def contents(turns: list[dict[str, str]]) -> list[str]:
    return [turn["content"] for turn in turns]


@pytest.mark.parametrize(
    ("follows", "reads"),
    [("own", ("base 0", "finetuned 0")), ("base", ("base 0", "base 0")), ("finetuned", ("finetuned 0",) * 2)],
)
def test_each_side_reads_its_own_answers_or_those_of_one_side(follows: Any, reads: tuple[str, str]) -> None:
    now = spoken(How(system_prompt="Be brief.", prefill="Well, ", follows=follows), "one").asking(
        "two", How(system_prompt="Be brief.", follows=follows)
    )
    for side, read_before in zip(SIDES, reads, strict=True):
        assert contents(now.before(1, side)) == ["Be brief.", "one", f"Well, {read_before}"]
        asked = AskArguments.model_validate(now.question(1, side))
        assert [turn.role for turn in asked.conversations[0]] == ["system", "user", "assistant", "user"]
        assert asked.side == side


def test_an_answer_is_scored_where_it_was_written() -> None:
    now = spoken(How(prefill="Well, "), "one", "two").choosing(0, "base", 1).asking("three", How())
    assert contents(now.before(1, "base")) == ["one", "Well, base 0 again"], "the sample that was chosen"
    assert contents(now.before(1, "finetuned")) == ["one", "Well, finetuned 0"]
    scored = spoken(How(prefill="Well, "), "one", "two").scoring(1, "finetuned", 1)
    query = CompareQuery.model_validate({name: value for name, value in scored.items() if name != "pair"})
    assert query.text == "Well, finetuned 1 again"
    assert [turn.content for turn in query.conversation] == ["one", "Well, finetuned 0", "two"]


def test_choosing_another_sample_takes_back_the_turns_after_it() -> None:
    now = spoken(How(), "one", "two")
    assert len(now.choosing(0, "finetuned", 1).turns) == 1
    assert len(now.turns) == 2


@given(TEXTS, TEXTS, TEXTS, st.booleans())
def test_a_conversation_is_text(message: str, system: str, answer: str, live: bool) -> None:
    now = Conversation().asking(message, How(system_prompt=system, prefill=answer))
    for side in SIDES:
        now = now.answered(side, sampled(answer, ""))
    reader = read(conversation_html(now, live=live))
    assert reader.tags <= OURS | {"section", "h3", "u", "button"}
    assert reader.attributes <= {
        *("class", "type", "aria-label", "data-do", "data-turn", "data-side", "data-sample"),
    }
    assert ("button" in reader.tags) == live


def test_what_ended_an_answer_and_which_goes_on_is_said() -> None:
    markup = conversation_html(spoken(How(), "one"))
    assert markup.count("stopped at the token limit") == 4
    assert markup.count("goes on") == 2
    assert "(empty answer)" in conversation_html(Conversation().asking("?", How()).answered("base", sampled(" ")))
    waiting = conversation_html(Conversation().asking("?", How()), dict.fromkeys(SIDES, Markup("thinking")))
    assert waiting.count("thinking") == 2
    assert "button" not in waiting


def test_fields_that_were_never_opened_are_the_usual() -> None:
    assert how_of(None, None, None, 0.7, None, None, None) == How()
    assert score_arguments("pair", "a text", None, None, None) == {"pair": "pair", "text": "a text"}
    several = {"pair": "pair", "prompt": "a message", "candidates": ["one", "two"], "greedy_tokens": 12}
    assert score_arguments("pair", "", "a message", "one\n\ntwo", 12) == several
    assert score_arguments("pair", "", "a message alone", "", 0) is None


class Answering:
    """A connection whose model answers each call after one step."""

    def __init__(self, fails: Side | None = None) -> None:
        self.fails, self.sent, self.cancelled = fails, [], []

    sent: list[dict[str, Any]]
    cancelled: list[str]

    async def follow(self, tool: str, arguments: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        assert tool == "ask_models"
        self.sent.append(arguments)
        side = arguments["side"]
        job = {"job_id": f"ask-{side}", "state": "running", "progress": 0.5}
        unfinished = {"side": side, "prompt": 0, "sample": 0, "model_text": f"{side} {EVIL}"}
        yield {"status": "running", "job": {**job, "unfinished": [unfinished]}}
        if side == self.fails or self.cancelled:
            raise ToolFailed(tool, "There is no such pair.")
        yield {"status": "completed", "result": {"answers": [{side: sampled(f"{side}!")}]}}

    async def begin(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.cancelled.append(arguments["job_id"])
        return {}


def bench_of(connection: Answering, folder: Path) -> Bench:
    return Bench(cast(ServerConnection, connection), EvidenceFolder(RunStore(folder / "runs")))


async def steps_of(
    bench: Bench, asked: Conversation, stop_at: int | None = None
) -> list[tuple[Conversation, str, str]]:
    steps = []
    async for now, waiting, said in bench.answer(asked, Conversation(pair="before"), "me"):
        steps.append((now, str(conversation_html(now, waiting)), str(said)))
        if len(steps) == stop_at:
            await bench.stop("me")
    return steps


def test_one_side_is_shown_while_the_other_writes(tmp_path: Path) -> None:
    connection = Answering()
    steps = asyncio.run(steps_of(bench_of(connection, tmp_path), Conversation(pair="p").asking("Hello", How())))
    assert [sorted(now.turns[0].answers) for now, _, _ in steps] == [[], [], ["base"], ["base"], ["base", "finetuned"]]
    assert "aria-valuenow='50'" in steps[1][1]
    assert "base &lt;img" in steps[1][1], "as far as it is written"
    assert EVIL not in steps[1][1]
    assert "finetuned &lt;img" in steps[3][1]
    assert [arguments["side"] for arguments in connection.sent] == ["base", "finetuned"]


def test_an_answer_that_fails_or_is_stopped_leaves_the_conversation_as_it_was(tmp_path: Path) -> None:
    asked = Conversation(pair="p").asking("Hello", How())
    now, _, said = asyncio.run(steps_of(bench_of(Answering(fails="finetuned"), tmp_path), asked))[-1]
    assert (now.pair, now.turns) == ("before", ())
    assert "There is no such pair." in said
    connection = Answering()
    now, _, said = asyncio.run(steps_of(bench_of(connection, tmp_path), asked, stop_at=2))[-1]
    assert now.turns == ()
    assert "Stopped" in said
    assert connection.cancelled == ["ask-base"]
    assert len(connection.sent) == 1, "the other side is not asked any more"


def test_a_button_of_another_conversation_is_left_alone() -> None:
    now = spoken(How(), "one")
    assert Action(do="heat", turn=0, side="base", sample=1).fits(now)
    assert not Action(do="heat", turn=0, side="base", sample=2).fits(now)
    assert not Action(do="edit", turn=1).fits(now)
    assert not Action(do="edit", turn=0).fits(Conversation().asking("unanswered", How()))


def test_evidence_is_kept_for_its_pair_and_goes_into_its_report(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    folder, bench = EvidenceFolder(store), bench_of(Answering(), tmp_path)
    with pytest.raises(UnknownName):
        pair_report("identical", store)
    said = asyncio.run(bench.keep("identical", "The answers are equal.", spoken(How(), EVIL)))
    assert "Added" in said
    asyncio.run(bench.keep("identical", "", heat_map={**comparison(["Preheat", EVIL]), "title": EVIL}))
    [talk, heat] = folder.list("identical/default@smollm2-135m")
    report = pair_report("identical", store)
    assert "The answers are equal." in report
    assert "finetuned 0 again" in report
    assert "Preheat" in report
    assert EVIL not in report
    assert "<button" not in report
    folder.remove(talk.pair_name, "../../" + talk.id)
    folder.remove("another", talk.id)
    assert len(folder.list(talk.pair_name)) == 2
    folder.remove(talk.pair_name, talk.id)
    assert folder.list(talk.pair_name) == [heat]
    assert "no such pair" in asyncio.run(bench.keep("no such pair", "")).lower()


def test_files_that_are_no_evidence_are_left_out(tmp_path: Path) -> None:
    folder = EvidenceFolder(RunStore(tmp_path / "runs"))
    folder.add(SavedEvidence(pair_name="p", pair={}))
    [file] = (tmp_path / "evidence").rglob("*.json")
    file.with_name("torn.json").write_text("{", encoding="utf-8")
    assert len(folder.list("p")) == 1


def test_evidence_of_other_weights_says_so() -> None:
    now = SavedEvidence(pair_name="p", pair={"finetuned": "new"})
    before = SavedEvidence(pair_name="p", pair={"finetuned": "old"})
    assert saved_html([before, now]).count("other weights") == 1
    assert "other weights" not in saved_html([now, now])
    assert saved_html([]) == ""
