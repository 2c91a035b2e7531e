"""Evaluations in a process of their own."""

from __future__ import annotations

import pytest

import diffing_mcp as dm
from diffing_mcp.api.evaluating import EvaluationFailed
from diffing_mcp.core.settings import settings


@pytest.fixture(autouse=True)
def shared_cache(own_folders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache folder, which holds the converted embedded model."""
    monkeypatch.delenv("DIFFING_CACHE_FOLDER")
    settings.cache_clear()


@pytest.mark.long  # runs the command, which has tests of its own
def test_an_evaluation_is_graded_and_continues() -> None:
    said: list[tuple[float, float | None]] = []

    def evaluated() -> dm.Evaluation:
        return dm.evaluate(
            ["identical"],
            ["blackbox"],
            interactions=1,
            progress=lambda done, total=None, message="": said.append((done, total)),
        )

    evaluation = evaluated()
    [record] = evaluation.records
    assert (record.organism, record.arm, record.status) == ("identical", "blackbox", "completed")
    assert said == [(1, 1)]
    assert len(evaluation.table()) == len(evaluation.summary.rows)
    assert repr(evaluation).startswith(f"Evaluation {evaluation.plan.id}: 1 investigations, 0 failed\n")
    assert evaluated().records == evaluation.records


def test_what_cannot_be_evaluated_is_said_in_the_command_s_own_words() -> None:
    with pytest.raises(EvaluationFailed, match="There is no arm 'greybox'"):
        dm.evaluate(["control"], ["greybox"])
    with pytest.raises(EvaluationFailed, match="--no-such-option"):
        dm.evaluate(["control"], no_such_option=1)
