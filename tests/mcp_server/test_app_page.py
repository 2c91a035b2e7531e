"""The page inside of a host, in a real Chromium: under the policy that hosts set where a page names no domains it draws
every kind of answer, and hostile text stays text.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from diffing_mcp.core.wire import APP
from diffing_mcp.mcp_server.apps import page
from diffing_mcp.mcp_server.plot_images import png

if TYPE_CHECKING:
    from playwright.sync_api import Frame

pytestmark = pytest.mark.browser

# What the specification has hosts set for a page that names no domains.
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "media-src 'self' data:; connect-src 'none'"
)
HOST = """<iframe sandbox="allow-scripts" style="width:700px;height:500px"></iframe><script>
window.told = [];
const frame = document.querySelector("iframe");
window.addEventListener("message", (event) => {
  window.told.push(event.data.method);
  const hostContext = {theme: "dark", styles: {variables: {"--font-sans": "serif"}}};
  if (event.data.method === "ui/initialize") frame.contentWindow.postMessage(
    {jsonrpc: "2.0", id: event.data.id, result: {protocolVersion: "2026-01-26", hostContext}}, "*");
});
window.give = (result) => frame.contentWindow.postMessage(
  {jsonrpc: "2.0", method: "ui/notifications/tool-result", params: result}, "*");
</script>"""
HOSTILE = "<img src=x onerror=top.pwned=1><script>document.title='pwned'</script>\u202e"


class Host:
    """A host that shows the page, and everything that it complained of."""

    def __init__(self, shown: Any) -> None:
        self.shown = shown
        self.complaints: list[str] = []
        shown.on("console", lambda message: self.complaints.append(message.text))
        shown.on("request", lambda request: self.complaints.append(request.url))
        shown.set_content(HOST)
        policed = page().replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{POLICY}">')
        shown.evaluate("(html) => { document.querySelector('iframe').srcdoc = html }", policed)
        shown.wait_for_function("window.told.includes('ui/notifications/initialized')")

    @property
    def frame(self) -> Frame:
        frame: Frame = self.shown.frames[1]
        return frame

    def draw(self, view: Any, text: str = "the text") -> str:
        """What the page says of an answer."""
        result = {"content": [{"type": "text", "text": text}], "_meta": {APP: view} if view else {}}
        before = self.frame.inner_html("main")
        self.shown.evaluate("(result) => window.give(result)", result)
        self.frame.wait_for_function("(before) => document.querySelector('main').innerHTML !== before", arg=before)
        return self.frame.inner_text("main")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        host = Host(browser.new_page())
        yield host
        assert "pwned" not in host.frame.evaluate("document.title")
        assert host.frame.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
        assert [told for told in host.complaints if not told.startswith("data:image/png")] == []
        assert "ui/notifications/size-changed" in host.shown.evaluate("window.told")
        browser.close()


def test_the_heat_map(host: Host) -> None:
    mover = {"token": HOSTILE, "base": 0.1, "finetuned": 0.4}
    result = {
        "tokens": ["a", HOSTILE, "\n"],
        "base_log_prob": [-1.0, -2.0, -3.0],
        "finetuned_log_prob": [-2.0, -0.5, -3.0],
        "kl": [0.1, 0.5, 0.0],
        "mean_kl": 0.2,
        "mean_log_prob_difference": 0.17,
        "top": [{"position": 1, "token": HOSTILE, "kl": 0.5, "up": [mover], "down": []}],
        "spans": [{"start": 1, "end": 2, "text": HOSTILE, "difference": 1.5}],
        "candidates": [{"candidate": HOSTILE, "base_per_token": 1, "finetuned_per_token": 2, "base_rank": 1}],
        "greedy": {"parts": True, "common": HOSTILE, "base": HOSTILE, "finetuned": HOSTILE},
    }
    said = host.draw({"kind": "heat_map", "result": result})
    assert "<img src=x onerror" in said
    assert "\u202e" not in said
    assert host.frame.locator("main img, main script").count() == 0
    assert "difference 1.5" in (host.frame.locator(".text span").nth(1).get_attribute("title") or "")
    colours = host.frame.locator(".text span").evaluate_all("all => all.map(each => each.style.backgroundColor)")
    assert colours[0].startswith("rgba(91, 127, 176")
    assert colours[1].startswith("rgba(224, 123, 26")


def test_the_page_of_a_pair(host: Host) -> None:
    fact = {"claim": HOSTILE, "quotation": HOSTILE, "finetuned": 9, "base": 0, "p_value": 0.001}
    entry = {"method": "kl", "run": "kl-1", "stands_out": True, "headline": HOSTILE}
    excerpt = {"untrusted_text": HOSTILE, "difference": 2.0}
    found = {"verdict": HOSTILE, "facts": [fact], "manner": [HOSTILE], "excerpts": [excerpt], "runs": [entry]}
    said = host.draw({"kind": "pair", "result": found})
    assert said.count("<img src=x onerror") == 6
    assert "beyond its null" in said
    assert host.frame.locator("main img, main script").count() == 0


def test_the_figures_of_a_run(host: Host) -> None:
    picture = base64.b64encode(png({"data": [{"x": [1, 2], "y": [HOSTILE, "b"]}]})).decode()
    figures = [{"title": HOSTILE, "png": picture}]
    said = host.draw(
        {"kind": "run", "run_id": "kl-1", "title": "KL", "headline": HOSTILE, "figures": figures},
    )
    assert "<img src=x onerror" in said
    host.frame.wait_for_function("document.querySelector('img').naturalWidth > 300")
    assert host.frame.locator("main img").count() == 1


def test_an_answer_without_a_drawing_is_its_text(host: Host) -> None:
    assert HOSTILE[:20] in host.draw(None, HOSTILE)
    assert "kl-1 is running" in host.draw({"kind": "of a later version"}, "kl-1 is running")


def test_the_page_names_no_other_place() -> None:
    assert "http://" not in page()
    assert "https://" not in page()
    assert "innerHTML" not in page()
    assert "eval" not in page()
    assert len(json.dumps(page())) < 16_000
