"""What is said names no tool that the reader lacks."""

from __future__ import annotations

import pytest

from diffing_mcp.mcp_server.tool_mentions import without_missing

MISSING = ("ask_models", "view_run", "facts", "steering")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ask both. One answer proves nothing: use ask_models. It is free.", "Ask both. It is free."),
        ("The best first call; follow up with view_run. Says so.", "The best first call. Says so."),
        ('Settled; facts(pair="x") has the calls. Done.', "Settled. Done."),
        ("The facts of a steering vector.", "The facts of a steering vector."),
        ("Runs: ask_models-1f3a9c, view_runs.", "Runs: ask_models-1f3a9c, view_runs."),
        ("view_run reads more.", ""),
        ("", ""),
    ],
)
def test_sentences_that_name_a_missing_tool_are_left_out(text: str, shown: str) -> None:
    assert without_missing(text, MISSING) == shown
    assert without_missing(text, ()) == text


def test_what_is_wrong_is_said_whatever_it_names() -> None:
    assert without_missing("there is no tool 'x', ask_models is one. Try view_run.", MISSING, keep=1) == (
        "there is no tool 'x', ask_models is one."
    )
