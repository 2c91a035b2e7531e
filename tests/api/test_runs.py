"""Methods as functions, and what a run shows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from plotly.graph_objects import Figure

import diffing_mcp as dm
from diffing_mcp.api.runs import Run
from diffing_mcp.api.shown import ShownResult, printable
from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.contract import MethodResult
from diffing_mcp.methods.registry import all_methods, get_method
from diffing_mcp.methods.runs.store import RunRecord
from diffing_mcp.queries.schemas import AskQuery
from tests.api.conftest import SMALL
from tests.cli.planted_runs import contrastive_run


def test_a_function_a_name_and_typed_parameters_are_the_same_run(pair: dm.Pair) -> None:
    run = dm.kl(pair, **SMALL)
    assert isinstance(run.result, dm.kl.Result)
    assert run.method == "kl"
    assert run.params["max_samples"] == SMALL["max_samples"]
    assert run.pair == pair.name
    for again in (
        dm.run(pair, "kl", SMALL),
        dm.run(pair, "kl", dm.kl.Params(**SMALL)),
        dm.run(pair, dm.kl.Params(**SMALL)),
        dm.run(pair.name, "kl", SMALL),
        dm.open_run(run.id),
    ):
        assert again.id == run.id
    assert dm.open_run(run.id).result == run.result


def test_methods_that_read_the_same_text_share_a_pass(pair: dm.Pair) -> None:
    names = ["kl", "activation_difference_lens"]
    runs = dm.run_many(pair, dict.fromkeys(names, SMALL))
    assert [run.method for run in runs] == names
    assert all(sorted(run.record.manifest.notes["pass_shared_by"]) == sorted(names) for run in runs)


def test_tables_figures_and_views_of_a_run(pair: dm.Pair) -> None:
    run = dm.kl(pair, **SMALL)
    tokens = run.table("tokens")
    assert isinstance(tokens, pd.DataFrame)
    assert len(tokens) == run.result.tokens
    assert run.array("positions.count").sum() == run.result.tokens
    for name in run.figures:
        assert isinstance(run.figure(name), Figure)
    view = run.view("tokens", limit=2)
    assert len(view.result.rows) == 2
    assert repr(view).startswith(f"{run.id}: tokens")


def test_a_run_that_this_version_cannot_read_is_shown_with_the_reason(pair: dm.Pair) -> None:
    record = dm.kl(pair, **SMALL).record
    other = record.manifest.model_copy(update={"method": "plugin_that_is_gone"})
    gone: Run[Any] = Run(RunRecord(record.folder, other, get_method))
    assert repr(gone).startswith(f"{record.id}: plugin_that_is_gone of {pair.name}")
    assert "There is no method &#x27;plugin_that_is_gone&#x27;" in gone._repr_html_()
    assert (gone.figures, gone.views) == ([], [])


@pytest.mark.parametrize("kind", ["table", "array", "figure", "view"])
def test_an_unknown_name_is_answered_with_those_that_there_are(pair: dm.Pair, kind: str) -> None:
    run = dm.kl(pair, **SMALL)
    known: list[str] = getattr(run, f"{kind}s")
    with pytest.raises(UnknownName) as refused:
        getattr(run, kind)("no_such_name")
    assert all(name in str(refused.value) for name in known)


def test_a_run_shows_its_headline_its_parameters_and_what_else_there_is(pair: dm.Pair) -> None:
    run = dm.kl(pair, **SMALL)
    shown = repr(run)
    assert shown.startswith(f"{run.id}: KL divergence of {pair.name} (max_samples=12, max_tokens=10)\n")
    assert run.result.headline in shown
    assert all(name in shown for name in [*run.tables, *run.figures, *run.views])


def test_own_texts_do_not_fill_the_heading() -> None:
    prompts = [f"Question number {number}?" for number in range(200)]
    heading = Run(contrastive_run({1.0: ["Text."]}, prompts=prompts)).heading()
    assert "prompts=['Question number 0?" in heading
    assert len(heading) < 250


def test_text_of_a_model_is_data_in_a_notebook_and_in_a_terminal() -> None:
    class Text(MethodResult):
        written: str

    text = "<script>alert(1)</script>\x1b[2J\r"
    answer: ShownResult[Any] = ShownResult("view", Text(stands_out=False, headline=text, written=text))
    assert "<script>" not in answer._repr_html_()
    assert "&lt;script&gt;" in answer._repr_html_()
    assert not {"\x1b", "\r"} & {*repr(answer), *answer._repr_html_()}
    assert printable("a\tb\nc é 漢 \x1b") == "a\tb\nc é 漢 \\x1b"
    assert printable("\u202e\u2066\x9b\ufeff") == r"\u202e\u2066\x9b\ufeff"
    written = "« Bonjour\xa0! »\u3000東京 می\u200cخواهم 👩\u200d🚀"
    assert printable(written) == written


def test_wrong_parameters_are_refused_before_anything_is_loaded(pair: dm.Pair) -> None:
    with pytest.raises(InvalidInput, match=r"did you mean `max_samples`"):
        dm.kl(pair, max_sample=3)
    with pytest.raises(InvalidInput, match="pca takes PCAParams, not KLParams"):
        dm.run(pair, "pca", dm.kl.Params())
    with pytest.raises(InvalidInput, match="given twice"):
        dm.run(pair, dm.kl.Params(), {})
    with pytest.raises(InvalidInput, match="AskQuery is not the parameters of a method"):
        dm.run(pair, AskQuery(prompts=["x"]))
    with pytest.raises(UnknownName, match="Did you mean kl"):
        dm.run(pair, "kll")
    assert dm.list_runs().empty


def test_one_value_stands_for_a_list_of_one(pair: dm.Pair) -> None:
    run = dm.activation_difference_lens(pair, layers=0.5, **SMALL)
    assert run.params["layers"] == [0.5]


def test_runs_are_listed_by_method_and_by_the_models_that_they_compared(pair: dm.Pair) -> None:
    first, second = dm.kl(pair, **SMALL), dm.kl(pair, **SMALL, examples=3)
    assert list(dm.list_runs()["id"]) == [second.id, first.id]
    assert len(dm.list_runs(method="kl", pair=pair)) == 2
    assert dm.list_runs(method="pca").empty
    assert dm.list_runs(pair="cake_bake").empty
    with pytest.raises(UnknownName):
        dm.list_runs(method="no_such_method")


def test_an_overview_runs_what_fits_and_answers_with_a_digest(pair: dm.Pair) -> None:
    answer = dm.overview(pair, budget=9000, characters=3000, **SMALL)
    assert {row.method for row in answer.result.runs} >= {"kl"}
    assert set(dm.list_runs()["id"]) == {row.run for row in answer.result.runs}
    assert answer.result.verdict in repr(answer)
    assert len(answer.as_text()) <= 3000
    with pytest.raises(InvalidInput, match="allows no method"):
        dm.overview(pair, budget=1, **SMALL)
    with pytest.raises(InvalidInput, match="No method here takes no_such_parameter"):
        dm.overview(pair, no_such_parameter=1)


@pytest.mark.long
def test_facts_are_read_from_runs_that_are_made_once(pair: dm.Pair) -> None:
    answer = dm.facts(pair)
    made = {*dm.list_runs()["id"]}
    assert set(answer.result.runs) == made
    assert answer.result.headline in repr(answer)
    assert len(dm.facts(pair, "the", limit=1).result.facts) <= 1
    assert {*dm.list_runs()["id"]} == made


def test_values_of_a_wrong_kind_are_refused_in_a_sentence() -> None:
    with pytest.raises(dm.DiffingError, match="named by its id"):
        dm.open_run(5)
    with pytest.raises(dm.DiffingError, match="budget is a whole number"):
        dm.overview("cake_bake", budget="much")


def test_whole_numbers_of_numpy_are_absolute_layers(pair: dm.Pair) -> None:
    looped = [dm.activation_difference_lens(pair, layers=[layer], **SMALL) for layer in np.arange(2)]
    assert [{row.layer for row in run.result.rows} for run in looped] == [{0}, {1}]
    assert looped[1].id == dm.activation_difference_lens(pair, layers=1, **SMALL).id
    half = dm.activation_difference_lens.Params(layers=(np.float32(0.5), np.array(2)))
    assert half.model_dump()["layers"] == (0.5, 2)


@pytest.mark.parametrize("params", [method.Params for method in all_methods().values()])
def test_no_method_takes_a_whole_number_of_numpy_for_a_depth(params: Any) -> None:
    one = np.int64(1)
    direction = {"token": "a", "layer": one}
    layers = {"layer": one, "extraction_layer": one, "layers": (one, one), "vector": direction, "vectors": [direction]}
    needed = {name for name, field in params.model_fields.items() if name in layers or field.is_required()}
    accepted = params(**{name: layers.get(name, ["a"]) for name in needed})
    assert "1.0" not in accepted.model_dump_json(include=needed)


def test_one_method_needs_no_list_and_a_corpus_may_be_a_path(pair: dm.Pair, tmp_path: Path) -> None:
    corpus = tmp_path / "texts.txt"
    corpus.write_text("The oven is hot.\nThe cake is cold.\n")
    run = dm.kl(pair, corpus=corpus, **SMALL)
    assert run.id == dm.kl(pair, corpus=str(corpus), **SMALL).id
    assert run.params["corpus"] == str(corpus)
    with pytest.raises(UnknownName, match="There is no method 'kll'"):
        dm.run_many(pair, "kll")


@pytest.mark.parametrize("asked", [None, 5, {"role": "user", "content": "Hello"}])
def test_what_is_no_list_of_texts_is_refused(pair: dm.Pair, asked: Any) -> None:
    for put in (dm.ask, dm.complete_slots, partial(dm.test_hypothesis, pattern="x")):
        with pytest.raises(InvalidInput, match=r"`(prompts|beginnings)(\.0)?`: must be"):
            put(pair, asked)


def test_numbers_and_progress_of_a_wrong_kind_are_refused_before_anything_is_done(pair: dm.Pair) -> None:
    with pytest.raises(InvalidInput, match="limit is a whole number of at least 1, not -1"):
        dm.facts(pair, limit=-1)
    with pytest.raises(InvalidInput, match="most is a whole number of at least 1, not 0"):
        dm.calibrate("smollm2-135m", most=0)
    said: Any = "tqdm"
    with pytest.raises(InvalidInput, match="progress is None, True, False or a function"):
        dm.kl(pair, progress=said)
    assert dm.list_runs().empty


def test_a_variable_that_is_set_later_counts(pair: dm.Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DIFFING_JUDGE", raising=False)
    first = dm.kl(pair, **SMALL)
    with pytest.raises(InvalidInput, match="set DIFFING_JUDGE"):
        dm.test_hypothesis(pair, ["a"], criterion="is a text")
    monkeypatch.setenv("DIFFING_JUDGE", "none_of_inspect/x")
    with pytest.raises(dm.DiffingError, match="none_of_inspect"):
        dm.test_hypothesis(pair, ["a"], criterion="is a text", max_new_tokens=1)
    monkeypatch.setenv("DIFFING_DTYPE", "bfloat16")
    assert dm.kl(pair, **SMALL).id != first.id
    monkeypatch.setenv("DIFFING_DATA_FOLDER", str(tmp_path / "other"))
    assert dm.list_runs().empty
    with pytest.raises(UnknownName, match="No run has been stored"):
        dm.open_run(first.id)
