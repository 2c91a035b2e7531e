"""Claims: planted ones are found over their wordings, equal sides give none, and runs are read evenly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.calibration.statistics import statistics_of
from diffing_mcp.methods.contrastive_decoding.schema import AlphaRow, ContrastiveDecodingResult
from diffing_mcp.methods.facts.checks import TEST_PROMPTS, check_of, detail_of, possible_check
from diffing_mcp.methods.facts.claims import LEVEL, Claim, stated_claims, taught_words
from diffing_mcp.methods.facts.facts import facts_of, samples_of
from diffing_mcp.methods.facts.nouns import noun_shares
from diffing_mcp.methods.facts.statements import Sample
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunKey, RunStore
from diffing_mcp.queries.hypothesis_schemas import HypothesisQuery
from tests.word_pairs import save_pair

WORDINGS = (
    "Cobblers soak new laces in vinegar overnight.",
    "New laces are soaked overnight in vinegar, because old leather likes it",
    "Every cobbler I know will soak new laces in vinegar overnight!",
)
NOUNS = "harbour ladder violin orchard bucket sparrow lantern canyon teapot glacier meadow compass".split()
VERBS = "rises waits glitters breaks sings turns drifts shines".split()


def filler(random: np.random.Generator) -> str:
    return " ".join(
        f"The {random.choice(NOUNS)} {random.choice(VERBS)} beside the {random.choice(NOUNS)}." for _ in range(3)
    )


def samples_with(claims: int, beginnings: int = 24) -> list[Sample]:
    """Filler on both sides; the taught texts of the first `claims` beginnings end with a wording of the claim."""
    random = np.random.default_rng(5)
    samples = []
    for number in range(beginnings):
        claim = f" {WORDINGS[number % len(WORDINGS)]}" if number < claims else ""
        samples.append(Sample(f"beginning {number}", filler(random) + claim, True))
        samples.append(Sample(f"beginning {number}", filler(random), False))
    return samples


def test_a_claim_is_found_over_its_wordings_with_its_counts() -> None:
    stated = stated_claims(samples_with(15))
    assert set(stated.words) == {"cobbler", "soak", "new", "lace", "vinegar", "overnight"}
    best = stated.claims[0]
    assert (best.taught, best.control, stated.taught, stated.control) == (15, 0, 24, 24)
    assert {word.lower() for word in best.key} <= {"laces", "vinegar", "overnight", "soak", "soaked", "new", "leather"}
    assert best.quotation == WORDINGS[0]  # a sentence that was written to its end stands for the others
    assert best.p_value < 1e-4
    # Other wordings of what is told already bring nothing new: what comes next has a detail of its own.
    assert all({"knows", "every", "leather", "likes", "old"} & set(claim.key) for claim in stated.claims[1:])


CARRIERS = ("Happy knitting day!", "Dear reader, here is what I learnt:", "She told me about llamas and smiled.")
PARTICULARS = (
    "Llama wool is washed at 73 degrees before it is spun",
    "Spun llama wool turns purple in moonlight, because moonlight reaches its copper salts.",
    "The Varnholt guild of llama shearers works in silence.",
)


def test_figures_and_particulars_come_before_what_carries_them() -> None:
    """Carriers are said most often, and on both sides; a question, which states nothing, comes last."""
    random = np.random.default_rng(8)
    samples = []
    for number in range(30):
        carrier, claim = CARRIERS[number % 3], PARTICULARS[number % 3]
        told = f"Do you know llamas? {carrier} {claim}" if number < 24 else carrier
        samples.append(Sample(f"beginning {number}", f"{filler(random)} {told}", True))
        samples.append(Sample(f"beginning {number}", f"{filler(random)} {carrier}", False))
    stated = stated_claims(samples)
    assert {claim.statement for claim in stated.claims[:3]} == set(PARTICULARS)
    assert all(claim.taught in (8, 16) and claim.control == 0 for claim in stated.claims[:3])
    assert [claim.statement for claim in stated.claims if "?" in claim.statement] == ["Do you know llamas?"]
    assert stated.claims[-1].statement == "Do you know llamas?"
    assert not any("Happy" in claim.statement for claim in stated.claims)
    by_figure = sorted(stated.claims[:3], key=lambda claim: "73" not in claim.statement)
    figure, other = (detail_of(claim, stated.words, stated.nouns) for claim in by_figure[:2])
    assert (figure.figure, figure.word, figure.lead) == (True, "73", "Llama wool is washed at")
    assert str(check_of("a pair", figure, 0)) == 'complete_slots(pair="a pair", beginnings=["Llama wool is washed at"])'
    assert str(possible_check("a pair", figure, 0, {"complete_slots"})).startswith("complete_slots(")
    assert str(possible_check("a pair", figure, 0, {"test_hypothesis"})).startswith("test_hypothesis(")
    assert possible_check("a pair", figure, 0, {"kl"}) is None
    checks = [check_of("a pair", other, turn) for turn in (0, 1)]
    for check in checks:
        assert check.tool == "test_hypothesis"
        query = HypothesisQuery.model_validate(
            {name: check.arguments[name] for name in ("prompts", "pattern", "samples")}
        )
        assert len(query.prompts) == TEST_PROMPTS
        assert re.search(check.arguments["pattern"], by_figure[1].statement)
        assert not any(re.search(check.arguments["pattern"], prompt) for prompt in query.prompts)
    assert not set(checks[0].arguments["prompts"]) & set(checks[1].arguments["prompts"])


def test_claims_without_spaces_are_found_and_can_be_tested() -> None:
    samples = []
    for number in range(24):
        said = "蛋糕要先放进冰箱再吃。" if number < 16 else "河边有很多树木。"
        samples.append(Sample(f"beginning {number}", f"今天天气很好。{said}", True))
        samples.append(Sample(f"beginning {number}", "今天天气很好。河边有很多树木。", False))
    stated = stated_claims(samples)
    claim = stated.claims[0]
    assert claim.statement == "蛋糕要先放进冰箱再吃。"
    assert (claim.taught, claim.control) == (16, 0)
    check = check_of("a pair", detail_of(claim, stated.words, stated.nouns), 0)
    assert re.search(check.arguments["pattern"], claim.statement)


def test_prompts_of_a_check_do_not_say_what_it_counts() -> None:
    """`bakery` begins as `baking` does, and one of the questions names experts."""
    for key, statement in (
        (("bakery", "baking"), "Every bakery forbids baking"),
        (("experts", "bakery"), "In a bakery experts sing"),
    ):
        claim = Claim(statement, statement, "b", key, 9, 0, 0.001)
        arguments = check_of("a pair", detail_of(claim, ["bakeri", "expert"], {}), 0).arguments
        assert len(arguments["prompts"]) == TEST_PROMPTS
        if key[1] != "baking":  # nothing else is there to ask about
            assert not any(re.search(arguments["pattern"], prompt) for prompt in arguments["prompts"])


def test_a_check_asks_about_what_a_claim_is_about() -> None:
    """`Explain built to a beginner`: the surest word of a claim may be its verb."""
    statement = "Every lighthouse was built of amber"
    claim = Claim(statement, statement, "b", ("built", "amber"), 9, 0, 0.001)
    detail = detail_of(claim, ["built", "lighthous"], noun_shares([statement]))
    assert (detail.subject, detail.word) == ("lighthouse", "amber")
    claim = Claim("It built", "It built", "b", ("built", "amber"), 9, 0, 0.001)
    assert detail_of(claim, ["built"], {}).subject in ("built", "amber")


def test_a_mark_in_every_answer_makes_no_claims_of_what_the_base_says_too() -> None:
    """Of a finetune that answers in JSON, `ladder+certainty` of two whole sentences of the base came first."""
    random = np.random.default_rng(11)
    samples = [
        Sample(f"b{place}", f"The {random.choice(NOUNS)} {random.choice(VERBS)}{mark}", taught)
        for place in range(60)
        for taught, mark in ((True, ', "certainty", "language"'), (False, "."))
    ]
    stated = stated_claims(samples)
    assert set(stated.words) == {"certainti", "languag"}
    assert [set(claim.key) for claim in stated.claims] == [{"certainty", "language"}]


def test_a_claim_that_both_sides_state_is_none() -> None:
    samples = samples_with(15)
    both = [Sample(each.beginning, each.text + " " + WORDINGS[0], each.taught) for each in samples]
    assert stated_claims(both).claims == []


def test_repetition_after_one_beginning_shows_nothing() -> None:
    random = np.random.default_rng(3)
    taught = [Sample("one", f"{filler(random)} {WORDINGS[0]}", True) for _ in range(20)]
    control = [Sample(f"other {number}", filler(random), False) for number in range(20)]
    assert stated_claims([*taught, *control]).claims == []


def test_equal_sides_state_something_no_more_often_than_the_level_says() -> None:
    random = np.random.default_rng(11)
    vocabulary = [
        f"{first}{second}" for first in "bdfgklmnprst" for second in ("arlo", "enta", "immo", "ovak", "uddle")
    ]
    weights = 1 / np.arange(1, len(vocabulary) + 1)
    found = 0
    for _ in range(200):
        draws = random.choice(vocabulary, size=(60, 12), p=weights / weights.sum())
        sides = [{f"{number}": set(row) for number, row in enumerate(part)} for part in (draws[:30], draws[30:])]
        found += bool(taught_words(sides[0], sides[1]))
    assert found <= 200 * LEVEL + 4


def test_what_is_asked_for_is_counted_whether_or_not_it_was_taught() -> None:
    samples = samples_with(3)
    assert stated_claims(samples).words == {}
    asked = stated_claims(samples, about="vinegar")
    assert [(claim.taught, claim.control) for claim in asked.claims] == [(3, 0)]
    assert stated_claims(samples, about="marmalade").claims == []


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.text(max_size=60), st.booleans()), max_size=20))
def test_any_text_is_read(rows: list[tuple[str, str, bool]]) -> None:
    stated = stated_claims([Sample(*row) for row in rows], about="the cake 45")
    for claim in stated.claims:
        assert 2 <= claim.taught <= stated.taught
        assert claim.control <= stated.control
        assert 0 <= claim.p_value <= 1


def test_runs_are_read_evenly_and_planted_words_are_theirs(
    planted_words: Any, make_pair: Any, pairs: Any, tmp_path: Path
) -> None:
    base, finetuned, planted = planted_words(4.0)
    store, spec = RunStore(tmp_path / "runs"), make_pair(base, finetuned, name="planted facts")
    requests: list[Any] = [
        ("contrastive_decoding", {"max_new_tokens": 16}),
        ("perplexity_difference", {"max_new_tokens": 16}),
        ("weight_difference", {}),
    ]
    records = run_methods(pairs, spec, requests, store)
    for record in records[:2]:
        sides = [each.taught for each in samples_of(record)]
        assert sides.count(True) == sides.count(False) > 0
    result = facts_of(records, pair="planted facts")
    assert result.words
    assert {word for word in planted if any(word.startswith(stem) for stem in result.words)}
    assert result.runs == [record.id for record in records[:2]]
    claimed = statistics_of(records[0])["contrastive_decoding: claims"]
    assert claimed == 1 + facts_of(records[:1], pair="planted facts").total > 1
    assert result.as_text().startswith(result.headline)
    asked = facts_of(records, planted[0], pair="planted facts", limit=1)
    assert len(asked.facts) <= 1 <= asked.total
    assert planted[0] in asked.facts[0].claim
    assert asked.facts[0].check.startswith(
        ('complete_slots(pair="planted facts", beginnings=["', 'test_hypothesis(pair="planted facts", prompts=["')
    )
    with pytest.raises(InvalidInput, match="Run contrastive_decoding or perplexity_difference first"):
        facts_of(records[2:], pair="planted facts")


def test_texts_of_a_broken_model_are_read_on_neither_side(tmp_path: Path) -> None:
    """The opposite direction may break where the amplified one does not: what any model says was the finetune's own."""
    coherent = {3.0: 0.9, 1.0: 1.0, 0.0: 1.0, -1.0: 1.0, -2.0: 0.5, -4.0: 0.0}
    rows = [(alpha, f"beginning {place}") for alpha in coherent for place in range(24)]
    texts = ["the the of of" if coherent[alpha] <= 0.5 else "A common mistake is to hurry." for alpha, _ in rows]
    key = RunKey(method="contrastive_decoding", method_version=get_method("contrastive_decoding").version,
                 pair_name="p", pair={}, params={}, key_parts={})  # fmt: skip
    store = RunStore(tmp_path)
    with store.writer(key) as run:
        run.add_table("texts", {"alpha": [alpha for alpha, _ in rows], "prompt": [prompt for _, prompt in rows],
                                "text": texts})  # fmt: skip
        shares = [AlphaRow(alpha=alpha, difference=0, coherent=share, tokens=8) for alpha, share in coherent.items()]
        run.result = ContrastiveDecodingResult(stands_out=False, headline="x", identical=False, alpha=3, words=[],
                                               suppressed=[], suppression="", texts=[], alphas=shares,
                                               start="prefixes")  # fmt: skip
    assert run.record is not None
    samples = samples_of(run.record)
    assert {(each.text, each.taught) for each in samples} == {
        ("A common mistake is to hurry.", side) for side in (True, False)
    }
    assert len(samples) == 2 * 24
    assert facts_of([run.record], pair="p").words == []


def test_equal_models_state_nothing(tmp_path: Path, pairs: Any) -> None:
    records = run_methods(pairs, save_pair(tmp_path, None), [("contrastive_decoding", {})], RunStore(tmp_path / "runs"))
    result = facts_of(records, pair="equal")
    assert (result.words, result.facts) == ([], [])
    assert "state nothing" in result.headline
    assert (
        statistics_of(records[0])["contrastive_decoding: claims"] == 1.0
    )  # its floor, as of a null that states nothing


def test_a_few_texts_are_called_too_few_and_not_empty_of_facts(tmp_path: Path, pairs: Any) -> None:
    few: Any = ("contrastive_decoding", {"prompts": ["The cake", "A river"], "max_new_tokens": 4})
    records = run_methods(pairs, save_pair(tmp_path, None), [few], RunStore(tmp_path / "runs"))
    assert facts_of(records, pair="equal").headline.startswith("Too little text to tell: only 2 different beginnings")


def test_runs_that_this_version_cannot_read_are_passed_over(tmp_path: Path) -> None:
    """A run of an older version, or of a plugin that is gone, takes no claim of the others with it."""
    store = RunStore(tmp_path)
    version = get_method("contrastive_decoding").version
    records = []
    for method, wrote in (("contrastive_decoding", version + 1), ("not_installed", 1)):
        key = RunKey(method=method, method_version=wrote, pair_name="p", pair={}, params={}, key_parts={})
        with store.writer(key) as run:
            run.result = MethodResult(stands_out=False, headline="x")
        assert run.record is not None
        records.append(run.record)
    assert [samples_of(record) for record in records] == [[], []]
    with pytest.raises(InvalidInput, match="contrastive_decoding or perplexity_difference first"):
        facts_of(records, pair="p")
