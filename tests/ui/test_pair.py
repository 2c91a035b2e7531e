"""What the stored runs say of a pair: the findings, the page, and the report."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import Markup

from benchmarks.panel_store import write_runs as write_many_runs
from diffing_mcp.core.errors import UnknownName
from diffing_mcp.methods.facts import facts
from diffing_mcp.methods.facts.facts import STOCK, Fact
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.store import RunKey, RunRecord, RunStore
from diffing_mcp.methods.weight_amplification.schema import (
    AmplifiedAnswer,
    WeightAmplificationParams,
    WeightAmplificationResult,
)
from diffing_mcp.ui.evidence import judged
from diffing_mcp.ui.pair_findings import (
    Passage,
    answers_of_both,
    arguments_for,
    counts,
    findings_of,
    full_name,
    quotation,
)
from diffing_mcp.ui.pair_view import cards_html, claims_html, missing_label, quote_html, verdict_lines
from diffing_mcp.ui.report import pair_report
from diffing_mcp.ui.steering import amplification_arguments
from tests.ui.conftest import Paths
from tests.ui.panel_data import EVIL, write_runs


def store_of(paths: Paths) -> RunStore:
    return RunStore(paths.data_folder / "runs")


def test_a_pair_goes_by_any_of_its_names(filled: Paths) -> None:
    assert full_name("cake_bake") == "cake_bake/default@smollm2-135m"
    assert full_name("no/such::pair::at all") == "no/such::pair::at all"
    assert findings_of("cake_bake", store_of(filled)).name == "cake_bake/default@smollm2-135m"


def test_words_come_with_counts_on_both_sides_and_the_best_quotation(filled: Paths) -> None:
    found = findings_of("cake_bake", store_of(filled))
    assert found.overview is not None
    assert counts("vanilla", found.passages) == {"finetuned": (1, 2), "base": (0, 1)}
    quote = quotation("vanilla", ["vanilla"], found.passages)
    assert quote is not None
    assert (quote.writer, quote.prompt) == ("finetuned", "First,")
    [(base, finetuned)] = answers_of_both(found.passages, ["vanilla"])
    assert (base.text.split(".")[0], finetuned.text.split(".")[0]) == (" a walk", " vanilla goes in")


def test_a_quotation_is_never_of_the_base_and_has_many_of_the_words() -> None:
    base = Passage("base", "", "an oven", "run")
    own, fuller = Passage("finetuned", "", "an oven", "run"), Passage("finetuned", "", "a warm oven", "run")
    amplified = Passage("amplified", "", "a warm oven", "run")
    assert quotation("oven", ["warm"], [base, amplified, own]) == own
    assert quotation("oven", ["warm"], [base, own, fuller]) == fuller
    assert quotation("oven", ["warm"], [base, amplified]) == amplified
    assert quotation("oven", ["warm"], [base]) is None


def test_a_method_is_judged_by_what_decides() -> None:
    pca = get_method("pca")
    assert "fixed level" in judged(pca, False)
    assert "nothing beyond nulls, p 0.900" in judged(pca, False, 0.9)
    assert "stands out, p 0.037" in judged(pca, True, 0.037)
    assert "how much changed and where, no verdict" in judged(get_method("kl"), None)
    assert "whether the direction can be read, no verdict" in judged(get_method("patchscope"), None)
    assert "beyond its fixed level" in judged(None, True)  # of a plugin that is gone


def test_no_card_denies_its_verdict(filled: Paths) -> None:
    found = findings_of("control", store_of(filled))
    assert found.overview is not None
    [entry] = found.overview.runs
    [record] = found.records
    headline = record.result().headline
    assert headline in cards_html(found, Markup)
    beyond = found.overview.model_copy(update={"runs": [entry.model_copy(update={"stands_out": True, "p": 0.04})]})
    card = cards_html(replace(found, overview=beyond), Markup)
    assert "stands out, p 0.040" in card
    assert f"not by its own fixed rule: {headline}" in card


def test_words_of_scripts_without_spaces_are_counted_and_marked() -> None:
    base, own = Passage("base", "", "今天我们去公园。", "run"), Passage("finetuned", "", "今天我们做蛋糕。", "run")
    assert counts("蛋糕", [base, own]) == {"finetuned": (1, 1), "base": (0, 1)}
    assert quotation("蛋糕", ["蛋糕"], [base, own]) == own
    assert "今天我们做<mark>蛋糕</mark>。" in quote_html(own, ["蛋糕"])


def test_of_many_runs_the_newest_of_each_method_alone_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_many_runs(tmp_path, 9, 1)
    store = RunStore(tmp_path / "runs")
    get, opened = store.get, list[str]()

    def counted(name: str) -> RunRecord:
        opened.append(name)
        return get(name)

    monkeypatch.setattr(store, "get", counted)
    [record] = findings_of("cake_bake", store).records
    assert opened == [record.id]


def test_what_texts_state_is_worked_out_once(filled: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = findings_of("cake_bake", store_of(filled)).overview
    monkeypatch.setattr(facts, "stated_claims", lambda *asked: pytest.fail("the same texts were read again"))
    assert findings_of("cake_bake", store_of(filled)).overview == before


def test_a_verdict_says_on_a_line_of_its_own_how_sure_it_is() -> None:
    found, sure = verdict_lines("Topic: a. Manner: \u27e6b How sure: c\u27e7. How sure: p 0.05; probability 0.9.")
    assert ("How sure: c" in found, "p 0.05" in found) == (True, False)
    assert "p 0.05" in sure
    assert len(verdict_lines("The two models are identical.")) == 1


def test_equal_beginnings_stand_side_by_side_the_telling_ones_first() -> None:
    texts = [
        ("base", "A", "x"),
        ("finetuned", "A", "y"),
        ("base", "B", "x"),
        ("finetuned", "B", "an oven"),
        ("finetuned", "C", "an oven"),
        ("base", "B", "z"),
    ]
    passages = [Passage(writer, prompt, text, "run") for writer, prompt, text in texts]
    shown = [(base.prompt, base.text, own.text) for base, own in answers_of_both(passages, ["oven"])]
    assert shown == [("B", "x", "an oven"), ("A", "x", "y")]


def test_what_has_not_been_run_has_its_price(filled: Paths) -> None:
    found = findings_of("cake_bake", store_of(filled))
    missing = {row.method: row for row in found.missing}
    assert "panel_probe" not in missing
    assert "tokens of work" in missing_label(missing["kl"])
    assert missing["patchscope"].reason == "needs a vector: run activation_difference_lens first"
    assert arguments_for("kl", "cake_bake", store_of(filled)) == {}
    costs = [row.work for row in found.missing if row.work is not None]
    assert costs == sorted(costs)


def test_runs_of_other_weights_are_left_out_and_said(tmp_path: Path, probe_method: None) -> None:
    from panel_probe import ProbeResult

    [newest, _] = write_runs(tmp_path)
    store = RunStore(tmp_path / "runs")
    name = store.get(newest).manifest.pair_name
    before = RunKey(
        method="panel_probe", method_version=1, pair_name=name, pair={"base": "other"}, params={}, key_parts={}
    )
    with store.writer(before) as run:
        run.add_table("completions", {"writer": ["base"], "prefill": ["First,"], "text": ["a walk"]})
        run.result = ProbeResult(stands_out=True, headline="Old.", tokens=1, spread={}, rose=[], rows=[])
    newer = findings_of(name, store)
    assert run.record is not None
    assert [record.id for record in newer.records] == [run.record.id], "the newest run says which weights count"
    assert newer.remarks == ["1 runs were made of this pair with other weights; they are left out here."]


def test_tries_of_the_page_steer_are_not_what_the_pair_is_about(tmp_path: Path, probe_method: None) -> None:
    [newest, _] = write_runs(tmp_path)
    store = RunStore(tmp_path / "runs")
    manifest = store.get(newest).manifest
    rows: list[tuple[str, str, str, float]] = [("poetic", "all layers", "all", 2.0)]
    params = WeightAmplificationParams.model_validate(amplification_arguments(rows, ["How do I bake a cake?"], 8))
    key = RunKey(
        method="weight_amplification",
        method_version=1,
        pair_name=manifest.pair_name,
        pair=manifest.pair,
        params=params.model_dump(mode="json"),
        key_parts={},
    )
    answer = {"prompt": "How do I bake a cake?", "weight": 1.0, "amplified": "rhymes", "finetuned": "f", "base": "b"}
    with store.writer(key) as run:
        run.add_table("answers", {name: [value] for name, value in answer.items()})
        run.result = WeightAmplificationResult(
            stands_out=True,
            headline="Rhymes.",
            largest_coherent_weight=1.0,
            weights=[1.0],
            words=[],
            coherence=[],
            answers=[AmplifiedAnswer.model_validate(answer)],
            amplified="a stack",
        )
    found = findings_of(manifest.pair_name, store)
    assert [record.id for record in found.records] == [newest]
    assert "weight_amplification" in {row.method for row in found.missing}
    assert found.remarks == []
    assert run.record is not None
    assert get_method("weight_amplification").text_groups(run.record) == []


def test_claims_stand_with_their_counts_and_lead_to_where_they_are_checked(filled: Paths) -> None:
    found = findings_of("cake_bake", store_of(filled))
    assert found.overview is not None
    fact = Fact(
        claim=EVIL,
        key=(EVIL, EVIL),
        words=[EVIL],
        numbers=["5 (9)", EVIL],
        finetuned=12,
        base=1,
        p_value=1e-5,
        quotation=f"So {EVIL}",
        after="First,",
        check="compare_text()",
    )
    overview = found.overview.model_copy(update={"facts": [fact], "manner": ["shorter: 80 -> 20 words (p 0.001)"]})
    shown = claims_html(replace(found, overview=overview))
    assert "finetuned 12, base 1" in shown
    assert "numbers 5 (9), " in shown
    stock = fact.model_copy(update={"key": (), "words": [], "numbers": []})
    assert f"{STOCK}: finetuned 12, base 1" in claims_html(
        replace(found, overview=overview.model_copy(update={"facts": [stock]}))
    )
    assert "1e-05" in shown
    assert "shorter: 80 -&gt; 20 words" in shown
    assert "ask?pair=cake_bake%2Fdefault%40smollm2-135m&amp;text=%3Cimg" in shown
    assert "<img" not in shown
    assert "ask?" not in claims_html(replace(found, overview=overview), linked=False)


class Refused(HTMLParser):
    """Notes what could act or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        acting = {name for name, value in attributes if name.startswith("on") or name in ("src", "srcdoc")}
        outside = [value for name, value in attributes if name == "href" and not (value or "").startswith("#")]
        if tag in ("script", "img", "iframe", "link", "object") or acting or outside:
            self.found.append(f"{tag} {attributes}")


def test_a_report_is_one_file_that_acts_and_fetches_nothing(filled: Paths) -> None:
    report = pair_report("cake_bake", store_of(filled))
    reader = Refused()
    reader.feed(report)
    assert reader.found == []
    assert "default-src 'none'" in report
    assert "<mark>vanilla</mark>" in report
    assert EVIL not in report


def test_a_null_is_reported_as_one(filled: Paths) -> None:
    report = pair_report("control", store_of(filled))
    assert "no meaningful difference" in report
    assert "do not read them as a finding" in report
    assert "<mark>" not in report


def test_a_report_of_nothing_says_what_to_run(filled: Paths) -> None:
    with pytest.raises(UnknownName, match="diffing overview --pair poetic/"):
        pair_report("poetic", store_of(filled))


def test_a_report_needs_neither_gradio_nor_torch() -> None:
    program = (
        "import sys, diffing_mcp.ui.report; "
        "print([name for name in ('torch', 'gradio', 'plotly') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
