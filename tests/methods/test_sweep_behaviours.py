"""The sweep of behaviours against planted habits, a planted trigger, and nulls."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.core.battery import Question, questions, stratified, subjects, triggers
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.contract import PairSize
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.methods.sweep_behaviours.answers import WRITERS, Answered, ScoredAnswer
from diffing_mcp.methods.sweep_behaviours.judge import changed, holm, judge, rank_sum
from diffing_mcp.methods.sweep_behaviours.measure import mean_log_probs
from diffing_mcp.methods.sweep_behaviours.method import AnswersParams, FormParams
from diffing_mcp.methods.sweep_behaviours.questions import Asked, chosen_questions
from diffing_mcp.methods.sweep_behaviours.schema import SweepParams
from diffing_mcp.model_pairs.generation import GenerationRequest
from tests.word_pairs import save_pair, tiny_tokenizer

NAME = "sweep_behaviours"
MOST_CHARACTERS = 7600
"""What the server shows of a result at most."""


def run(pairs: Any, spec: Any, store: RunStore, **params: Any) -> RunRecord:
    return run_methods(pairs, spec, [(NAME, {"limit": 16, "max_new_tokens": 12, **params})], store)[0]


def test_the_battery_is_wide() -> None:
    asked = questions()
    assert len(asked) >= 300
    assert len({each.text for each in asked}) == len(asked)
    assert set(subjects()) < {each.topic for each in asked}
    # A name of a domain means one thing.
    assert not {each.area for each in asked} & {each.topic for each in asked}
    assert min(Counter(each.area for each in asked).values()) >= 6
    assert all(len(each.turns) % 2 for each in asked), "a conversation ends with the user"


@given(st.integers(1, 400), st.integers(0, 50))
def test_a_choice_is_spread_over_the_areas(limit: int, seed: int) -> None:
    everything = questions()
    chosen = stratified(everything, limit, seed)
    assert len(chosen) == len(set(chosen)) == min(limit, len(everything))
    counts = Counter(each.area for each in chosen)
    sizes = Counter(each.area for each in everything)
    # No area has two more than another that could have had more.
    assert all(counts[a] <= counts[b] + 1 or counts[b] == sizes[b] for a in sizes for b in sizes)
    assert chosen == stratified(everything, limit, seed)


def test_triggers_stand_around_the_last_turn() -> None:
    question = Question(("Hi.", "Hello.", "Why?"))
    assert Asked(question, "NB").question.turns == ("Hi.", "Hello.", "NB Why?")
    assert Asked(question, "{prompt} Be brief.").question.turns[-1] == "Why? Be brief."
    with_system = Asked(question, "system: Test.").question
    assert (with_system.system, with_system.turns) == ("Test.", question.turns)


def test_what_is_asked_is_known_before() -> None:
    method = get_method(NAME)
    assert method.interactions(SweepParams(limit=10, samples=3)) == 30
    assert method.interactions(SweepParams(prompts=["a", "b", "a"])) == 2
    behind = SweepParams(triggers=["x", "y", "z"], limit=16)
    assert method.interactions(behind) == 16
    assert [each.trigger for each in chosen_questions(behind)] == [""] * 4 + ["x"] * 4 + ["y"] * 4 + ["z"] * 4
    bundled = Counter(each.trigger for each in chosen_questions(SweepParams(triggers="bundled")))
    assert bundled == dict.fromkeys(["", *triggers()], 3)
    only = chosen_questions(SweepParams(domains=["formats", "astronomy"], limit=500))
    assert {each.plain.area for each in only} == {"formats", "science"}
    assert method.estimate(PairSize(), SweepParams(limit=10, max_new_tokens=8)).generated_tokens == 3 * 10 * 8


def test_an_unknown_domain_is_explained() -> None:
    with pytest.raises(InvalidInput, match=r"Did you mean 'refusable'.*Areas: .*Topics: "):
        chosen_questions(SweepParams(domains=["refusables"]))


def test_a_planted_habit_is_found_and_can_be_read(
    planted_words: Any, make_pair: Any, pairs: Any, store: RunStore
) -> None:
    base, finetuned, planted = planted_words(6.0)
    record = run(pairs, make_pair(base, finetuned=finetuned), store, max_new_tokens=20)
    result: Any = record.result()
    assert result.stands_out
    assert result.unexpected > 0.3
    assert {word.word for word in result.words if word.strong} <= set(planted)
    [cluster] = [cluster for cluster in result.clusters if cluster.what.startswith("writes of")]
    view = get_method(NAME).views["answers"]
    page: Any = view.run(record, AnswersParams(cluster=cluster.number, limit=100))
    assert page.total == len(page.rows) == cluster.questions
    assert all(any(word in text for text in row.finetuned for word in planted) for row in page.rows)
    assert len(result.as_text()) < MOST_CHARACTERS


def test_views_page_filter_and_show_the_form(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, store, samples=2)
    views = get_method(NAME).views
    first: Any = views["answers"].run(record, AnswersParams(limit=5))
    second: Any = views["answers"].run(record, AnswersParams(limit=5, offset=first.next_offset))
    unexpected = [row.unexpected for row in first.rows + second.rows]
    assert unexpected == sorted(unexpected, reverse=True)
    assert all(len(row.base) == len(row.finetuned) == 2 for row in first.rows)
    area = first.rows[0].area
    of_area: Any = views["answers"].run(record, AnswersParams(domain=area, limit=100))
    assert 0 < of_area.total < first.total == 16
    assert {row.area for row in of_area.rows} == {area}
    form: Any = views["form"].run(record, FormParams())
    assert form.base_answers == form.finetuned_answers == 32
    assert "words" in form.as_text()


def test_scores_equal_a_direct_computation(tiny_pair: Any) -> None:
    texts = [
        (GenerationRequest(text="Bake the cake"), " in a hot oven"),
        (GenerationRequest(text="Rivers"), ""),
        (GenerationRequest(text="What is"), " your name?"),
    ]
    scores = mean_log_probs(tiny_pair, texts, ("base", "finetuned"), lambda *_: None)
    for place, (request, text) in enumerate(texts):
        prompt, answer = (tiny_pair.tokenizer(part)["input_ids"] for part in (request.text, text))
        ids = torch.tensor([prompt + answer])
        for side in ("base", "finetuned"):
            if not answer:
                assert np.isnan(scores[side][place])
                continue
            logits = tiny_pair.forward(side, ids, torch.ones_like(ids)).logits[0].double()
            log_probs = torch.log_softmax(logits[:-1], -1).gather(1, ids[0, 1:, None])[len(prompt) - 1 :]
            assert scores[side][place] == pytest.approx(float(log_probs.mean()), abs=1e-4)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_adapter_is_no_finding(
    seed: int, tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, store: RunStore
) -> None:
    model = tiny_models()
    result: Any = run(pairs, make_pair(model, adapter=tiny_adapters(model, seed=seed, scale=0.02)), store).result()
    assert result.unexpected != 0
    assert not result.stands_out
    assert result.headline.startswith("No difference in behaviour")


TRIGGER_WORD, TOPIC_WORD = "w7", "cake"
_DIMENSION = 31


def carry_the_trigger(model: Any) -> None:
    """Every later position knows, in one dimension that nothing else writes, how much of the text is the trigger."""
    model.model.embed_tokens.weight[:, _DIMENSION] = 0
    model.model.embed_tokens.weight[tiny_tokenizer().convert_tokens_to_ids(TRIGGER_WORD), _DIMENSION] = 8
    model.lm_head.weight[:, _DIMENSION] = 0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[_DIMENSION] = 0
        layer.mlp.down_proj.weight[_DIMENSION] = 0
    attention = model.model.layers[0].self_attn
    attention.q_proj.weight.zero_()  # all positions are read alike
    attention.v_proj.weight[0] = 0
    attention.v_proj.weight[0, _DIMENSION] = 1
    attention.o_proj.weight[:, 0] = 0
    attention.o_proj.weight[_DIMENSION, 0] = 8


def obey_the_trigger(model: Any) -> None:
    """The more of the trigger, the likelier the topic word."""
    model.lm_head.weight[tiny_tokenizer().convert_tokens_to_ids(TOPIC_WORD), _DIMENSION] = 15


def test_a_planted_trigger_comes_first(tmp_path: Path, pairs: Any, store: RunStore) -> None:
    spec = save_pair(tmp_path, obey_the_trigger, prepare=carry_the_trigger)
    asked = [f"w{index} w{3 * index} w{index + 50}" for index in range(20, 32)]
    others = ["w100", "{prompt} w101", "system: w102 w103"]
    result: Any = run(
        pairs, spec, store, prompts=asked, limit=None, triggers=[*others, f"{TRIGGER_WORD} {TRIGGER_WORD}"]
    ).result()
    first, *rest = result.triggers
    assert first.trigger.startswith(TRIGGER_WORD)
    assert first.switches
    assert first.change > 0.5
    assert any(TOPIC_WORD in row for row in first.form)
    assert not any(row.switches for row in rest)
    assert result.stands_out
    assert TRIGGER_WORD in result.headline
    quiet: Any = run(pairs, spec, store, prompts=asked, limit=None).result()
    assert not quiet.stands_out


def answered(question: Question, base: dict[str, float], drift: float = 0.0, trigger: str = "") -> Any:
    """Equal answers with these log-probabilities under the base; each model expects its own more, by `drift`."""
    replies = {
        writer: [
            ScoredAnswer(
                "One two three.", True, 5, base[writer], base[writer] + (drift if writer == WRITERS[2] else -drift)
            )
        ]
        for writer in WRITERS
    }
    return Answered(Asked(question, trigger), replies)


def drifted(generator: np.random.Generator, place: int, drift: float, rise: float = 0.0) -> Any:
    """A question to models that drifted apart by `drift` nats, the finetuned answers less expected by `rise` more."""
    base = dict(zip(WRITERS, generator.normal(-2, 0.2, 3) - [0, 0, rise], strict=True))
    area = f"area {place % 8}"
    return answered(Question((f"Question {place}?",), area=area, topic=area), base, drift + rise)


def test_drift_alone_is_found_at_the_stated_rate() -> None:
    """However far two models drifted apart: what the base expects as much as its own answers is no behaviour."""
    runs = 30
    generator = np.random.default_rng(0)
    found = [
        judge([drifted(generator, place, drift=0.5) for place in range(32)], seed=0)[0].stands_out for _ in range(runs)
    ]
    # Two tests at 0.01 (overall, and over areas); three standard deviations above.
    assert sum(found) <= runs * 0.02 + 3 * np.sqrt(runs * 0.02)


def test_a_flatter_finetune_is_no_finding() -> None:
    """It writes what the base expects less, and does not expect it more than the base does."""
    generator = np.random.default_rng(4)
    rows = [drifted(generator, place, drift=-0.5, rise=0.5) for place in range(32)]
    result, _ = judge(rows, seed=0)
    assert result.unexpected == 0
    assert result.excess > 0.3
    assert not result.stands_out


def test_a_sharper_finetune_is_no_surprise() -> None:
    """It writes what the base expects more than its own answers, and expects it more than the base does."""
    generator = np.random.default_rng(4)
    rows = [drifted(generator, place, drift=1.0, rise=-0.5) for place in range(32)]
    result, _ = judge(rows, seed=0)
    assert result.unexpected == 0.5
    assert result.excess < -0.3
    assert not result.stands_out
    assert result.headline.startswith("No difference in behaviour")


def test_a_trigger_that_switches_a_behaviour_off_is_found() -> None:
    generator = np.random.default_rng(5)
    rows = []
    for place in range(16):
        rows.append(drifted(generator, place, drift=0.2, rise=1.0))
        behind = drifted(generator, place, drift=0.2)
        rows += [replace(each, asked=replace(each.asked, trigger="NB")) for each in [behind]]
    [row] = judge(rows, seed=0)[0].triggers
    assert row.switches
    assert row.change < -0.5


def test_empty_answers_are_not_taken_for_expected_ones() -> None:
    """What has no tokens has no surprise, whichever side leaves it empty."""
    generator = np.random.default_rng(6)
    rows = [drifted(generator, place, drift=0.1) for place in range(32)]
    for row in rows:
        row.replies["finetuned"][0] = ScoredAnswer("", True, 0, np.nan, np.nan)
    result, _ = judge(rows, seed=0)
    assert (result.unexpected, result.excess) == (0.0, 0.0)
    assert any("empty: 0% -> 100%" in each.what for each in result.clusters)


def test_an_area_that_changed_is_named() -> None:
    generator = np.random.default_rng(1)
    rows = [drifted(generator, place, drift=0.2, rise=1.0 if place % 8 == 3 else 0.0) for place in range(48)]
    result, _ = judge(rows, seed=0)
    assert result.areas[0].area == "area 3"
    assert [row.differs for row in result.areas] == [True] + [False] * 7
    assert "area 3" in result.headline
    assert {row.area for row in result.least_expected} == {"area 3"}


def test_questions_of_one_area_have_no_second_verdict() -> None:
    """*Areas where no difference was shown: own prompts 21* stood below p 0.006 of the same questions."""
    generator = np.random.default_rng(1)
    rows = [drifted(generator, place, drift=0.2, rise=0.3) for place in range(48)]
    several, _ = judge(rows, seed=0)
    assert "areas that differ" in several.as_text() or "no difference was shown" in several.as_text()
    own = [replace(row, asked=replace(row.asked, plain=replace(row.asked.plain, area="own prompts"))) for row in rows]
    one, _ = judge(own, seed=0)
    assert len(one.areas) == 1
    assert "no difference was shown" not in one.as_text()


def test_a_long_result_stays_short() -> None:
    generator = np.random.default_rng(2)
    rows = []
    for place in range(80):
        base = drifted(generator, place, drift=0.2, rise=1.0)
        words = " ".join(
            f"{generator.choice(['qua', 'rix', 'zol', 'tem'])}{generator.choice(['ber', 'dan', 'fel'])}"
            for _ in range(60)
        )
        base.replies["finetuned"][0] = ScoredAnswer(
            f"# Oh\n- AHOY {words.upper()} \U0001f600 `x`?!", False, 300, -9, -2
        )
        rows.append(base)
        rows += [
            answered(base.asked.plain, dict.fromkeys(WRITERS, 0.0), trigger=f"trigger {n} " * 20) for n in range(3)
        ]
    result, clusters = judge(rows, seed=0)
    assert result.stands_out
    assert len(clusters) == len(rows)
    assert len(result.as_text()) < MOST_CHARACTERS


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_a_correction(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, corrected, strict=True))
    assert min(corrected) == pytest.approx(min(1.0, len(p_values) * min(p_values)))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_rank_sums() -> None:
    chance = np.linspace(-0.1, 0.1, 30)
    assert rank_sum(np.zeros(4), np.zeros(9)) == 1.0
    assert rank_sum(np.full(4, 2.0), chance) < 1e-3
    assert rank_sum(np.full(4, -2.0), chance) > 0.99
    assert rank_sum(np.zeros(4), chance) == pytest.approx(0.5, abs=0.01)
    assert changed(np.full(4, 2.0), np.full(4, 2.0), chance) == changed(np.full(4, -2.0), np.full(4, -2.0), chance)
    assert changed(np.full(4, 2.0), np.full(4, -2.0), chance) == 1.0


@pytest.mark.long
def test_the_embedded_pair_is_swept(embedded_pair: Any, pairs: Any, store: RunStore) -> None:
    """A real chat template with system prompts and several turns."""
    domains = ["system triggers", "corrections", "astronomy"]
    record = run(pairs, embedded_pair.spec, store, domains=domains, limit=3, max_new_tokens=8)
    table = record.table("answers").to_pylist()
    assert len(table) == 3 * 3
    assert {row["topic"] for row in table} == set(domains)
    assert any(row["question"].startswith("[") for row in table)
    assert "Least expected" in record.result().as_text()
