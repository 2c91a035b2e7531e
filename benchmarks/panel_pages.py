"""How long the panel's pages take to load what they show from a large data folder: 1,000 runs on 40 pairs and 500
transcripts. Every function that a page calls when it opens counts, in processor time, so that a busy machine does not
decide; the browser's own start comes on top.
"""

from __future__ import annotations

import asyncio
import inspect
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.measurement import Measurement, Sizes
from benchmarks.panel_store import EVALUATION, write_runs, write_transcripts

RUNS, PAIRS, TRANSCRIPTS = 1000, 40, 500
AIM_SECONDS = 2.0


def run(sizes: Sizes) -> list[Measurement]:
    """Seconds of each page, when it is first opened."""
    with tempfile.TemporaryDirectory(prefix="diffing-panel-") as name:
        folder = Path(name)
        write_runs(folder, RUNS, PAIRS)
        write_transcripts(folder, TRANSCRIPTS)
        return [
            Measurement(
                name=f"panel, {page or 'pair'}: {RUNS} runs, {TRANSCRIPTS} transcripts",
                value=round(first, 2),
                unit="s",
                aim=AIM_SECONDS,
                detail=f"opened again {again:.2f} s",
            )
            for page, first, again in page_seconds(folder)
        ]


def page_seconds(folder: Path) -> Iterator[tuple[str, float, float]]:
    """(page, seconds of its load functions when first opened, and when opened again) over a data folder."""
    from diffing_mcp.ui.panel import build_panel

    panel = build_panel(SimpleNamespace(data_folder=folder))
    run_id = panel.files.runs.list()[0].id
    query = {
        "": {"pair": "cake_bake"},
        "run": {"run": run_id},
        "transcripts": {"evaluation": EVALUATION, "repeat": "49"},
        "results": {"evaluation": EVALUATION},
    }
    for page in ("", "runs", "run", "jobs", "ask", "steer", "results", "transcripts"):
        request = SimpleNamespace(query_params=query.get(page, {}), session_hash="benchmark")
        loads: list[Callable[..., Any]] = [
            block.fn for block in panel.fns.values() if block.page == page and _is_load(block) and block.fn
        ]
        first, second = (sum(_seconds(load, request) for load in loads) for _ in range(2))
        yield page, first, second


def _is_load(block: Any) -> bool:
    """Whether a page calls it in Python when it opens; what draws (`gr.render`) runs inside of a page only."""
    drawn = "Renderable" in getattr(block.fn, "__qualname__", "")
    return callable(block.fn) and not drawn and any(event == "load" for _, event in block.targets)


def _seconds(load: Callable[..., Any], request: SimpleNamespace) -> float:
    started = time.process_time()
    given = [request] if inspect.signature(load).parameters else []
    answer = load(*given)
    if inspect.isawaitable(answer):

        async def waited() -> None:
            await answer

        asyncio.run(waited())
    return time.process_time() - started
