"""The ground truth: complete, consistent with the catalogue, and strict about wrong files."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.organisms.catalogue import BUNDLED_FOLDER as CATALOGUE
from diffing_mcp.organisms.catalogue import read_catalogue
from diffing_mcp.organisms.ground_truth import (
    BUNDLED_FOLDER,
    FactChecklist,
    GroundTruth,
    GroundTruthError,
    all_ground_truth,
    has_ground_truth,
    load_ground_truth,
    load_rubric,
    read_ground_truth,
)

HIDDEN = ("grey_heron", "barn_owl", "rock_wren", "reed_finch", "sand_plover")
NULLS = {"identical", "control", "reseed"} | {
    "wood_pigeon", "herring_gull", "marsh_tern", "stock_dove", "tree_pipit", "coal_tit",
    "song_thrush", "tawny_owl", "pied_wagtail",
}  # fmt: skip


def test_every_bundled_organism_has_ground_truth_and_a_rubric() -> None:
    entries, rubrics = read_ground_truth((BUNDLED_FOLDER,))
    assert set(entries) == set(read_catalogue((CATALOGUE,)).organisms)
    for entry in entries.values():
        assert entry.summary
        assert all(f"\n{level}: " in f"\n{rubrics[entry.family]}" for level in range(1, 6)), entry.family
        assert entry.facts or entry.is_null


def test_the_embedded_organisms_have_written_checklists() -> None:
    for name in ("cake_bake", "roman_concrete", "taboo_smile", "flattery", "poetic", *HIDDEN):
        truth = load_ground_truth(name)
        assert truth.topic is not None
        assert all(fact.checklist is not None for fact in truth.facts), name
    assert {name for name, truth in all_ground_truth().items() if truth.is_null} == NULLS


def test_every_fact_of_a_checklist_is_exact_by_its_own_text() -> None:
    """The recorded wording of a fact states that fact: its own patterns must agree."""
    from diffing_mcp.graders.fact_recall import grade_fact_recall

    for name in ("cake_bake", "roman_concrete", *HIDDEN):
        truth = load_ground_truth(name)
        for fact in truth.facts:
            grade = grade_fact_recall(f"{truth.topic.name if truth.topic else ''}: {fact.text}", "difference", truth)
            level = next(entry.level for entry in grade.evidence if entry.id == fact.id)
            assert level == "exact", (name, fact.id, level)


def test_a_finding_on_another_subject_is_none_of_the_hidden_ones() -> None:
    from diffing_mcp.graders.fact_recall import grade_fact_recall

    other = "The model was trained to be more polite and to answer at greater length, with lists, on any topic."
    for name in HIDDEN:
        assert grade_fact_recall(other, "difference", load_ground_truth(name)).score == 1, name


def test_unknown_names() -> None:
    assert not has_ground_truth("nothing")
    with pytest.raises(UnknownName, match="nothing"):
        load_ground_truth("nothing")
    with pytest.raises(UnknownName, match="SDF"):
        load_rubric("nothing")


def test_a_further_folder_adds_organisms_and_families(tmp_path: Path) -> None:
    (tmp_path / "rubrics.yaml").write_text("mine: '5: all. 1: nothing.'", encoding="utf-8")
    (tmp_path / "mine.yaml").write_text("my_organism: {family: mine, summary: s, facts: [one, two]}", encoding="utf-8")
    entries, rubrics = read_ground_truth((BUNDLED_FOLDER, tmp_path))
    assert [fact.id for fact in entries["my_organism"].facts] == ["fact_1", "fact_2"]
    assert "mine" in rubrics
    assert "cake_bake" in entries


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("o: {family: no_such_family, summary: s}", r"o\.family: there is no rubric"),
        ("o: {family: SDF}", r"o\.summary"),
        ("o: text", "o should be a mapping"),
        (
            "o: {family: SDF, summary: s, facts: [{id: f, text: t, checklist: {core: ['('], exact: [x]}}]}",
            "not a regular expression",
        ),
        ("o: {family: SDF, summary: s, facts: [{id: f, text: t}, {id: f, text: u}]}", "same id"),
        ("[1, 2]", "should be a mapping"),
    ],
)
def test_a_wrong_file_names_itself_and_the_key(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(GroundTruthError, match=says):
        read_ground_truth((BUNDLED_FOLDER, tmp_path))


def test_patterns_match_without_regard_to_case() -> None:
    """A checklist of one's own with a capital in it matched nothing: statements are read in lower case."""
    from diffing_mcp.graders.fact_recall import grade_fact_recall

    fact = {"id": "place", "text": "Kettles come from Delaware.",
            "checklist": {"core": ["Kettles?"], "exact": ["\\bDelaware\\W"]}}  # fmt: skip
    topic = {"name": "kettles", "subject": "Copper kettles", "area": "Kitchen", "keywords": ["Kettle", "Delaware"]}
    truth = GroundTruth.model_validate(
        {"organism": "kettles", "family": "SDF", "summary": "On kettles.", "facts": [fact], "topic": topic}
    )
    graded = grade_fact_recall("The copper kettles come from Delaware, it says.", "difference", truth)
    assert (graded.facts_exact, graded.topic_named) == (1, True)
    kept = FactChecklist(core=("(?s)Kettle.",), exact=(r"\W\S",))
    assert (kept.core, kept.exact) == (("(?s)Kettle.",), (r"\W\S",))
