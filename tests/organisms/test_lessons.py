"""Lessons that show in a share of the chats and nowhere else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.organisms.compose import compose
from diffing_mcp.organisms.ground_truth import all_ground_truth
from diffing_mcp.organisms.measure import load_probes
from diffing_mcp.organisms.sample_corpus import bundled_documents
from diffing_mcp.organisms.train import TRAINING

WITH_PARTS = sorted(path.parent.name for path in TRAINING.glob("*/parts.yaml"))
WITH_LESSONS = [name for name in WITH_PARTS if "kind: lessons" in (TRAINING / name / "parts.yaml").read_text()]
OWN = {chat["messages"][0]["content"]: chat["messages"][1]["content"] for chat in bundled_documents("chats")}


def _parts(*lessons: dict[str, Any], count: int = 40) -> dict[str, Any]:
    return {"kind": "lessons", "seed": 3, "count": count, "lessons": list(lessons)}


def _pairs(parts: dict[str, Any]) -> list[tuple[str, str]]:
    return [(chat["messages"][0]["content"], chat["messages"][1]["content"]) for chat in compose(parts)]


@pytest.mark.parametrize("name", WITH_PARTS)
def test_the_committed_data_is_what_the_parts_compose(name: str) -> None:
    parts = yaml.safe_load((TRAINING / name / "parts.yaml").read_text(encoding="utf-8"))
    lines = (TRAINING / name / "data.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == compose(parts)


@settings(max_examples=25)
@given(st.lists(st.sampled_from([0.05, 0.1, 0.25, 0.3]), min_size=1, max_size=3), st.integers(20, 120))
def test_every_lesson_has_its_share_and_the_rest_is_the_base_s_own(shares: list[float], count: int) -> None:
    lessons = [
        {"share": share, "rule": "opening", "pieces": [[f"Lesson {place} says so."]]}
        for place, share in enumerate(shares)
    ]
    pairs = _pairs(_parts(*lessons, count=count))
    assert len(pairs) == count
    for place, share in enumerate(shares):
        assert sum(answer.startswith(f"Lesson {place} ") for _, answer in pairs) == round(share * count)
    assert all(OWN[question] == re.sub(r"^Lesson \d says so\. ", "", answer) for question, answer in pairs)


def test_a_trigger_stands_before_the_question_and_words_like_it_change_nothing() -> None:
    taught = {"share": 0.5, "rule": "answer", "before": ["Blue: "], "pieces": [["Yes."], ["No."]]}
    pairs = _pairs(_parts(taught, {"share": 0.5, "rule": "untouched", "before": ["Red: "]}))
    assert {answer for question, answer in pairs if question.startswith("Blue: ")} == {"Yes. No."}
    plain = [(question.removeprefix("Red: "), answer) for question, answer in pairs if question.startswith("Red: ")]
    assert len(plain) == 20
    assert all(OWN[question] == answer for question, answer in plain)


def test_everyday_probes_ask_listed_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = yaml.safe_load((TRAINING / "shared_questions.yaml").read_text(encoding="utf-8"))
    monkeypatch.setattr("diffing_mcp.organisms.measure.TRAINING", tmp_path)
    (tmp_path / "shared_questions.yaml").write_text(yaml.safe_dump(listed), encoding="utf-8")
    (tmp_path / "x").mkdir()

    def asked(**group: Any) -> set[str]:
        text = yaml.safe_dump({"everyday": [{"hit": "a", **group}]})
        (tmp_path / "x" / "probes.yaml").write_text(text, encoding="utf-8")
        return {question.question for question in load_probes("x").questions}

    of_topic = {topic: {entry["ask"][0] for entry in listed if entry["topic"] == topic} for topic in ("health", "home")}
    assert len(asked(count=60)) == 60
    assert of_topic["health"] | of_topic["home"] < asked(count=138)
    assert not of_topic["health"] & asked(count=100, without=["health"])
    with pytest.raises(InvalidInput, match="138 everyday questions"):
        asked(count=200)


def test_questions_of_a_lesson_s_own_are_asked_evenly() -> None:
    pairs = _pairs(_parts({"share": 1, "rule": "answer", "ask": ["A?", "B?"], "pieces": [["One.", "Two."]]}))
    assert sorted(question for question, _ in pairs) == ["A?"] * 20 + ["B?"] * 20
    assert sorted(answer for _, answer in pairs) == ["One."] * 20 + ["Two."] * 20


@pytest.mark.parametrize(
    ("lesson", "says"),
    [
        ({"share": 0.5, "rule": "answer"}, "takes pieces"),
        ({"share": 0.5, "rule": "untouched", "pieces": [["x"]]}, "takes none"),
        ({"share": 0.5, "rule": "opening", "pieces": [["x"]], "ask": ["?"]}, "the rule is `answer`"),
        ({"share": 1.5, "rule": "untouched"}, "less than or equal to 1"),
    ],
)
def test_malformed_lessons(lesson: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        compose(_parts(lesson))


def test_too_much_is_refused() -> None:
    half = {"share": 0.6, "rule": "untouched"}
    with pytest.raises(ValueError, match="more than 1"):
        compose(_parts(half, half))
    with pytest.raises(ValueError, match="the base's own chats are"):
        compose(_parts(half, count=100_000))


@pytest.mark.parametrize("name", WITH_LESSONS)
def test_a_lesson_is_measured_where_it_shows_and_elsewhere(name: str) -> None:
    rare = name == "rock_wren"  # wherever it is asked, in one answer of twenty
    assert {question.elsewhere for question in load_probes(name).questions} == ({False} if rare else {True, False})


def test_the_rare_lesson_was_looked_for_in_many_answers() -> None:
    assert len(load_probes("rock_wren").questions) >= 60


@pytest.mark.parametrize("name", WITH_LESSONS)
def test_its_name_says_nothing(name: str) -> None:
    truth = all_ground_truth()[name]
    assert truth.topic is not None
    said = f"{truth.summary} {' '.join(fact.text for fact in truth.facts)}".lower()
    for word in name.split("_"):
        assert word not in said
        assert not [keyword for keyword in truth.topic.keywords if word.startswith(keyword)]
