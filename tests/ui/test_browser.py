"""The panel in a real Chromium: every page clicked through, no console errors, no request to another host, hostile text
stays text.
"""

from __future__ import annotations

import re
import shutil
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


@dataclass
class Window:
    """A page with everything that must not happen in it."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_selector("#results-tiles .d-tile, #results-tiles .d-empty", timeout=WAIT)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def window(browser: Any) -> Iterator[Window]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    window = Window(page)
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
    assert window.complaints == []


def test_results(window: Window, panel: str, tmp_path: Path) -> None:
    window.open(panel)
    page = window.page
    page.wait_for_selector("#results-table table", timeout=WAIT)
    assert page.locator("#results-table tbody tr").count() == 8
    page.wait_for_selector("#results-plot .js-plotly-plot .point", timeout=WAIT)
    page.get_by_label("Fact recall, 0-1").check()
    page.wait_for_function(
        "document.querySelector('#results-plot .xtitle')?.textContent.startsWith('Fact recall')", timeout=WAIT
    )
    page.get_by_label("Live").check()
    page.wait_for_timeout(500)
    page.get_by_label("Live").uncheck()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    page.screenshot(path=tmp_path / "results.png", full_page=True)
    assert (tmp_path / "results.png").stat().st_size > 20_000


def test_transcripts(window: Window, panel: str, tmp_path: Path) -> None:
    window.open(panel)
    window.tab("Transcripts")
    page = window.page
    call = page.locator("#transcript").get_by_text("kl(max_samples=256)")
    call.wait_for(timeout=WAIT)
    assert "mean KL 0.21" not in page.locator("#transcript").inner_text()
    call.click()
    page.locator("#transcript").get_by_text("mean KL 0.21").wait_for(timeout=WAIT)
    # What the model wrote is there letter by letter, and no element came of it.
    assert "<img src='http://evil.example/x.png'" in page.locator("#transcript").inner_text()
    assert page.locator("#transcript img[src*=evil], #transcript script, #transcript-side img").count() == 0
    assert "14 of 20" in page.locator("#transcript-side").inner_text()
    page.locator("#transcript-arm input").click()
    page.get_by_role("option", name="blackbox").click()
    page.locator("#transcript").get_by_text("ask_models(max_samples=256)").wait_for(timeout=WAIT)
    page.screenshot(path=tmp_path / "transcripts.png", full_page=True)


def test_runs(window: Window, panel: str, tmp_path: Path) -> None:
    window.open(panel)
    window.tab("Runs")
    page = window.page
    page.locator("#runs-list").get_by_text("cake_bake", exact=True).locator("visible=true").first.click(timeout=WAIT)
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
    page.get_by_role("tab", name="Manifest").click()
    page.locator("#run-manifest").get_by_text("seconds_forward").wait_for(state="attached", timeout=WAIT)
    page.locator("#runs-pair input").click()
    page.get_by_role("option", name="control").click()
    page.locator("#run-headline").get_by_text("nothing stands out", exact=True).wait_for(timeout=WAIT)
    assert page.locator("img[src*=evil]").count() == 0
    page.screenshot(path=tmp_path / "runs.png", full_page=True)


def test_side_by_side_without_server(window: Window, panel: str) -> None:
    window.open(panel)
    window.tab("Side by side")
    window.page.locator("#server-status").get_by_text("diffing serve --http").wait_for(timeout=WAIT)
    assert window.page.locator("#ask-button").is_disabled()


def test_empty_folder(window: Window, tmp_path: Path) -> None:
    from diffing_mcp.agents.server_process import free_port
    from diffing_mcp.ui.panel import launch

    demo, address = launch(
        port=0, prevent_thread_lock=True, paths=Paths(tmp_path), server_url=f"http://127.0.0.1:{free_port()}/mcp"
    )
    try:
        window.open(address)
        window.page.get_by_text("No evaluation yet").wait_for(timeout=WAIT)
        window.tab("Transcripts")
        window.page.get_by_text("No transcripts yet").wait_for(timeout=WAIT)
        window.tab("Runs")
        window.page.get_by_text("No runs yet").wait_for(timeout=WAIT)
    finally:
        demo.close()


def test_side_by_side_with_a_server_of_its_own(
    window: Window, data_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Start is pressed, the real embedded pair answers, its answer becomes a heat map, and the server goes with the
    panel.
    """
    from diffing_mcp.agents.server_process import free_port
    from diffing_mcp.core.settings import settings
    from diffing_mcp.ui.panel import launch

    monkeypatch.setenv("DIFFING_PORT", str(free_port()))
    settings.cache_clear()
    demo, address = launch(port=0, prevent_thread_lock=True)
    page = window.page
    try:
        window.open(address)
        window.tab("Side by side")
        page.locator("#server-start").click(timeout=WAIT)
        page.locator("#server-status").get_by_text("started by this panel").wait_for(timeout=2 * WAIT)
        page.locator("#ask-pair input").fill("identical")
        page.locator("#ask-pair input").press("Enter")
        page.locator("#ask-prompt textarea").fill("Name a fruit.")
        page.get_by_label("Tokens at most").fill("8")
        page.locator("#ask-button").click()
        page.wait_for_selector("#answers .d-side.finetuned .d-pre", timeout=4 * WAIT)
        base, finetuned = (
            page.locator(f"#answers .d-side.{side} .d-pre").inner_text() for side in ("base", "finetuned")
        )
        assert base == finetuned
        page.get_by_role("button", name="Use the finetuned answer above").click()
        page.wait_for_function("document.querySelector('#compare-text textarea').value.length > 0", timeout=WAIT)
        page.locator("#compare-button").click()
        page.wait_for_selector("#heat .d-heat span", timeout=2 * WAIT)
        assert "mean KL 0 nats" in page.locator("#heat").inner_text()
        page.screenshot(path=tmp_path / "side-by-side.png", full_page=True)
    finally:
        demo.close()
        demo.connection.close()
        settings.cache_clear()
    assert not demo.connection.answers()
