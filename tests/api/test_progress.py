"""Who sees a progress bar."""

from __future__ import annotations

import sys
import types

import pytest

from diffing_mcp.api import progress
from diffing_mcp.core.progress import Progress, silent


def test_a_bar_says_what_is_done_and_is_gone_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.watched(True, "loading") as report:
        report(0, None, "reading")
        report(5, 10, "passes")
        report(2, 4, "summary")
    drawn = capsys.readouterr().err
    assert "reading" in drawn
    assert "passes" in drawn
    assert drawn.rsplit("\r", maxsplit=2)[-2].strip() == ""


def test_without_a_terminal_or_a_notebook_nothing_is_drawn_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.watched(None, "loading") as report:
        assert report is silent
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert progress.in_notebook()
    with progress.watched(None, "loading") as report:
        report(1, 2)
    assert "loading" in capsys.readouterr().err
    with progress.watched(False, "loading") as report:
        assert report is silent


def test_a_callable_is_called() -> None:
    said: list[tuple[float, float | None, str]] = []

    def note(done: float, total: float | None = None, message: str = "") -> None:
        said.append((done, total, message))

    with progress.watched(note, "loading") as report:
        assert isinstance(report, type(note))
        report(1, 2, "x")
    assert said == [(1, 2, "x")]
    assert callable(Progress)
