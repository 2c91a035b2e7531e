"""Picture of a page of the panel on the runs of the data folder: `python -m diffing_mcp.ui.screenshot
docs/images/panel.png "?pair=cake_bake"`, in a real Chromium (Playwright's own, or the one on the PATH).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from diffing_mcp.ui.panel import launch

_COLOURS = 256
"""Enough for a page of text, in a third of the bytes."""


def take(
    out: Path,
    page: str,
    shows: str = ".d-masthead",
    dark: bool = False,
    width: int = 1280,
    height: int = 860,
    whole: bool = False,
) -> None:
    """Open the panel on a free port, go to a page, write a PNG, close everything.

    Args:
        page: its address below the panel's, such as `?pair=cake_bake` or `runs`.
        shows: CSS selector of what the page has once it is loaded.
        whole: take the page beyond the window's height too.
    """
    from PIL import Image
    from playwright.sync_api import sync_playwright

    demo, address = launch(port=0, prevent_thread_lock=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with sync_playwright() as playwright:
            found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
            window = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1.5)
            scheme = f"__theme={'dark' if dark else 'light'}"
            window.goto(f"{address}{page}{'&' if '?' in page else '?'}{scheme}")
            window.wait_for_selector(shows, timeout=120_000)
            window.wait_for_timeout(4_000)  # plots draw themselves after the text
            window.add_style_tag(content=".d-where { visibility: hidden }")  # a folder of this machine
            window.screenshot(path=out, full_page=whole)
            browser.close()
        with Image.open(out) as picture:
            # Median cut would mix the colours of small areas, the two sides' among them.
            few = picture.convert("RGB").quantize(_COLOURS, Image.Quantize.MAXCOVERAGE)
        few.save(out, optimize=True)
    finally:
        demo.close()


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("page", nargs="?", default="", help="Address of the page below the panel's.")
    parser.add_argument("--shows", default=".d-masthead", help="CSS selector to wait for.")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--whole", action="store_true", help="The whole page, not only what fits the window.")
    chosen = parser.parse_args()
    take(chosen.out, chosen.page, chosen.shows, chosen.dark, whole=chosen.whole)


if __name__ == "__main__":
    main()
