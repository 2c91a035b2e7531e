"""A report on a pair as one HTML file that needs nothing else: no scripts, no requests, text of models escaped."""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.version import version
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.ui.evidence import evidence_html, numbers_html
from diffing_mcp.ui.html import details, div, element, join, pairs, section
from diffing_mcp.ui.pair_findings import PairFindings, findings_of
from diffing_mcp.ui.pair_view import cards_html, claims_html, missing_html, sides_html, verdict_html
from diffing_mcp.ui.saved_view import saved_html
from diffing_mcp.ui.theme import css

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main class="gradio-container d-report">{body}</main></body>
</html>
"""

_STYLE = """
:root { --border-color-primary: #dfe3ea; --background-fill-primary: #fff; --body-text-color: #1f2937; }
* { box-sizing: border-box; }
body { margin: 0; background: #f8fafc; color: #1f2937; font: 15px/1.5 ui-sans-serif, system-ui, sans-serif; }
@media print { .d-details > *, .d-card { break-inside: avoid; } body { background: #fff; } }
"""


def pair_report(pair_name: str, store: RunStore) -> str:
    """The report on a pair, from its finished runs alone.

    Raises:
        UnknownName: nothing has been run on this pair, and no evidence was added by hand.
    """
    found = findings_of(pair_name, store)
    if found.overview is None and not found.saved:
        raise UnknownName(
            f"There is no finished run on {found.name}, so there is nothing to report. Run `diffing overview --pair "
            f"{found.name}` first."
        )
    body = join(
        [
            div(element("h1", found.name), classes="d-masthead"),
            verdict_html(found),
            claims_html(found, linked=False),
            sides_html(found),
            saved_html(found.saved, live=False),
            cards_html(found, _place),
            section("Runs", *(_run(found, place) for place in range(len(found.records)))) if found.records else "",
            missing_html(found.missing) if found.missing else "",
            _made(found),
        ]
    )
    title = Markup.escape(f"{found.name}: what the finetune did")
    return _PAGE.format(title=title, style=css() + _STYLE, body=body)


def _place(identifier: str) -> Markup:
    return Markup('<a class="d-link" href="#{0}">{0}</a>').format(identifier)


def _run(found: PairFindings, place: int) -> Markup:
    record = found.records[place]
    entry = details(
        f"{record.manifest.method} · {record.id}",
        evidence_html(record),
        numbers_html(record),
        details("Parameters", pairs((name, str(value)) for name, value in record.manifest.params.items())),
    )
    return Markup('<div id="{}">{}</div>').format(record.id, entry)


def _made(found: PairFindings) -> Markup:
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    weights = found.records[0].manifest.notes.get("weights", {}) if found.records else {}
    base, finetuned = (weights.get(side, "") for side in ("base", "finetuned"))
    of = f" Compared: {base} (base) and {finetuned} (finetuned)." if base and finetuned else ""
    return element(
        "p", f"Made {when} UTC by diffing-mcp {version()} from {len(found.records)} runs.{of}", classes="d-note"
    )
