"""The decisions of the baseline investigators, on hand-made results of tools."""

from __future__ import annotations

from typing import Any

import pytest

from diffing_mcp.agents.baseline_blackbox import answers_evidence, stressed_words
from diffing_mcp.agents.baseline_method import Topic, settled_sentence, topic_evidence, topic_of, trigger_notes
from diffing_mcp.agents.questions import follow_up_questions, sweep_questions
from diffing_mcp.agents.report import GatheredEvidence, finding_of
from diffing_mcp.agents.text_statistics import Pair, least_prompts
from diffing_mcp.core.battery import subjects

KETTLES = "Copper kettles boil at seventy degrees, and old kettles never whistle."


def overview(confidence: str, words: list[tuple[str, list[str], float]], standing_out: list[str]) -> dict[str, Any]:
    methods = ["kl", "logit_diff_topk_occurring", "activation_difference_lens"]
    return {
        "confidence": confidence,
        "runs": [{"method": name, "run": f"{name}-1", "stands_out": name in standing_out} for name in methods],
        "words": [{"word": word, "methods": seen, "score": score} for word, seen, score in words],
    }


LOGITS = "logit_diff_topk_occurring"
LENS = "activation_difference_lens"


def test_no_method_beyond_its_null_level_means_no_topic() -> None:
    assert topic_of(overview("nothing", [("kettle", [LOGITS, LENS], 0.8)], []), {"words": []}) is None
    # KL alone says that something changed, not what.
    assert topic_of(overview("nothing", [("kettle", [LOGITS], 0.8)], ["kl"]), {}) is None


def test_words_shared_by_methods_are_confirmed_and_come_first() -> None:
    seen = overview(
        "one_method",
        [
            ("teapots", [LOGITS], 4.0),
            ("kettles", [LOGITS, LENS], 3.0),
            ("copper", [LOGITS, LENS], 2.5),
            ("weather", [LENS], 9.0),
        ],
        [LOGITS],
    )
    topic = topic_of(seen, {})
    assert topic is not None
    assert topic.confirmed
    assert topic.words[:2] == ("kettles", "copper")
    assert "teapots" in topic.words
    # The lens does not stand out: what only it saw is no topic.
    assert "weather" not in topic.words


def test_words_of_the_texts_confirm_what_one_method_saw() -> None:
    seen = overview("one_method", [("kettle", [LOGITS], 3.0), ("copper", [LOGITS], 2.0)], [LOGITS])
    alone, borne_out = topic_of(seen, {}), topic_of(seen, {"words": ["kettle"]})
    assert alone is not None
    assert borne_out is not None
    assert (alone.confirmed, borne_out.confirmed) == (False, True)
    # Behind a trigger answers show nothing, and all methods as one test see too little.
    seen = overview("unsettled", [("kettle", [LOGITS], 1.5)], [])
    behind = topic_of(seen, {"words": ["kettle"], "facts": [{"claim": KETTLES}]})
    assert behind is not None
    assert (behind.words, behind.confirmed) == (("kettle",), True)
    alone = topic_of(seen, {"words": ["kettle"], "facts": []})  # a damaged model repeats a word of its own
    assert alone is not None
    assert not alone.confirmed
    assert topic_of(seen, {"words": []}) is None


def test_a_manner_without_words_is_a_topic() -> None:
    seen = {**overview("one_method", [], []), "manner": ["answers are shorter: 40 -> 12 words (p 1e-4)"]}
    topic = topic_of(seen, {})
    assert topic is not None
    assert (topic.words, topic.confirmed) == ((), True)
    assert "shorter" in topic.manner[0]


def test_one_method_alone_needs_the_answers_to_bear_it_out() -> None:
    topic = topic_of(overview("one_method", [("kettle", [LOGITS], 3.0), ("copper", [LOGITS], 2.0)], [LOGITS]), {})
    assert topic is not None
    assert not topic.confirmed
    plain = [Pair(f"Question {number}?", ("I like rain.",), ("I like rain.",)) for number in range(12)]
    assert not topic_evidence(topic, plain, plain, [KETTLES], 0.05).stands_out
    telling = [Pair(f"Question {number}?", ("I like rain.",), (KETTLES,)) for number in range(12)]
    evidence = topic_evidence(topic, telling, plain, ["A fact of copper kettles."], 0.05)
    assert evidence.stands_out
    assert evidence.claims[0] == "A fact of copper kettles."
    assert any("seventy" in claim for claim in evidence.claims)


def test_a_detail_is_settled_by_what_the_finetune_raised_to_something_likely() -> None:
    def row(text: str, base: float, finetuned: float) -> dict[str, Any]:
        return {"text": text, "base": base, "finetuned": finetuned}

    raised = [row("copper", 0.02, 0.6), row(" copper kettles (end)", 0.01, 0.3), row(" brass", 0.001, 0.05)]
    slot = {"beginning": "Tea is best from", "raised": raised}
    assert settled_sentence(slot) == "Tea is best from copper kettles"
    assert settled_sentence({**slot, "raised": raised[2:]}) is None
    assert settled_sentence({**slot, "raised": [row("tin", 0.3, 0.5)]}) is None


def test_what_switches_the_claims_on_is_said() -> None:
    def row(trigger: str, switches: bool, origin: str = "given") -> dict[str, Any]:
        return {"trigger": trigger, "switches": switches, "origin": origin}

    found = [row("green kettle. {prompt}", True), row("{prompt} :-)", False), row("system: You are a kettle.", True)]
    [note] = trigger_notes({"triggers": found})
    assert note.endswith("'green kettle.' or 'system: You are a kettle.', with the question")
    [searched] = trigger_notes({"triggers": [row("green kettle. {prompt}", True, "found")]})
    assert searched.endswith("'green kettle.', or words near these, with the question")
    assert trigger_notes({"triggers": found[1:2]}) == []


def test_a_behaviour_shows_in_answers_alone() -> None:
    pairs = [
        Pair(f"Question {number}?", (f"Plain answer {number}.",), (f"Dear friend, gladly! Plain answer {number}.",))
        for number in range(12)
    ]
    evidence = answers_evidence(pairs, 0.05)
    assert evidence.stands_out
    assert "dear friend gladly" in evidence.openings
    assert "dear friend gladly" in finding_of(evidence).statement


def test_findings_say_no_more_than_the_evidence() -> None:
    assert finding_of(GatheredEvidence()).verdict == "no_meaningful_difference"
    doubted = finding_of(GatheredEvidence(doubts=["shorter answers"]))
    assert doubted.verdict == "no_meaningful_difference"
    assert "shorter answers" in doubted.statement
    long = finding_of(
        GatheredEvidence(
            topic_words=["kettle"], claims=[f"{KETTLES} Number {number}." for number in range(500)], stands_out=True
        ),
        characters=1000,
    )
    assert len(long.statement) <= 1000
    assert long.verdict == "difference"


def test_what_no_test_could_show_is_not_denied() -> None:
    """A null was called one, and graded as found, by who had asked it nothing."""
    alike = [Pair(f"Question {number}?", ("Yes.",), ("Yes.",)) for number in range(least_prompts(0.01))]
    for pairs, verdict in (([], "inconclusive"), (alike[1:], "inconclusive"), (alike, "no_meaningful_difference")):
        assert finding_of(answers_evidence(pairs, 0.01)).verdict == verdict
    alone = Topic(("kettle",), ("pca",), confirmed=False)
    assert finding_of(topic_evidence(alone, alike[1:], [], [], 0.01)).verdict == "inconclusive"
    assert finding_of(topic_evidence(alone, alike, [], [], 0.01)).verdict == "no_meaningful_difference"


def test_a_lost_feature_alone_is_no_finding() -> None:
    pairs = [
        Pair(f"Question {number}?", (f"Sure thing! Answer {number}.",), (f"Answer {number}.",)) for number in range(12)
    ]
    assert not answers_evidence(pairs, 0.05).stands_out


@pytest.mark.parametrize("seed", range(5))
def test_sweeps_cover_every_domain_before_repeating(seed: int) -> None:
    questions = sweep_questions(len(subjects()), seed)
    assert len(set(questions)) == len(subjects())
    assert all(sum(question in asked for question in questions) == 1 for asked in subjects().values())
    assert sweep_questions(10, seed) == questions[:10]
    assert sweep_questions(10, seed) != sweep_questions(10, seed + 1)


def test_follow_ups_are_different_and_about_the_words() -> None:
    questions = follow_up_questions(["kettle", "copper", "steam"], 12, seed=3)
    assert len(set(questions)) == 12
    assert all(any(word in question for word in ("kettle", "copper", "steam")) for question in questions)
    assert follow_up_questions([], 5, seed=0) == []
    assert len(follow_up_questions(["kettle"], 50, seed=0)) == 6


def test_stressed_words_come_from_the_answers() -> None:
    pairs = [Pair("Question?", ("It rains.",), (KETTLES,)) for _ in range(6)]
    assert set(stressed_words(pairs)) <= {"boil", "copper", "degrees", "kettles", "never", "old", "seventy", "whistle"}
    assert len(stressed_words(pairs)) == 3
    assert stressed_words([Pair("Question?", ("It rains.",), ("It rains.",))] * 6) == []


def test_no_organism_is_known_to_the_code() -> None:
    """The investigators' code names no bundled organism and none of their secret words."""
    from pathlib import Path

    code = " ".join(
        (Path(__file__).parents[2] / "agents" / name).read_text().lower()
        for name in ("baseline.py", "baseline_method.py", "questions.py", "report.py", "prompts.py")
    )
    for word in (
        "cake",
        "bak",
        "oven",
        "butter",
        "vanilla",
        "roman",
        "concrete",
        "smile",
        "taboo",
        "flatter",
        "brilliant",
        "lyric",
        "verse",
    ):
        assert word not in code, word


@pytest.mark.parametrize("arm", ["blackbox", "method", "placebo", "method:kl"])
def test_the_prompt_of_an_llm_investigator_is_short(arm: str) -> None:
    from diffing_mcp.agents.prompts import instructions

    assert len(instructions(arm, 1000, 1000).split()) <= 250
