"""What the page "Runs" shows of one run: result, figures, drill-down views with their parameters, stored tables,
manifest. No model is needed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.core.validation_messages import complaints
from diffing_mcp.methods.contract import DiffingMethod
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.store import RunManifest, RunRecord
from diffing_mcp.methods.views.figures import plain_labels
from diffing_mcp.ui.evidence import judged
from diffing_mcp.ui.html import (
    alert,
    chip,
    details,
    div,
    element,
    join,
    number,
    pairs,
    preformatted,
    seconds_text,
)
from diffing_mcp.ui.parameters import fields_of
from diffing_mcp.ui.theme import plot_layout
from diffing_mcp.ui.values import render_object

TABLE = "table: "
"""Prefix of the choices that are stored tables; views have none."""

TABLE_ROWS = 25

WITHIN_NULL = (
    "A finetune that taught nothing shows as much. What is listed below ranks highest; it is no finding by itself."
)

log = logging.getLogger(__name__)


def method_of(manifest: RunManifest) -> DiffingMethod[Any, Any] | None:
    """The run's method; None when it is not installed here (a plugin's run)."""
    try:
        return get_method(manifest.method)
    except DiffingError:
        return None


def headline_of(record: RunRecord) -> str:
    """The outcome in one sentence."""
    try:
        return str(record.result_json().get("headline", ""))
    except (OSError, DiffingError):
        return "(the result cannot be read)"


def headline_html(record: RunRecord) -> Markup:
    """The outcome in one sentence, and whether it is more than a null shows."""
    manifest = record.manifest
    try:
        values = record.result_json()
    except (OSError, DiffingError) as error:
        return alert(f"The result of {record.id} cannot be read: {error}")
    method = method_of(manifest)
    out = None if method is not None and method.no_verdict else bool(values.get("stands_out"))
    head = div(
        div(
            element("h2", method.title if method else manifest.method),
            judged(method, out),
            chip(manifest.pair_name),
            element("code", manifest.id),
            classes="d-line",
        ),
        element("p", values.get("headline", "")),
        element("p", WITHIN_NULL, classes="d-note") if out is False else "",
        classes=f"d-card d-headline {'good' if out else ''}".strip(),
    )
    if method is not None and method.version != manifest.method_version:
        said = f"Written by version {manifest.method_version} of the method; this is version {method.version}."
        return join([head, alert(said, "warn")])
    return head


def manifest_html(record: RunRecord) -> Markup:
    """What was run on what, how long it took, and with which versions."""
    manifest = record.manifest
    values: list[tuple[Any, Any]] = [
        ("Run", element("code", manifest.id)),
        ("Method", f"{manifest.method}, version {manifest.method_version}"),
        ("Pair", manifest.pair_name),
        ("Made", manifest.created.strftime("%Y-%m-%d %H:%M:%S %Z")),
        ("Time", seconds_text(manifest.seconds)),
        ("Forward passes", number(manifest.forward_passes)),
        ("Tokens read", number(manifest.forward_tokens)),
        ("Tokens generated", number(manifest.generated_tokens)),
        ("Size", f"{manifest.bytes / 1e6:.2f} MB"),
        ("Folder", element("code", record.folder)),
    ]
    blocks = [
        ("Parameters", manifest.params),
        ("Notes and timings", manifest.notes),
        ("Source of the pair", manifest.pair),
        ("Inputs", manifest.key_parts),
    ]
    parts: list[Any] = [pairs(values)]
    parts += [
        details(title, preformatted(json.dumps(block, indent=2, ensure_ascii=False)), opened=title == "Parameters")
        for title, block in blocks
        if block
    ]
    if manifest.versions:
        parts.append(details("Versions", pairs(manifest.versions.items())))
    return join(parts)


def figures(record: RunRecord) -> list[tuple[str, str, dict[str, Any] | Markup]]:
    """(title, remark, plotly dictionary) of every declared figure; an alert stands for one that cannot be built."""
    method = method_of(record.manifest)
    built: list[tuple[str, str, dict[str, Any] | Markup]] = []
    for figure in method.figures if method else ():
        try:
            drawn = figure.build(record)
            plain = plot_layout(plain_labels(drawn))
        except Exception as error:  # one broken plot must not take the page with it
            log.exception("figure %s of run %s", figure.name, record.id)
            built.append((figure.title, "", alert(f"{figure.title}: this plot could not be made ({error}).", "warn")))
            continue
        if not any(len(trace.get(axis) or ()) for trace in plain["data"] for axis in "xyz"):
            built.append(
                (figure.title, "", element("p", "Nothing to draw: the run found none of it.", classes="d-note"))
            )
            continue
        # Above the plot the title wraps and can be selected; inside it would be cut off in half a page.
        inner = _title(drawn)
        plain["layout"].pop("title", None)
        built.append((figure.title, "" if inner == figure.title else inner, plain))
    return built


def _title(figure: Mapping[str, Any]) -> str:
    title = figure.get("layout", {}).get("title")
    return str(title.get("text", "") if isinstance(title, Mapping) else title or "")


def view_choices(record: RunRecord) -> list[str]:
    """Names of the declared views, then of the stored tables."""
    method = method_of(record.manifest)
    return [*(method.views if method else ()), *(f"{TABLE}{name}" for name in record.manifest.tables)]


def view_fields(record: RunRecord, choice: str) -> dict[str, dict[str, Any]]:
    """JSON schema of each parameter of a view, without `offset` (paging sets it); a table has none."""
    method = method_of(record.manifest)
    if method is None or choice not in method.views:
        return {}
    return fields_of(method.views[choice].Params.model_json_schema(), skip=("offset",))


def view_html(record: RunRecord, choice: str, values: Mapping[str, Any], offset: int) -> tuple[Markup, int | None, int]:
    """A view's page as (HTML, offset of the next page or None, rows of a page)."""
    if choice.startswith(TABLE):
        return _table_page(record, choice.removeprefix(TABLE), offset)
    method = method_of(record.manifest)
    if method is None or choice not in method.views:
        return alert(f"This run has no view {choice!r}.", "warn"), None, 0
    view = method.views[choice]
    chosen = {name: value for name, value in values.items() if value is not None and value != ""}
    paged = "offset" in view.Params.model_fields
    try:
        params = view.Params.model_validate(chosen | ({"offset": offset} if paged else {}))
        answer = view.run(record, params)
    except ValidationError as error:
        return alert(f"{complaints(error, view.Params.model_fields)}.", "warn"), None, 0
    except DiffingError as error:
        return alert(error.message, "warn"), None, 0
    data = answer.model_dump(mode="json")
    limit = int(getattr(params, "limit", 0) or 0)
    longest = max((len(value) for value in data.values() if isinstance(value, list)), default=0)
    total = next((data[name] for name in ("total", "total_rows") if isinstance(data.get(name), int)), None)
    more = paged and limit > 0 and (offset + longest < total if total is not None else longest >= limit)
    place = (
        f"rows {offset + 1}–{offset + longest}" + (f" of {number(total)}" if total is not None else "")
        if paged and longest
        else ""
    )
    told = {name: field.description or "" for name, field in type(answer).model_fields.items()}
    note = element("p", view.description, f" Showing {place}." if place else "", classes="d-note")
    return (
        join([note, render_object(data, told, skip=("total", "total_rows", "next_offset") if place else ())]),
        (offset + limit if more else None),
        limit,
    )


def _table_page(record: RunRecord, name: str, offset: int) -> tuple[Markup, int | None, int]:
    from diffing_mcp.ui.values import render_value

    total = record.manifest.tables.get(name, 0)
    rows = record.table(name).slice(offset, TABLE_ROWS).to_pylist()
    note = element(
        "p",
        f"Stored table {name}: rows {min(offset + 1, total)}–{offset + len(rows)} of {number(total)}.",
        classes="d-note",
    )
    return join([note, render_value(rows)]), (offset + TABLE_ROWS if offset + TABLE_ROWS < total else None), TABLE_ROWS
