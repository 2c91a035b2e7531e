"""Steering: a planted token comes up, zero and breaking directions are said plainly, numbers equal plain generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.methods.steering.method import AnswersParams
from diffing_mcp.methods.steering.schema import SEARCH_PROMPTS, SteeringParams
from diffing_mcp.methods.texts.amplified import SearchedParams, TextScores, repetition
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling

PROMPTS = ["The", "One day", "It is", "Rivers run"]
SMALL = {"prompts": PROMPTS, "raw_text": True, "max_new_tokens": 6}


def run(pairs: Any, spec: Any, store: RunStore, **params: Any) -> RunRecord:
    return run_methods(pairs, spec, [("steering", {**SMALL, **params})], store)[0]


def test_a_planted_word_is_brought_up(planted_words: Any, make_pair: Any, pairs: Any, store: RunStore) -> None:
    base, _, words = planted_words(0.0)
    spec = make_pair(base, declared_identical=True, name="words")
    prompts = [f"the {word}" for word in ("river", "mountain", "old bridge", "rain", "stones", "fox", "boats", "sea")]
    params = {
        "vector": {"token": f" {words[0]}", "layer": 2},
        "strengths": [3.0],
        "prompts": prompts,
        "samples_per_prompt": 2,
    }
    record = run(pairs, spec, store, **params)
    result: Any = record.result()
    assert result.stands_out
    assert result.words[0].word == words[0]
    assert result.words[0].strong
    assert result.evidence_words()[0].word == words[0]
    reverse: Any = run(pairs, spec, store, **{**params, "strengths": [-3.0]}).result()
    assert words[0] not in [word.word for word in reverse.words]
    view: Any = get_method("steering").views["answers"].run(record, AnswersParams(contains=words[0], limit=3))
    assert view.total >= 8
    assert all(words[0] in row.steered for row in view.rows)
    # The controls can be read beside them and searched: the word comes up by the direction, not by chance.
    rows = record.table("answers").to_pylist()
    control: Any = (
        get_method("steering")
        .views["answers"]
        .run(record, AnswersParams(contains=words[0], within="random", limit=100))
    )
    assert control.total == sum(words[0] in row["random"] for row in rows) < view.total / 2
    assert [row.random for row in view.rows] == [row["random"] for row in rows if words[0] in row["steered"]][:3]


def test_strength_zero_changes_nothing(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, store, vector={"token": "e", "layer": 1}, strengths=[0.0], side="both")
    rows = record.table("answers").to_pylist()
    assert len(rows) == 2 * len(PROMPTS)
    with pytest.raises(UnknownName, match="strengths were given"):
        get_method("steering").views["searched"].run(record, SearchedParams())
    assert all(row["steered"] == row["unsteered"] == row["random"] for row in rows)
    assert not record.result().stands_out
    sampling = Sampling(max_new_tokens=6)
    plain = tiny_pair.generate("base", [GenerationRequest(text=prompt) for prompt in PROMPTS], sampling)
    assert [row["unsteered"] for row in rows if row["side"] == "base"] == [several[0].text for several in plain]


@pytest.mark.parametrize("positions", ["prompt_only", "linear_decay"])
def test_positions_make_a_difference(positions: str, tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    common = {"vector": {"token": "e", "layer": 1}, "strengths": [4.0], "decay_tokens": 2, "max_new_tokens": 10}
    everywhere, some = (
        run(pairs, tiny_pair.spec, store, **common, positions=each).table("answers").to_pylist()
        for each in ("all_tokens", positions)
    )
    assert [row["steered"] for row in everywhere] != [row["steered"] for row in some]
    assert [row["unsteered"] for row in everywhere] == [row["unsteered"] for row in some]


def test_the_search_tries_both_signs_and_keeps_coherent_strengths(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, store, vector={"token": "e", "layer": 1})
    result: Any = record.result()
    tried = {row.strength: row.coherent for row in result.coherence}
    assert min(tried) < 0 < max(tried)
    for sign in (1, -1):
        passing = [abs(strength) for strength, coherent in tried.items() if strength * sign > 0 and coherent >= 0.75]
        kept = [abs(strength) for strength in result.strengths if strength * sign > 0]
        assert kept == ([max(passing)] if passing else [])
    with pytest.raises(UnknownName, match="own prompts"):  # whose answers are charged for at the strengths taken only
        get_method("steering").views["searched"].run(record, SearchedParams())


def test_the_texts_of_a_search_are_kept_to_be_judged(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, store, vector={"token": "e", "layer": 1}, prompts=None)
    tried = {row["strength"]: row["coherent"] for row in record.table("strengths").to_pylist()}
    first: Any = get_method("steering").views["searched"].run(record, SearchedParams(strength=2.0))
    assert set(first.strengths) == set(tried)
    assert {row.strength for row in first.rows} == {2.0}
    assert [row.prompt for row in first.rows] == list(SEARCH_PROMPTS)
    groups = {(group.strength, group.role): group for group in get_method("steering").text_groups(record)}
    assert {strength for strength, role in groups if role == "search"} == set(tried)
    assert all(
        group.coherent == tried[group.strength]
        for group in groups.values()
        if group.series and group.strength is not None
    )
    assert get_method("steering").figures[0].build(record)["data"]


def test_a_direction_that_breaks_every_text_is_said_plainly(
    tiny_pair: Any, pairs: Any, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffing_mcp.methods.texts.amplified.PERPLEXITY_ROOM", -100.0)  # no text can be coherent
    record = run(pairs, tiny_pair.spec, store, vector={"token": "e", "layer": 1}, prompts=None)
    result: Any = record.result()
    assert get_method("steering").views["searched"].run(record, SearchedParams()).model_dump()["total"] == 3 * len(
        result.coherence
    )
    assert not result.stands_out
    assert "cannot steer" in result.headline
    assert result.answers == []
    assert result.coherence


def test_a_zero_direction_is_said_plainly(identical_pair: Any, pairs: Any, store: RunStore) -> None:
    lens = run_methods(
        pairs,
        identical_pair.spec,
        [("activation_difference_lens", {"max_samples": 8, "max_tokens": 8, "layers": [1]})],
        store,
    )[0]
    result: Any = run(pairs, identical_pair.spec, store, vector=f"{lens.id}/1:0:difference").result()
    assert not result.stands_out
    assert "zero" in result.headline


def test_coherence_is_relative_to_unsteered_texts() -> None:
    reference = TextScores(np.array([2.0, 2.2, 2.4]), np.array([0.0, 0.0, 0.1]))
    texts = TextScores(np.array([2.5, 9.0, 2.5, np.inf]), np.array([0.1, 0.0, 0.9, 0.0]))
    assert texts.coherent(reference).tolist() == [True, False, False, False]
    assert repetition("one two three four five") == 0
    assert repetition("no no no no no no no no") > 0.8


def test_own_prompts_cost_interactions() -> None:
    method = get_method("steering")
    params = SteeringParams.model_validate(
        {"vector": {"token": "e"}, "prompts": ["a", "b"], "samples_per_prompt": 3, "strengths": [1.0, 2.0]}
    )
    assert method.interactions(params) == 12
    assert method.interactions(SteeringParams.model_validate({"vector": {"token": "e"}})) == 0
