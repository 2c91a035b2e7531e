"""Picture of the panel on the runs and evaluations of the data folder: `python -m diffing_mcp.ui.screenshot
docs/images/panel.png [PAGE]`.

Takes the page "Results" unless another one is named, at 1280 pixels, in a real Chromium (Playwright's own, or the one
on the PATH).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from diffing_mcp.ui.panel import launch

PAGES = ("Results", "Transcripts", "Runs", "Side by side")


def take(
    out: Path, page: str = "Results", dark: bool = False, width: int = 1280, height: int = 860, whole: bool = False
) -> None:
    """Open the panel on a free port, go to a page, write a PNG, close everything. `whole` takes the page beyond the
    window's height too.
    """
    from playwright.sync_api import sync_playwright

    demo, address = launch(port=0, prevent_thread_lock=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with sync_playwright() as playwright:
            found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
            window = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1.5)
            window.goto(f"{address}?__theme={'dark' if dark else 'light'}")
            window.get_by_role("tab", name=page, exact=True).click(timeout=60_000)
            # Whatever the page loads first: an evaluation, a run, or the note that says there is none.
            window.wait_for_selector(
                "#results-tiles .d-tile, #results-tiles .d-empty", state="attached", timeout=60_000
            )
            window.wait_for_timeout(4_000)
            window.screenshot(path=out, full_page=whole)
            browser.close()
    finally:
        demo.close()


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("page", nargs="?", choices=PAGES, default=PAGES[0])
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--whole", action="store_true", help="The whole page, not only what fits the window.")
    chosen = parser.parse_args()
    take(chosen.out, chosen.page, chosen.dark, whole=chosen.whole)


if __name__ == "__main__":
    main()
