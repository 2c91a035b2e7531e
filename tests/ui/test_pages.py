"""The panel's data as its programs see it (gradio_client), and what its pages make of records and runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client

from benchmarks.panel_pages import page_seconds
from benchmarks.panel_store import write_runs, write_transcripts
from diffing_mcp.agents.records import EvaluationFolder, EvaluationPlan, EvaluationRecord, FactRecallRecord
from diffing_mcp.methods.examples.reader import Example, ExampleContext
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.store import RunRecord
from diffing_mcp.methods.views.figures import plain_labels
from diffing_mcp.ui.evidence import evidence_html, numbers_html, passage_html
from diffing_mcp.ui.examples_view import examples_html, histogram_html
from diffing_mcp.ui.files import PanelFiles
from diffing_mcp.ui.lens_grid import grid_html, is_grid
from diffing_mcp.ui.pair_findings import findings_of
from diffing_mcp.ui.pair_view import verdict_html
from diffing_mcp.ui.parameters import entered
from diffing_mcp.ui.results import default_measure, grade_figure, summary_html, table_html
from diffing_mcp.ui.run_views import (
    WITHIN_NULL,
    figures,
    headline_html,
    manifest_html,
    view_choices,
    view_fields,
    view_html,
)
from diffing_mcp.ui.runs import ROWS, listed, offset_of
from diffing_mcp.ui.theme import BASE, FINETUNED, plot_layout
from diffing_mcp.ui.transcript_search import search_html
from diffing_mcp.ui.transcript_view import readable, transcript_html
from diffing_mcp.ui.transcripts import page_html, record_html
from tests.ui.conftest import Paths
from tests.ui.panel_data import EVALUATION, EVIL, write_evaluation
from tests.ui.panel_data import write_runs as write_probe_runs

TAUGHT, NULL = (f"{organism}/default@smollm2-135m" for organism in ("cake_bake", "control"))


@pytest.fixture(scope="module")
def client(panel: str) -> Client:
    return Client(panel, verbose=False)


def test_results_over_the_api(client: Client) -> None:
    answer = client.predict(EVALUATION, api_name="/results")
    rows = {(row["organism"], row["arm"]): row for row in answer["summary"]["rows"]}
    assert answer["plan"]["id"] == EVALUATION
    assert rows["cake_bake", "method"]["topic_named"]["estimate"] == 1.0
    assert rows["cake_bake", "blackbox"]["topic_named"]["estimate"] == pytest.approx(1 / 3)
    rates = {arm["arm"]: arm["false_positive_rate"]["estimate"] for arm in answer["summary"]["arms"]}
    assert rates == {"blackbox": pytest.approx(1 / 6), "method": 0.0}


def test_a_transcript_over_the_api(client: Client) -> None:
    record = client.predict(EVALUATION, "cake_bake", "method", 1, api_name="/transcript")
    assert record["repeat"] == 1
    assert record["budgets"]["model_interactions"] == {"limit": 20, "used": 14}


def test_a_run_over_the_api(client: Client, filled: Paths) -> None:
    manifest = PanelFiles(filled.data_folder).runs.list(pair=TAUGHT)[0]
    answer = client.predict(manifest.id, api_name="/run")
    assert answer["manifest"]["pair_name"] == TAUGHT
    assert answer["result"]["tokens"] == 1920


@pytest.mark.parametrize(
    "call",
    [
        ("/results", ("nothing",)),
        ("/run", ("kl-ffffff",)),
        ("/transcript", (EVALUATION, "no", "method", 0)),
        ("/results", ("../../etc",)),
    ],
)
def test_unknown_names_are_errors(client: Client, call: tuple[str, tuple[Any, ...]]) -> None:
    with pytest.raises(Exception, match="There is no"):
        client.predict(*call[1], api_name=call[0])


def test_figure_has_every_repeat_and_the_mean_with_its_interval(filled: Paths) -> None:
    evaluation = PanelFiles(filled.data_folder).evaluation(EVALUATION)
    assert evaluation is not None
    assert default_measure(evaluation) == "grade"
    figure = grade_figure(evaluation, "fact_recall")
    assert figure is not None
    dots, means = figure["data"][0], figure["data"][1]
    assert len(dots["x"]) == 6, "two taught organisms, three repeats; a null has no recall"
    assert means["name"] == "blackbox"
    assert means["x"] == [pytest.approx(0.2)] * 2
    assert all(low > 0 for low in means["error_x"]["arrayminus"])
    # The organisms stand in the order of the plan, the first one on top.
    assert figure["layout"]["yaxis"]["ticktext"][0] == "cake_bake"
    assert figure["layout"]["yaxis"]["tickvals"][0] > figure["layout"]["yaxis"]["tickvals"][1]


def test_empty_folder_says_what_to_run(tmp_path: Path) -> None:
    assert "diffing evaluate" in summary_html(PanelFiles(tmp_path).evaluation(None))
    assert PanelFiles(tmp_path).evaluation_choices() == []


def test_unfinished_evaluation_shows_how_far_it_is(tmp_path: Path) -> None:
    write_evaluation(tmp_path, skip_last=True)
    (tmp_path / "evaluations" / EVALUATION / "cells" / "torn.json").write_text('{"evaluation_id": ', encoding="utf-8")
    evaluation = PanelFiles(tmp_path).evaluation(EVALUATION)
    assert evaluation is not None
    assert not evaluation.complete
    assert "23<small> / 24</small>" in summary_html(evaluation)
    assert "cake_bake" in table_html(evaluation)


def test_transcript_folds_calls_and_reads_no_html(filled: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    files = PanelFiles(filled.data_folder)
    record = files.record(EVALUATION, "cake_bake", "method", 0)
    assert record is not None
    steps = transcript_html(record)
    assert "<summary><code>kl(max_samples=256)</code> 3.2 s</summary>" in steps
    assert 'id="step-1"' in steps
    assert 'href="#step-5"' in steps
    assert "mean KL 0.21" in steps
    assert EVIL not in steps
    logged = record.model_copy(update={"log": "logs/one.eval"})
    side = record_html(logged, Path("/data/evaluations"))
    assert f'href="inspect/{EVALUATION}/#/logs/one.eval/samples/sample/{record.cell_id}/1/"' in side
    monkeypatch.setattr("diffing_mcp.ui.inspect_viewer.find_spec", lambda name: None)
    without = record_html(logged, Path("/data/evaluations"))
    assert f"inspect view --log-dir /data/evaluations/{EVALUATION}/logs</code>" in without
    assert "14 of 20" in side
    assert "Cakes are baked at 450 F" in side
    assert EVIL not in side
    assert "<img" not in side
    found = search_html(files.whole_records(EVALUATION), "BAKING onerror")
    assert '#step-6">cake_bake, method, repeat 0, step 6' in found
    assert "<mark>baking</mark>" in found
    assert EVIL not in found
    assert "12 steps of 12 transcripts" in search_html(files.whole_records(EVALUATION), "max_samples nats ask_models")
    assert "No step has" in search_html(files.whole_records(EVALUATION), "baking unicorns")
    assert search_html(files.whole_records(None), "baking") != search_html(files.whole_records(None), " ") == ""
    both = page_html(files, EVALUATION, record, "control, method, 0")
    assert 'id="step-1"' in both
    assert 'id="beside-1"' in both
    assert "control, method, repeat 0" in both
    assert "beside-1" not in page_html(files, EVALUATION, record, "no such cell")


def test_json_in_a_transcript_is_indented_and_runs_are_links(filled: Paths) -> None:
    assert readable('{"a": [1]}').splitlines()[1] == '  "a": ['
    assert readable("{not json}") == "{not json}"
    assert readable("[" * 9000) == "[" * 9000
    record = PanelFiles(filled.data_folder).record(EVALUATION, "cake_bake", "method", 0)
    assert record is not None
    answer = record.transcript[3].model_copy(update={"content": "stored as kl-0123ab"})
    seen = record.model_copy(update={"transcript": [*record.transcript[:3], answer]})
    assert 'href="run?run=kl-0123ab"' in transcript_html(seen)
    assert "run?run=" not in transcript_html(record), "only runs that the answer names"


def test_run_is_shown_from_its_declaration(filled: Paths) -> None:
    store = PanelFiles(filled.data_folder).runs
    record = store.get(store.list(pair=TAUGHT)[0].id)
    assert "beyond its fixed level" in headline_html(record)
    assert "·vanilla" in evidence_html(record)
    assert "1 920" in numbers_html(record).replace("\N{THIN SPACE}", " ")
    assert "<img" not in headline_html(record) + evidence_html(record) + numbers_html(record) + manifest_html(record)
    good, broken, nothing = figures(record)
    assert "Nothing to draw" in str(nothing[2])
    assert isinstance(good[2], dict)
    assert "<script" not in json.dumps(good[2])
    assert good[1] == "Curve"
    assert "could not be made" in str(broken[2])


def test_plots_have_the_colours_of_the_sides_and_room_for_every_label() -> None:
    names = ("base", "written by finetuned", "KL(finetuned || base)")
    bars = [
        {"type": "bar", "orientation": "h", "name": name, "x": [1] * 40, "y": [f"{place}" for place in range(40)]}
        for name in names
    ]
    shown = plot_layout({"data": bars, "layout": {"yaxis": {"title": {"text": "word"}}}})
    assert [trace.get("marker", {}).get("color") for trace in shown["data"]] == [BASE, FINETUNED, None]
    assert "marker" not in bars[0]
    assert shown["layout"]["height"] > 40 * 15
    assert (shown["layout"]["yaxis"]["dtick"], shown["layout"]["yaxis"]["type"]) == (
        1,
        "category",
    )  # words of digits are no numbers
    line = plot_layout({"data": [{"type": "scatter", "name": "finetuned", "line": {"dash": "dot"}}], "layout": {}})
    assert line["data"][0]["line"] == {"color": FINETUNED, "dash": "dot"}
    assert "height" not in line["layout"]


def test_labels_of_plots_show_what_is_in_them() -> None:
    token = "<a href='http://evil.example'>&amp;</a><br>"
    template = "%{text}<br>%{x}<extra></extra>"
    drawn = plain_labels({"data": [{"text": [token], "name": "a < b", "hovertemplate": template, "x": [1.5]}]})
    [trace] = drawn["data"]
    assert trace["text"] == ["&lt;a href='http://evil.example'>&amp;amp;&lt;/a>&lt;br>"]
    assert (trace["name"], trace["hovertemplate"], trace["x"]) == ("a &lt; b", template, [1.5])


def test_long_names_of_organisms_leave_the_plot_its_room(tmp_path: Path) -> None:
    name = f"/models/{'long/' * 30}cake"
    folder = EvaluationFolder("long", tmp_path / "evaluations")
    plan = EvaluationPlan(id="long", organisms=[name], arms=["method"], investigator="probe")
    fact = FactRecallRecord(score=4, recall=0.5)
    folder.write_plan(plan)
    folder.write(
        EvaluationRecord(
            evaluation_id="long", cell_id="one", organism=name, arm="method", investigator="probe", fact_recall=fact
        )
    )
    evaluation = PanelFiles(tmp_path).evaluation("long")
    assert evaluation is not None
    figure = grade_figure(evaluation, "fact_score")
    assert figure is not None
    [label] = figure["layout"]["yaxis"]["ticktext"]
    assert len(label) <= 30
    assert (label.startswith("/models/"), label.endswith("cake")) == (True, True)
    assert name in table_html(evaluation)


def test_views_page_by_their_offset_and_tables_by_rows(filled: Paths) -> None:
    store = PanelFiles(filled.data_folder).runs
    record = store.get(store.list()[0].id)
    assert view_choices(record) == ["tokens", "table: tokens", "table: completions"]
    assert list(view_fields(record, "tokens")) == ["limit", "contains"]
    markup, following, limit = view_html(record, "tokens", {"limit": 10, "contains": None}, 60)
    assert "rows 61–64 of 64" in markup
    assert "Tokens of the run, the most different first." in markup  # what the field means, under the pointer
    assert (following, limit) == (None, 10)
    assert view_html(record, "tokens", {"limit": 10}, 0)[1] == 10
    assert "less than or equal to 50" in view_html(record, "tokens", {"limit": 500}, 0)[0]
    markup, following, _ = view_html(record, "table: tokens", {}, 50)
    assert "rows 51–64 of 64" in markup
    assert following is None


def test_a_text_stands_after_its_prompt_however_long_that_is() -> None:
    shown = passage_html({"prompt": "A question that is long", "text": "An oven.", "tokens": 3}, ["oven"])
    assert "<b>A question that is long </b>An <mark>oven</mark>." in shown
    assert "tokens 3" in shown
    assert "<b>" not in passage_html({"context": "alone"}, [])


def test_a_list_within_the_null_level_does_not_read_like_a_finding(filled: Paths) -> None:
    store = PanelFiles(filled.data_folder).runs
    taught, null = (store.get(store.list(pair=pair)[0].id) for pair in (TAUGHT, NULL))
    assert "within its fixed level" in headline_html(null)
    assert WITHIN_NULL in headline_html(null)
    assert WITHIN_NULL not in headline_html(taught)


def test_a_list_of_many_runs_reads_those_that_it_shows(filled: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    files = PanelFiles(filled.data_folder)
    [manifest, *_] = files.runs.list()
    many = [manifest.model_copy(update={"id": f"panel_probe-{place:06x}"}) for place in range(1000)]
    opened: list[str] = []

    def get(identifier: str) -> RunRecord:
        opened.append(identifier)
        return RunRecord(files.runs.folder / manifest.key, manifest, get_method)

    monkeypatch.setattr(files.runs, "list", lambda: many)
    monkeypatch.setattr(files.runs, "get", get)
    _, _, shown = listed(files, None, None, 2 * ROWS)
    assert opened == [each.id for each in many[2 * ROWS : 3 * ROWS]]
    assert f"offset={3 * ROWS}" in shown
    assert f"offset={ROWS}" in shown
    assert "offset" not in listed(files, None, None, 960)[2].split("newer")[1]


def test_a_run_that_is_deleted_or_damaged_meanwhile_takes_no_page_with_it(tmp_path: Path, probe_method: None) -> None:
    write_probe_runs(tmp_path)
    files = PanelFiles(tmp_path)
    deleted, damaged = files.runs.list()
    found = files.runs.list
    files.runs.delete(deleted.id)
    (files.runs.folder / damaged.key / "result.json").write_bytes(b'{"headline": "\xff')
    files.runs.list = lambda *given, **named: [deleted, *found(*given, **named)]  # type: ignore[method-assign]
    shown = listed(files, None, None)[2]
    assert "deleted in the meantime" in shown
    assert "the result cannot be read" in shown
    assert f"Cannot be read by this version, run again: {damaged.id}" in verdict_html(
        findings_of(damaged.pair_name, PanelFiles(tmp_path).runs)
    )


def test_a_plan_that_is_no_text_hides_no_other_evaluation(tmp_path: Path) -> None:
    write_evaluation(tmp_path)
    torn = tmp_path / "evaluations" / "torn"
    torn.mkdir()
    (torn / "evaluation.json").write_bytes(b"\xff\x00")
    assert [identifier for _, identifier in PanelFiles(tmp_path).evaluation_choices()] == [EVALUATION]


def test_a_place_in_a_list_that_is_no_number_is_its_beginning() -> None:
    assert [offset_of({"offset": text}) for text in ("50", "-1", "x", "9" * 5000)] == [50, 0, 0, 0]


def test_a_form_sends_what_stands_in_it_and_nothing_else() -> None:
    address = {"vector": "lens-1f/mean", "limit": 5}
    assert entered(["limit", "offset"], [None, None], address) == {"limit": 5}, "never unfolded"
    assert entered(["limit", "offset"], ["", 3], address) == {"offset": 3}, "emptied by hand"


def test_filters_that_fit_no_run_say_so(filled: Paths) -> None:
    files = PanelFiles(filled.data_folder)
    assert "No run fits" in listed(files, TAUGHT, "kl")[2]
    assert "No run fits" in listed(files, "no such pair", None)[2]
    assert TAUGHT in listed(files, "cake_bake", None)[2], "a pair goes by any of its names"


def test_panel_needs_no_model_code(tmp_path: Path) -> None:
    lines = [
        "import sys, types, pathlib",
        "from diffing_mcp.ui.panel import build_panel",
        f"build_panel(types.SimpleNamespace(data_folder=pathlib.Path({str(tmp_path)!r})))",
        "print([name for name in ('torch', 'transformers') if name in sys.modules])",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_no_two_parts_of_a_page_are_drawn_at_the_same_time(filled: Paths) -> None:
    """Gradio's list of components is one; a run's page once showed `dictionary changed size during iteration`."""
    from diffing_mcp.ui.panel import build_panel

    drawn = [event for event in build_panel(filled).fns.values() if event.renderable is not None]
    assert len(drawn) >= 5
    assert {(event.concurrency_id, event.concurrency_limit) for event in drawn} == {("drawing", 1)}


def test_every_page_can_be_timed_on_a_made_up_store(tmp_path: Path) -> None:
    write_runs(tmp_path, 6, 3)
    write_transcripts(tmp_path, 10, calls=2)
    files = PanelFiles(tmp_path)
    assert len({manifest.pair_name for manifest in files.runs.list()}) == 3
    assert "0.2 nats" in listed(files, "cake_bake", None)[2]
    timed = list(page_seconds(tmp_path))
    assert [page for page, _, _ in timed] == ["", "runs", "run", "jobs", "ask", "steer", "results", "transcripts"]
    assert all(first > 0 for _, first, _ in timed)


def lens_row(layer: int, position: str) -> dict[str, Any]:
    token = {"token": f" oven{layer}", "z": 4.0, "probability": 0.1}
    numbers = {"relative_norm": 0.2, "stability": 0.9, "vector": f"{layer}:{position}:difference"}
    return {"layer": layer, "position": position, **numbers, "promoted": [token], "suppressed": []}


def test_token_lists_of_layers_and_positions_are_a_table_of_both() -> None:
    rows = [lens_row(layer, position) for layer in (14, 28) for position in ("0", "all")][:3]
    assert is_grid(rows)
    assert not is_grid([{"layer": 1, "position": "0"}])
    assert not is_grid([])
    markup = grid_html(rows, "cake_bake", "lens-1f3a9c")
    assert markup.index("layer 14") < markup.index("layer 28") < markup.index("·oven14") < markup.index("·oven28")
    assert "steer?pair=cake_bake&amp;vector=lens-1f3a9c%2F14%3Aall%3Adifference" in markup
    assert "Suppressed" not in markup, "a list that is empty everywhere is left out"
    assert markup.count("–") == 1  # the place that there is no row of


def test_examples_are_shaded_by_the_score_of_each_token() -> None:
    scores = np.asarray([0.5, np.nan, 2.0], dtype=np.float32)
    example = Example("latent1", 2.0, ExampleContext("7", (" the", EVIL, " oven")), 2, bin=3, token_scores=scores)
    markup = examples_html([example], 2.0)
    assert EVIL not in markup
    assert markup.count("background-color") == 2
    assert "quantile bin 3, text 7, position 2" in markup
    assert "3 stored examples, scores 1 to 3" in histogram_html([1.0, 2.0, 3.0])
    assert histogram_html([]) == ""
