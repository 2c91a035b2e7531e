"""Records of evaluations: round trip, atomic writes, foreign files."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffing_mcp.agents.cells import cells_of
from diffing_mcp.agents.names import as_identifier, cell_id
from diffing_mcp.agents.records import (
    Budget,
    EvaluationFolder,
    EvaluationPlan,
    EvaluationRecord,
    HypothesisReading,
    Message,
    RecordedFinding,
    ToolCall,
    list_evaluations,
)
from diffing_mcp.core.errors import InvalidInput, UnknownName


def record(evaluation: str, **values: object) -> EvaluationRecord:
    return EvaluationRecord.model_validate(
        {
            "evaluation_id": evaluation,
            "cell_id": "some_organism--method--baseline--r0",
            "organism": "some_organism",
            "arm": "method",
            "investigator": "baseline",
            **values,
        }
    )


def test_round_trip(tmp_path: Path) -> None:
    folder = EvaluationFolder("first", tmp_path)
    written = record(
        "first",
        transcript=[
            Message(role="assistant", tool_calls=[ToolCall(id="call_1", name="overview", arguments={"pair": "pair-1"})])
        ],
        budgets={"model_interactions": Budget(limit=10, used=4)},
        finding=RecordedFinding(statement="Something.", verdict="difference", source="submit_finding"),
        hypothesis_grades=[
            HypothesisReading(grader="some/model", score=4),
            HypothesisReading(grader="some/model", score=3),
            HypothesisReading(grader="some/model"),
        ],
    )
    folder.write(written)
    assert folder.records() == [written]
    assert written.mean_score == 3.5
    assert written.tool_calls == 1


def test_halves_of_surrogate_pairs_do_not_end_an_evaluation(tmp_path: Path) -> None:
    """Models write them where they are cut off within an emoji; the record of a paid investigation was not stored."""
    folder = EvaluationFolder("first", tmp_path)
    call = ToolCall(id="1", name="ask_models", arguments={"prompts": ["cakes \ud83d"], "samples": 2})
    folder.write(
        record("first", error="\udc00", transcript=[Message(role="assistant", content="a", tool_calls=[call])])
    )
    (found,) = folder.records()
    assert found.error == "\ufffd"
    assert found.transcript[0].tool_calls[0].arguments == {"prompts": ["cakes \ufffd"], "samples": 2}


def test_torn_and_foreign_files_are_no_records(tmp_path: Path) -> None:
    folder = EvaluationFolder("first", tmp_path)
    file = folder.write(record("first"))
    file.with_name("torn.json").write_text(file.read_text()[:50])
    file.with_name(".half.json.part").write_text("{")
    assert [found.cell_id for found in folder.records()] == [file.stem]
    assert folder.get("torn") is None
    assert [found.name for found in file.parent.glob(".*.part")] == [".half.json.part"]


def test_a_failed_write_leaves_the_former_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = EvaluationFolder("first", tmp_path)
    folder.write(record("first", seed=1))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.write(record("first", seed=2))
    monkeypatch.undo()
    assert [found.seed for found in folder.records()] == [1]
    assert [file.name for file in (folder.path / "cells").iterdir()] == ["some_organism--method--baseline--r0.json"]


def test_plans_are_listed_newest_first(tmp_path: Path) -> None:
    for name, moment in (("older", "2026-01-01T00:00:00+00:00"), ("newer", "2026-02-01T00:00:00+00:00")):
        EvaluationFolder(name, tmp_path).write_plan(
            EvaluationPlan(id=name, created_at=moment, organisms=["a"], arms=["method"], investigator="baseline")
        )
    assert [plan.id for plan in list_evaluations(tmp_path)] == ["newer", "older"]
    with pytest.raises(UnknownName):
        EvaluationFolder("absent", tmp_path).plan()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 101])
def test_ids_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(InvalidInput):
        EvaluationFolder(name)


@pytest.mark.parametrize("name", ["my suite", "Grüße", "(1)", ".hidden", "x" * 101, "../up", "猫"])
def test_any_text_has_an_id_of_its_own(name: str, tmp_path: Path) -> None:
    """A suite in a file with a space in its name could not be run."""
    folder = EvaluationFolder(as_identifier(name), tmp_path)
    assert folder.path.parent == tmp_path
    assert as_identifier(name) != as_identifier(f"{name}犬")
    assert as_identifier("bundled-baseline-0482f967") == "bundled-baseline-0482f967"


def test_cells_of_different_pairs_have_different_files_that_can_be_written(tmp_path: Path) -> None:
    """Letters that are not ASCII all became one underscore: the second pair was taken for finished when the first was.
    Names of many methods made a file name longer than file systems take, which showed when the cell was done.
    """
    assert cell_id("猫", "method", "baseline", 0) != cell_id("犬", "method", "baseline", 0)
    long = [cell_id("cake_bake", "method:" + "+".join(["contrastive_decoding"] * n), "baseline", 0) for n in (19, 20)]
    assert long[0] != long[1]
    folder = EvaluationFolder("first", tmp_path)
    for name in (*long, cell_id("猫", "method", "baseline", 0)):
        folder.write(record("first", cell_id=name))
        assert folder.get(name) is not None


def test_pairs_that_differ_in_punctuation_or_case_alone_have_cells_of_their_own(tmp_path: Path) -> None:
    """The second one was taken for finished when the first was, and its result written over the first one's."""
    names = ["cake/mix", "cake_mix", "Cake_Mix", "cake@mix", "other/pair"]
    plan = EvaluationPlan(id="first", organisms=names, arms=["blackbox"], investigator="baseline")
    ids = {cell.organism: cell.id for cell in cells_of(plan)}
    assert len({identifier.casefold() for identifier in ids.values()}) == len(names)
    assert cells_of(plan.model_copy(update={"organisms": names[::-1]}))[-1].id == ids["cake/mix"]
    # What was stored before goes on under its name.
    assert ids["cake_mix"] == "cake_mix--blackbox--baseline--r0"
    assert ids["other/pair"] == "other_pair--blackbox--baseline--r0"
    folder = EvaluationFolder("first", tmp_path)
    folder.write(record("first", organism="cake/mix", cell_id=ids["cake_mix"]))
    assert folder.get(ids["cake_mix"], "cake_mix") is None
    assert folder.get(ids["cake_mix"], "cake/mix") is not None


def test_cell_ids_are_file_names() -> None:
    assert (
        cell_id("cake/mix@model", "method", "openai-api/local/m", 2) == "cake_mix_model--method--openai-api_local_m--r2"
    )
