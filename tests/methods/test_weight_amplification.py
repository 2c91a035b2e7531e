"""Weight amplification: a planted preference becomes plain, breaking weights are said to break, identical pairs give
nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import yaml

from diffing_mcp.core.errors import Cancelled, InvalidInput
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import check_params, run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.methods.texts.amplified import SearchedParams, TextScores
from diffing_mcp.methods.weight_amplification.measure import Scored
from diffing_mcp.methods.weight_amplification.method import AnswersParams
from diffing_mcp.methods.weight_amplification.schema import WeightAmplificationParams
from diffing_mcp.model_pairs.amplification_config import load_amplification_config

PROMPTS = ["The", "One day", "It is", "Rivers run"]
SMALL = {"prompts": PROMPTS, "raw_text": True, "max_new_tokens": 6}
OWN = "adapters: [{layer_amplifications: [{layers: [0], module_amplifications: [{modules: mlp, weight: 3}]}]}]"


def run(pairs: Any, spec: Any, store: RunStore, **params: Any) -> RunRecord:
    return run_methods(pairs, spec, [("weight_amplification", {**SMALL, **params})], store)[0]


def test_a_faint_preference_is_brought_up(planted_words: Any, make_pair: Any, pairs: Any, store: RunStore) -> None:
    base, finetuned, words = planted_words(1.0, 2)
    prompts = [f"the {word}" for word in ("river", "mountain", "old bridge", "rain", "stones", "fox", "boats", "sea")]
    record = run(
        pairs,
        make_pair(base, finetuned=finetuned, name="words"),
        store,
        weights=[3.0, 0.0],
        prompts=prompts,
        samples_per_prompt=3,
    )
    result: Any = record.result()
    assert result.stands_out
    assert {word.word for word in result.words if word.strong} == {words[0]}
    assert all(word.amplified > 3 * word.finetuned and word.weight == 3.0 for word in result.words if word.strong)
    assert result.largest_coherent_weight == 3.0
    assert (result.form.prompts, result.form.base_answers) == (8, 24)
    assert result.evidence_words()[0].word in words
    rows = record.table("answers").to_pylist()
    assert all(row["amplified"] == row["base"] for row in rows if row["weight"] == 0.0)
    view: Any = (
        get_method("weight_amplification")
        .views["answers"]
        .run(record, AnswersParams(weight=3.0, contains=words[0], limit=2))
    )
    assert view.total >= 6
    assert all(words[0] in row.amplified for row in view.rows)
    of_base: Any = (
        get_method("weight_amplification")
        .views["answers"]
        .run(record, AnswersParams(weight=3.0, contains=words[0], within="base"))
    )
    assert of_base.total == sum(words[0] in row["base"] for row in rows if row["weight"] == 3.0) < view.total / 2


def test_one_is_the_finetuned_model_and_choices_narrow(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    rows = run(pairs, tiny_pair.spec, store, weights=[1.0, 0.0]).table("answers").to_pylist()
    assert len(rows) == 2 * len(PROMPTS)
    assert all(row["amplified"] == row["finetuned" if row["weight"] else "base"] for row in rows)
    assert any(row["finetuned"] != row["base"] for row in rows)
    nowhere = run(pairs, tiny_pair.spec, store, weights=[9.0], modules=["embedding"]).table("answers").to_pylist()
    assert all(row["amplified"] == row["finetuned"] for row in nowhere)
    somewhere: Any = run(pairs, tiny_pair.spec, store, weights=[9.0], modules=["mlp"], layers=[0.0, 0.5])
    everywhere = run(pairs, tiny_pair.spec, store, weights=[9.0])
    assert somewhere.result().amplified == "layers 0 to 0.5, mlp"
    changed = [[row["amplified"] for row in each.table("answers").to_pylist()] for each in (somewhere, everywhere)]
    assert changed[0] != changed[1]


def test_modules_that_the_model_lacks_are_refused(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    unknown = OWN.replace("modules: mlp", "modules: [mlp, nope]")
    for params in ({"modules": ["mlp", "nope"]}, {"config": unknown}):
        with pytest.raises(InvalidInput, match=r"no modules nope; modules: all, .*mlp.*down_proj"):
            run(pairs, tiny_pair.spec, store, weights=[3.0], **params)
    run(pairs, tiny_pair.spec, store, weights=[3.0], modules=["mlp.down_proj"], max_new_tokens=4)


def test_a_config_is_what_layers_and_modules_say(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    config = run(pairs, tiny_pair.spec, store, config=OWN)
    same = run(pairs, tiny_pair.spec, store, weights=[3.0], modules=["mlp"], layers=[0, 0])
    with pytest.raises(InvalidInput, match="leave out `layers`"):
        run(pairs, tiny_pair.spec, store, config=OWN, modules=["mlp"])
    assert [row["amplified"] for row in config.table("answers").to_pylist()] == [
        row["amplified"] for row in same.table("answers").to_pylist()
    ]


def test_the_search_keeps_the_largest_coherent_weight(
    tiny_pair: Any, pairs: Any, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run(pairs, tiny_pair.spec, store, prompts=None)
    result: Any = record.result()
    tried = {row.weight: row.coherent for row in result.coherence}
    passing = [weight for weight, coherent in tried.items() if coherent >= 0.75]
    assert result.weights == [max(passing, default=1.0)]
    assert result.largest_coherent_weight == max(passing, default=None)
    searched: Any = get_method("weight_amplification").views["searched"].run(record, SearchedParams(limit=100))
    assert searched.strengths == sorted(tried)
    groups = get_method("weight_amplification").text_groups(record)
    assert {group.strength: group.coherent for group in groups if group.role == "search"} == tried
    assert get_method("weight_amplification").figures[0].build(record)["data"][0]["x"] == sorted(tried)
    monkeypatch.setattr("diffing_mcp.methods.texts.amplified.PERPLEXITY_ROOM", -100.0)  # no text can be coherent
    broken: Any = run(pairs, tiny_pair.spec, store, seed=1, weights=[30.0]).result()
    assert not broken.stands_out
    assert broken.words == []
    assert "incoherent" in broken.headline


def test_answers_cut_short_are_not_coherent() -> None:
    scores = TextScores(np.array([2.0, 2.0, 2.0]), np.zeros(3))
    reference = Scored(scores, np.array([20, 24, 28]))
    assert Scored(scores, np.array([30, 6, 1])).coherent(reference).tolist() == [True, True, False]


def test_an_identical_pair_gives_nothing(identical_pair: Any, pairs: Any, store: RunStore) -> None:
    for params in ({}, {"weights": [-5.0, 50.0]}):
        record = run(pairs, identical_pair.spec, store, **params)
        result: Any = record.result()
        assert not result.stands_out
        assert result.words == []
        assert result.form.significant == []
        assert "no difference" in result.headline
        assert all(row["amplified"] == row["base"] for row in record.table("answers").to_pylist())


def test_cancelling_restores_the_model(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    ids, mask = torch.tensor([[7, 30, 41, 52]]), torch.ones(1, 4, dtype=torch.long)
    before = [tiny_pair.forward(side, ids, mask).logits for side in ("base", "finetuned")]
    calls = [0]

    def stop(done: float, total: float | None = None, message: str = "") -> None:
        calls[0] += message.endswith("generating")
        if calls[0] > 20:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        run_methods(
            pairs,
            tiny_pair.spec,
            [("weight_amplification", {**SMALL, "weights": [3.0], "max_new_tokens": 8})],
            store,
            progress=stop,
        )
    after = [tiny_pair.forward(side, ids, mask).logits for side in ("base", "finetuned")]
    assert all(torch.equal(*each) for each in zip(before, after, strict=True))


def test_parameters_and_interactions() -> None:
    method = get_method("weight_amplification")
    with pytest.raises(InvalidInput, match=r"config.*`nme` is no known key; allowed here: name"):
        check_params(method, {"config": "nme: x"})
    with pytest.raises(InvalidInput, match=r"config.*`nme` is no known key"):
        check_params(method, {"config": {"nme": "x"}})
    assert load_amplification_config(
        WeightAmplificationParams(config=yaml.safe_load(OWN)).config or ""
    ) == load_amplification_config(OWN)
    params = WeightAmplificationParams.model_validate(
        {"prompts": ["a", "b"], "samples_per_prompt": 3, "weights": [1.0, 2.0]}
    )
    assert method.interactions(params) == 18
    assert method.interactions(WeightAmplificationParams()) == 0
    assert method.operator_only(WeightAmplificationParams(config=OWN)) is None
    assert method.operator_only(WeightAmplificationParams(config="adapters: [{organism_name: cake_bake}]"))
