"""Tab "Examples" of a run: where its features are highest, by quantile, searched by words."""

from __future__ import annotations

from typing import Any

import gradio as gr
from markupsafe import Markup

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.methods.runs.store import RunRecord
from diffing_mcp.ui.examples_view import examples_html, histogram_html
from diffing_mcp.ui.files import PanelFiles
from diffing_mcp.ui.html import alert, empty, join, number
from diffing_mcp.ui.widgets import picker

ROWS = 10
_FEATURES = 500
_STORED = 2000
ALL = "all"


def features_of(record: RunRecord) -> list[tuple[str, str]]:
    """(what is shown, name) of the features that have examples, in the order of the method."""
    if not record.manifest.examples:
        return []
    rows = record.examples().features(limit=_FEATURES).rows
    return [(f"{row.name} ({row.examples}, highest {number(row.max_score)})", row.name) for row in rows]


def bins_of(record: RunRecord, feature: str) -> list[tuple[str, str]]:
    """(what is shown, value) of the quantile bins that a feature has examples in, the highest first."""
    bins = sorted({example.bin for example in record.examples().examples(feature, limit=_STORED).rows}, reverse=True)
    return [(ALL, ALL), *((f"bin {place}", str(place)) for place in bins)]


def page_html(
    record: RunRecord, feature: str, chosen: str | None, search: str | None, cursor: str | None
) -> tuple[Markup, str | None]:
    """A page of examples below their histogram, and the cursor of the next page."""
    place = int(chosen) if chosen and chosen.isdecimal() else None
    reader = record.examples()
    try:
        stored = reader.examples(feature, limit=_STORED).rows
        page = reader.examples(feature, place, search or None, cursor, ROWS)
    except DiffingError as error:
        return alert(error.message, "warn"), None
    if not page.rows:
        return empty("No example fits", "No stored text of this bin has all these words."), None
    strongest = max(abs(example.score) for example in stored)
    found = alert(f"{number(page.total)} examples fit.", "good") if search or place is not None else ""
    histogram = histogram_html([example.score for example in stored])
    return join([histogram, found, examples_html(page.rows, strongest)]), page.next_cursor


def build_tab(files: PanelFiles, run: gr.State) -> None:
    """Lay out the tab for the run whose id `run` holds."""
    with gr.Row(elem_classes="d-controls"):
        feature = picker([], label="Feature", scale=4, min_width=300, elem_id="example-feature", interactive=True)
        place = gr.Radio([(ALL, ALL)], value=ALL, label="Quantile bin, the highest first", scale=3, min_width=300)
    with gr.Row(elem_classes="d-controls"):
        search = gr.Textbox(label="Texts with all these words", scale=4, elem_id="example-search")
        forth = gr.Button("More", scale=0, min_width=110, interactive=False)
    shown = gr.HTML(elem_id="run-examples")
    cursor = gr.State(None)

    def page(identifier: str, name: str | None, chosen: str, words: str | None, after: str | None) -> tuple[Any, ...]:
        record = files.run(identifier)
        if record is None or not name:
            return "", None, gr.update(interactive=False)
        markup, following = page_html(record, name, chosen, words, after)
        return markup, following, gr.update(interactive=following is not None)

    def first(identifier: str, name: str | None, chosen: str, words: str | None) -> tuple[Any, ...]:
        return page(identifier, name, chosen, words, None)

    def picked(identifier: str, name: str | None, words: str | None) -> tuple[Any, ...]:
        record = files.run(identifier)
        try:
            bins = bins_of(record, name) if record is not None and name else [(ALL, ALL)]
        except DiffingError:
            bins = [(ALL, ALL)]
        return gr.update(choices=bins, value=ALL), *first(identifier, name, ALL, words)

    def opened(identifier: str) -> tuple[Any, ...]:
        record = files.run(identifier)
        names = features_of(record) if record is not None else []
        name = names[0][1] if names else None
        return gr.update(choices=names, value=name), *picked(identifier, name, None)

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    page_of: list[Any] = [shown, cursor, forth]
    run.change(opened, [run], [feature, place, *page_of], **quiet)
    feature.input(picked, [run, feature, search], [place, *page_of], **quiet)
    place.input(first, [run, feature, place, search], page_of, **quiet)
    search.submit(first, [run, feature, place, search], page_of, **quiet)
    search.blur(first, [run, feature, place, search], page_of, **quiet)
    forth.click(page, [run, feature, place, search, cursor], page_of, **quiet)
