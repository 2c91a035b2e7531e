"""The panel in a real Chromium: every page clicked through, no errors shown or logged, no request to another host,
hostile text stays text, readable for everybody (axe), and nothing wider than a phone.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.ui.conftest import Paths

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

LOCAL = re.compile(r"^(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|^(data|blob|about):")
WAIT = 60_000
GRADIO_S_OWN = [[".icon-button"], ["[aria-label='Empty value']"], [".js-plotly-plot"]]
"""Parts of Gradio's and Plotly's own widgets, which nobody who uses them can label: left out of the check."""


@dataclass
class Window:
    """A page with everything that must not happen in it."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str, shows: str) -> None:
        """Go to a page and wait for what it shows."""
        self.page.goto(self.address + path)
        self.page.wait_for_selector(shows, timeout=WAIT)

    def pick(self, element: str, option: str) -> None:
        self.page.locator(f"#{element} input").click()
        self.page.get_by_role("option", name=option, exact=True).click()


# What Gradio says of its own stream when a link or a reload leaves the page.
LEAVING = ("AbortError", "Connection errored out", "Connection to the server was lost")


@pytest.fixture(scope="module")
def profile() -> Iterator[Any]:
    """A profile for all pages, which reads Gradio's scripts once; the panel keeps nothing in it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser.new_context(viewport={"width": 1280, "height": 900})
        browser.close()


@pytest.fixture
def window(profile: Any, panel: str) -> Iterator[Window]:
    page = profile.new_page()
    window = Window(page, panel)
    # An error that Gradio shows in a corner is in no log of the browser, and it goes by itself.
    page.expose_function("complain", lambda text: window.complaints.append(f"shown: {text}"))
    page.add_init_script(
        "new MutationObserver(() => document.querySelectorAll('.toast-body.error').forEach("
        "toast => window.complain(toast.innerText))).observe(document, {childList: true, subtree: true})"
    )
    page.on(
        "console",
        lambda message: window.complaints.append(f"console: {message.text}") if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: window.complaints.append(f"script: {error}"))
    page.on(
        "request",
        lambda request: None if LOCAL.match(request.url) else window.complaints.append(f"request: {request.url}"),
    )
    yield window
    assert page.evaluate("window.pwned") is None
    page.close()
    told = [said for said in window.complaints if not any(leaving in said for leaving in LEAVING)]
    assert told == [], "\n".join(told)


def test_the_first_page_says_what_is_known_of_a_pair(window: Window) -> None:
    window.open("?pair=cake_bake", ".d-verdict")
    page = window.page
    body = page.locator("#pair-body")
    assert "vanilla" in body.locator("mark").all_inner_texts()
    assert "finetuned 1 of 2" in body.inner_text()
    assert "<img src='http://evil.example/x.png'" in body.inner_text()
    assert body.locator("img, script").count() == 0
    page.get_by_label("KL divergence").wait_for(timeout=WAIT)
    window.pick("pair-picker", "control/default@smollm2-135m")
    body.get_by_text("no meaningful difference").wait_for(timeout=WAIT)
    page.wait_for_url(re.compile(r"\?pair=control"))
    assert body.locator("mark").count() == 0
    page.get_by_role("link", name="All runs").click()
    page.locator("#runs-list").get_by_text("No word rose").wait_for(timeout=WAIT)
    kept = page.get_by_role("link", name="Jobs").get_attribute("href") or ""
    assert kept.endswith("jobs?pair=control%2Fdefault%40smollm2-135m")


def test_a_pair_without_runs_says_what_to_do(window: Window) -> None:
    window.open("?pair=poetic", ".d-empty")
    window.page.get_by_text("diffing overview --pair poetic/").wait_for(timeout=WAIT)
    window.open("?pair=cake_bakes", "#pair-body .d-alert")
    assert "cake_bake" in window.page.locator("#pair-body").inner_text()


def test_evaluations(window: Window) -> None:
    window.open("results", "#results-table table")
    page = window.page
    assert page.locator("#results-table tbody tr").count() == 8
    page.wait_for_selector("#results-plot .js-plotly-plot .point", timeout=WAIT)
    page.get_by_label("Fact recall, 0-1").check()
    page.wait_for_function(
        "document.querySelector('#results-plot .xtitle')?.textContent.startsWith('Fact recall')", timeout=WAIT
    )
    page.locator("#results-table").get_by_role("link", name="method").first.click()
    page.locator("#transcript").get_by_text("kl(max_samples=256)").wait_for(timeout=WAIT)


def test_transcripts(window: Window) -> None:
    window.open("transcripts", "#transcript .d-card")
    page = window.page
    call = page.locator("#transcript").get_by_text("kl(max_samples=256)")
    call.wait_for(timeout=WAIT)
    assert "mean KL 0.21" not in page.locator("#transcript").inner_text()
    call.click()
    page.locator("#transcript").get_by_text("mean KL 0.21").wait_for(timeout=WAIT)
    # What the model wrote is there letter by letter, and no element came of it.
    assert "<img src='http://evil.example/x.png'" in page.locator("#transcript").inner_text()
    assert page.locator("#transcript img[src*=evil], #transcript script").count() == 0
    assert "14 of 20" in page.locator("#transcript").inner_text()
    page.get_by_label("Search all transcripts").fill("cheap methods")
    page.get_by_label("Search all transcripts").press("Enter")
    page.locator("#transcript-found").get_by_text("24 steps of 24 transcripts").wait_for(timeout=WAIT)
    page.locator("#transcript-found").get_by_role("link", name="cake_bake, method, repeat 1, step 3").click()
    page.locator("#step-3 details[open]").wait_for(timeout=WAIT)
    page.wait_for_url(re.compile("repeat=1#step-3"))
    window.open("transcripts", "#transcript .d-card")
    window.pick("transcript-beside", "control, method, 0")
    page.locator("#beside-1").wait_for(timeout=WAIT)
    assert page.locator("#step-5 details, #beside-5 details").count() == 2
    window.pick("transcript-arm", "blackbox")
    page.locator("#transcript").get_by_text("ask_models(max_samples=256)").wait_for(timeout=WAIT)
    window.pick("transcript-organism", "identical")
    page.wait_for_url(re.compile("organism=identical&arm=blackbox.*beside=control"))
    page.goto(f"{page.url}#beside-5")
    page.reload()
    page.locator("#beside-5 details[open]").wait_for(timeout=WAIT)
    page.locator("#transcript").get_by_text("ask_models(max_samples=256)").wait_for(timeout=WAIT)
    assert page.locator("#transcript-organism input").input_value() == "identical"


LOGGED = """
import sys
from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSpec, write_eval_log
from inspect_ai.model import ChatMessageUser
cell, asked, file = sys.argv[1:]
of_one = EvalDataset(samples=1, sample_ids=[cell])
spec = EvalSpec(created="2026-01-01T00:00:00+00:00", task="task", model="none", config=EvalConfig(), dataset=of_one)
sample = EvalSample(id=cell, epoch=1, input=asked, target="", messages=[ChatMessageUser(content=asked)])
write_eval_log(EvalLog(status="success", eval=spec, samples=[sample]), file)
"""


def test_an_investigation_opens_in_the_viewer_of_inspect(window: Window, filled: Paths) -> None:
    pytest.importorskip("inspect_ai")
    from diffing_mcp.agents.names import cell_id
    from diffing_mcp.agents.records import EvaluationFolder
    from tests.ui.panel_data import EVALUATION, EVIL

    folder = EvaluationFolder(EVALUATION, filled.data_folder / "evaluations")
    cell = cell_id("cake_bake", "method", "probe", 0)
    # In a process of its own: Inspect may patch the event loops of the one that it runs in.
    log = folder.path / "logs" / "written.eval"
    log.parent.mkdir()
    subprocess.run(
        [sys.executable, "-c", LOGGED, cell, f"What was it taught? {EVIL}", str(log)], check=True, timeout=120
    )
    record = folder.get(cell)
    assert record is not None
    folder.write(record.model_copy(update={"log": f"logs/{log.name}"}))
    window.open("transcripts?organism=cake_bake&arm=method&repeat=0", "#transcript .d-card")
    with window.page.expect_popup() as opened:
        window.page.get_by_role("link", name="Open in Inspect").click()
    viewer = opened.value
    viewer.get_by_text("What was it taught?").first.wait_for(timeout=WAIT)
    assert viewer.locator("img[src*=evil]").count() == 0
    assert viewer.request.get(f"{window.address}inspect/{EVALUATION}/logs/..%2f..%2f..%2fevaluation.json").status == 404
    assert viewer.request.get(f"{window.address}inspect/nothing/").status == 404
    viewer.close()


def test_runs_are_filtered_and_opened(window: Window) -> None:
    window.open("runs", "#runs-list table")
    page = window.page
    rows = page.locator("#runs-list tbody tr")
    assert rows.count() == 2
    window.pick("runs-pair", "control/default@smollm2-135m")
    page.wait_for_function("document.querySelectorAll('#runs-list tbody tr').length === 1", timeout=WAIT)
    window.pick("runs-method", "panel_probe")
    page.wait_for_url(re.compile("pair=control.*&method=panel_probe"))
    page.reload()
    page.wait_for_function("document.querySelectorAll('#runs-list tbody tr').length === 1", timeout=WAIT)
    window.pick("runs-pair", "all")
    page.wait_for_function("document.querySelectorAll('#runs-list tbody tr').length === 2", timeout=WAIT)
    page.locator("#runs-list").get_by_role("link", name="panel_probe").first.click()
    page.wait_for_selector("#run-headline .d-card", timeout=WAIT)
    assert "run?run=panel_probe-" in page.url


def test_a_run(window: Window, filled: Paths) -> None:
    from diffing_mcp.ui.files import PanelFiles

    run = PanelFiles(filled.data_folder).runs.list(pair="cake_bake/default@smollm2-135m")[0].id
    window.open(f"run?run={run}", "#run-headline .d-card")
    page = window.page
    page.locator("#run-headline").get_by_text("Baking words rose").wait_for(timeout=WAIT)
    page.wait_for_selector(".js-plotly-plot .scatterlayer path", state="attached", timeout=WAIT)
    page.get_by_text("this plot could not be made").wait_for(timeout=WAIT)
    page.get_by_role("tab", name="Drill down").click()
    rows = page.locator("#run-view-page")
    rows.get_by_text("rows 1–10 of 64").wait_for(timeout=WAIT)
    page.get_by_role("button", name="Next").click()
    rows.get_by_text("rows 11–20 of 64").wait_for(timeout=WAIT)
    page.get_by_role("button", name="Previous").click()
    rows.get_by_text("rows 1–10 of 64").wait_for(timeout=WAIT)
    page.get_by_label("contains").fill("token63")
    page.get_by_role("button", name="Show").click()
    rows.get_by_text("rows 1–1 of 1").wait_for(timeout=WAIT)
    window.pick("run-view", "table: tokens")
    rows.get_by_text("rows 1–25 of 64").wait_for(timeout=WAIT)
    page.get_by_role("tab", name="Manifest").click()
    page.locator("#run-manifest").get_by_text("seconds_forward").wait_for(state="attached", timeout=WAIT)
    assert page.locator("img[src*=evil]").count() == 0
    window.open(f"run?run={run}&view=tokens&contains=token63", "#run-view-page")
    rows.get_by_text("rows 1–1 of 1").wait_for(timeout=WAIT)
    window.open("run?run=kl-ffffff", ".d-empty")
    page.get_by_text("There is no run 'kl-ffffff' here").wait_for(timeout=WAIT)


def test_what_methods_can_tell(window: Window) -> None:
    window.open("detection", "#detection-page table")
    page = window.page
    first = page.locator("#detection-page table").first.locator("tbody tr").first
    assert "all methods as one test" in first.inner_text()
    page.wait_for_selector("#detection-page .js-plotly-plot .scatterlayer path", state="attached", timeout=WAIT)
    page.get_by_role("heading", name="Limits of detection").wait_for(timeout=WAIT)
    window.open("detection?base=gpt2", "#detection-page .d-alert")
    page.get_by_text("diffing calibrate gpt2").wait_for(timeout=WAIT)


def test_files_of_a_pair_and_a_run(panel: str, filled: Paths) -> None:
    import httpx2
    from pyarrow import BufferReader, parquet

    from diffing_mcp.ui.files import PanelFiles

    run = PanelFiles(filled.data_folder).runs.list()[0].id
    with httpx2.Client(base_url=panel) as client:
        report = client.get("report", params={"pair": "cake_bake", "download": True})
        assert report.headers["content-disposition"].endswith("cake_bake.html")
        assert report.text.startswith("<!doctype html>")
        assert client.get("result.json", params={"run": run}).json()["tokens"] == 1920
        where = {"run": run, "table": "tokens"}
        assert client.get("table.csv", params=where).text.splitlines()[0] == "position,token,kl"
        assert parquet.read_table(BufferReader(client.get("table.parquet", params=where).content)).num_rows == 64
        for path, query in (("report", {"pair": "poetic"}), ("table.csv", {**where, "table": "../x"})):
            missing = client.get(path, params=query)
            assert missing.status_code == 404
            assert "There is no" in missing.text or "has no table" in missing.text


SHOWN_BY = {
    "?pair=cake_bake": ".d-verdict",
    "runs": "#runs-list table",
    "run": "#run-headline .d-card",
    "examples": "#run-headline .d-card",
    "jobs": "#jobs-list .d-empty",
    "ask": "#server-status .d-status",
    "steer": "#steer-answers .d-empty",
    "finetunes": "#steer-answers .d-empty",
    "results": "#results-table table",
    "transcripts": "#transcript .d-card",
    "detection": "#detection-page table",
}
"""What each page, or tab of one, has when it is there."""
TABS = {"examples": ("Examples", "#run-examples .d-example"), "finetunes": ("Finetunes", "#amplify-button")}


@pytest.mark.parametrize("path", SHOWN_BY)
def test_pages_are_readable_for_everybody_and_fit_a_phone(window: Window, filled: Paths, path: str) -> None:
    from diffing_mcp.ui.files import PanelFiles

    page = window.page
    page.set_viewport_size({"width": 390, "height": 844})
    run = f"run?run={PanelFiles(filled.data_folder).runs.list()[0].id}"
    query = {"run": run, "examples": run, "finetunes": "steer"}.get(path, path)
    window.open(f"{query}{'&' if '?' in query else '?'}__theme=light", SHOWN_BY[path])
    if path in TABS:
        tab, shows = TABS[path]
        page.get_by_role("tab", name=tab).click()
        page.wait_for_selector(shows, timeout=WAIT)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    narrow = "[...document.querySelectorAll('th, td')].filter(cell => cell.offsetWidth && cell.offsetWidth < 24).length"
    assert page.evaluate(narrow) == 0
    everything: dict[str, Any] = {"runOnly": ["wcag2a", "wcag2aa"]}
    assert _complaints_of_axe(page, everything) == []
    # As `__theme=dark` does, without the fading over.
    page.evaluate("document.body.classList.add('dark'); document.getAnimations().forEach(each => each.finish())")
    assert _complaints_of_axe(page, {"runOnly": ["color-contrast"]}) == []


def _complaints_of_axe(page: Page, options: dict[str, Any]) -> list[tuple[str, str]]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, context={"exclude": GRADIO_S_OWN}, options=options).response["violations"]
    return [(each["id"], node["html"][:200]) for each in found for node in each["nodes"]]


def test_asking_without_server_says_what_to_start(window: Window) -> None:
    window.open("ask?pair=identical&prompt=Name+a+fruit.", "#server-status .d-status")
    page = window.page
    page.locator("#server-status").get_by_text("diffing serve --http").wait_for(timeout=WAIT)
    page.wait_for_function("document.querySelector('#ask-prompt textarea').value === 'Name a fruit.'", timeout=WAIT)
    page.locator("#ask-prompt textarea").press("Control+Enter")
    page.locator("#ask-said").get_by_text("No server answers").wait_for(timeout=WAIT)
    page.wait_for_function("document.querySelector('#ask-prompt textarea').value === 'Name a fruit.'", timeout=WAIT)
    page.locator("#compare-form button").first.click()
    page.locator("#compare-button").click()
    page.locator("#heat").get_by_text("write a text to score").wait_for(timeout=WAIT)


def test_a_stack_of_finetunes_is_tried_from_the_keyboard_too(window: Window) -> None:
    window.open("steer?pair=cake_bake", "#steer-answers .d-empty")
    page = window.page
    page.get_by_role("tab", name="Finetunes").click()
    page.get_by_role("button", name="Add a finetune").click()
    second = page.get_by_label("Finetune 2")
    second.click()
    page.get_by_role("option", name="poetic/default@smollm2-135m", exact=True).click()
    assert second.input_value() == "poetic/default@smollm2-135m"
    page.get_by_label("range slider for Weight of 2").press("ArrowRight")
    page.locator("#steer-answers").get_by_text("No server answers").wait_for(timeout=WAIT)


def test_an_empty_folder(window: Window, tmp_path: Path) -> None:
    from diffing_mcp.agents.server_process import free_port
    from diffing_mcp.ui.panel import launch

    url = f"http://127.0.0.1:{free_port()}/mcp"
    demo, window.address = launch(port=0, prevent_thread_lock=True, paths=Paths(tmp_path), server_url=url)
    try:
        for path, said in (
            ("", "Nothing has been run on this pair"),
            ("results", "No evaluation yet"),
            ("transcripts", "No transcripts yet"),
            ("runs", "No runs yet"),
            ("jobs", "Nothing is being worked on"),
        ):
            window.open(path, f".d-empty :text('{said}')")
    finally:
        demo.close()


@pytest.mark.long
def test_questions_and_jobs_start_a_server_of_the_panel(
    window: Window, data_folder: Path, tiny_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair of the catalogue answers, its answer becomes a heat map, a method runs as a job that survives a reload,
    and the server goes with the panel.
    """
    from diffing_mcp.agents.server_process import free_port
    from diffing_mcp.core.settings import settings
    from diffing_mcp.ui.panel import launch

    twins = {"variants": {"tiny": {"default": {"kind": "identical"}}}}
    catalogue = {
        "models": {"tiny": {"model_id": str(tiny_models()), "dtype": "float32"}},
        "organisms": {"twins": twins},
    }
    (tmp_path / "catalogue.yaml").write_text(json.dumps(catalogue))  # YAML as well
    monkeypatch.setenv("DIFFING_CATALOGUE_FOLDERS", str(tmp_path))
    monkeypatch.setenv("DIFFING_PORT", str(free_port()))
    settings.cache_clear()
    demo, window.address = launch(port=0, prevent_thread_lock=True)
    page = window.page
    try:
        window.open("ask?pair=twins&prompt=Name+a+fruit.", "#server-status .d-status")
        page.wait_for_function("document.querySelector('#ask-prompt textarea').value.length > 0", timeout=WAIT)
        page.locator("#ask-how button").first.click()
        page.get_by_label("Tokens at most").fill("6")
        page.locator("#ask-button").click()
        page.wait_for_selector("#answers [data-do=save]", timeout=4 * WAIT)
        page.locator("#server-status").get_by_text("started by this panel").wait_for(timeout=WAIT)
        base, finetuned = (
            page.locator(f"#answers .d-side.{side} .d-pre").inner_text() for side in ("base", "finetuned")
        )
        assert base == finetuned
        page.get_by_role("button", name="Heat map of the finetuned answer 1 of turn 1").click()
        page.wait_for_selector("#heat .d-heat span", timeout=2 * WAIT)
        assert "mean KL 0 nats" in page.locator("#heat").inner_text()
        page.get_by_role("button", name="Ask turn 1 again with another seed").click()
        page.locator("#answers").get_by_text("seed 1").wait_for(timeout=WAIT)
        page.get_by_role("button", name="Edit the message of turn 1").click(timeout=2 * WAIT)
        page.locator("#ask-button").get_by_text("Ask turn 1 anew").wait_for(timeout=WAIT)
        page.locator("#heat-keep").click()
        page.locator("#ask-said").get_by_text("Added to the report on twins").wait_for(timeout=WAIT)
        window.open("jobs?pair=twins&method=kl&max_samples=4&max_tokens=16", "#job-start")
        page.wait_for_function("document.querySelector('#job-pair input').value.startsWith('twins')", timeout=WAIT)
        page.locator("#job-start").click()
        page.locator("#job-said").get_by_text("kl").wait_for(timeout=WAIT)
        page.reload()
        job = page.locator("#jobs-list tr", has_text="kl-")
        job.get_by_text("completed").wait_for(timeout=4 * WAIT)
        window.open("?pair=twins", ".d-verdict")
        page.get_by_role("button", name="Remove the evidence").click()
        page.locator("#pair-body .d-heat").wait_for(state="detached", timeout=WAIT)
        assert demo.files.runs.list()[0].params["max_samples"] == 4
    finally:
        page.goto("about:blank")  # a page that is open when its server goes complains
        demo.close()
        demo.connection.close()
        settings.cache_clear()
    assert not demo.connection.answers()
