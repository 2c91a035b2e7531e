"""HTML building blocks. Every plain string is escaped; only `Markup` made here passes as it is, so untrusted text can
never become an element.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import markupsafe
import regex
from markupsafe import Markup

from diffing_mcp.core.words import beginning_with

_CONTROLS = dict.fromkeys(
    [*range(9), 11, 12, *range(14, 32), 127, *range(0x202A, 0x202F), *range(0x2066, 0x206A)],
    "\N{REPLACEMENT CHARACTER}",
)
"""Control characters and those that turn the direction of writing: they would let a text rearrange what stands around
it.
"""


_INKED = regex.compile(r"[^\p{Z}\p{C}\p{Default_Ignorable_Code_Point}]|[\p{Co}\p{Cs}]")
"""A character that leaves a mark on a page; private and lone ones get one of the browser's."""


def escape(value: Any) -> Markup:
    """A value as HTML text; `Markup` stays as it is."""
    if isinstance(value, Markup):
        return value
    return markupsafe.escape(str(value).translate(_CONTROLS))


def join(parts: Iterable[Any], separator: str = "") -> Markup:
    """Parts, escaped and put together."""
    return Markup(separator).join(escape(part) for part in parts)


def element(tag: str, *children: Any, classes: str = "", title: str | None = None, style: str = "") -> Markup:
    """One element. `style` must come from numbers and constants of this package, never from text that was read."""
    attributes = "".join(
        f' {name}="{markupsafe.escape(str(value))}"'
        for name, value in (("class", classes), ("title", title), ("style", style))
        if value
    )
    return Markup(f"<{tag}{attributes}>{join(children)}</{tag}>")


def div(*children: Any, classes: str = "") -> Markup:
    """A block."""
    return element("div", *children, classes=classes)


def chip(text: Any, kind: str = "") -> Markup:
    """A short label; `kind` is one of good, bad, warn, base, finetuned, blackbox, method or nothing."""
    return element("span", text, classes=f"d-chip {kind}".strip())


def section(title: str, *children: Any, note: str = "") -> Markup:
    """A heading with what belongs to it."""
    return element(
        "section",
        element("h3", title),
        element("p", note, classes="d-note") if note else "",
        *children,
        classes="d-section",
    )


def heading(title: str, text: str = "") -> Markup:
    """The heading of a page with one sentence that says what it shows."""
    return div(element("h2", title), element("p", text) if text else "", classes="d-heading")


def tiles(values: Sequence[tuple[str, Any, str]]) -> Markup:
    """A row of numbers: (label, value, remark)."""
    return div(
        *(
            div(
                div(label, classes="d-label"),
                div(value, classes="d-value"),
                div(remark, classes="d-remark"),
                classes="d-tile",
            )
            for label, value, remark in values
        ),
        classes="d-tiles",
    )


def table(
    headers: Sequence[Any],
    rows: Iterable[Sequence[Any]],
    numeric: Iterable[int] = (),
    classes: str = "",
    below: Sequence[Markup] = (),
) -> Markup:
    """A table; the columns in `numeric` are set to the right in figures of equal width. `below`: for each row what
    stands under it over all columns.
    """
    right = set(numeric)
    head = element(
        "tr",
        *(
            element("th", header, classes="d-number" if column in right else "")
            for column, header in enumerate(headers)
        ),
    )
    lines = []
    for place, row in enumerate(rows):
        lines.append(
            element(
                "tr",
                *(
                    element("td", cell, classes="d-number" if column in right else "")
                    for column, cell in enumerate(row)
                ),
            )
        )
        if place < len(below) and below[place]:
            lines.append(Markup(f"<tr class='d-under'><td colspan='{max(1, len(headers))}'>{below[place]}</td></tr>"))
    body = join(lines)
    whole = element("table", element("thead", head), element("tbody", body), classes=f"d-table {classes}".strip())
    # Wide tables scroll inside of it, by keyboard too.
    return Markup(f'<div class="d-scroll" tabindex="0">{whole}</div>')


def pairs(values: Iterable[tuple[Any, Any]]) -> Markup:
    """Names and values, one below the other."""
    return element(
        "dl", *(join([element("dt", name), element("dd", value)]) for name, value in values), classes="d-pairs"
    )


def empty(title: str, text: str, command: str = "") -> Markup:
    """What stands where there is nothing yet: why, and which command changes that."""
    return div(element("h3", title), element("p", text), element("code", command) if command else "", classes="d-empty")


def alert(text: Any, kind: str = "bad") -> Markup:
    """A message that must be seen."""
    return div(text, classes=f"d-alert {kind}")


def highlighted(text: str, words: Sequence[str]) -> Markup:
    """Text in which every word that begins with one of `words` is marked, whatever its case."""
    parts: list[Any] = []
    after = 0
    for found in beginning_with(words).finditer(text):
        parts += [text[after : found.start()], element("mark", found.group())]
        after = found.end()
    return join([*parts, text[after:]])


def details(summary: Any, *children: Any, opened: bool = False) -> Markup:
    """A block that unfolds."""
    return Markup(
        "<details "
        f"class='d-details'{' open' if opened else ''}><summary>{escape(summary)}</summary>{join(children)}</details>"
    )


def preformatted(text: Any) -> Markup:
    """Text whose line breaks and spaces count."""
    return element("div", text, classes="d-pre")


def visible_token(token: str) -> str:
    """A token with its white space made visible: what nothing would be seen of goes by its code points."""
    shown = token.replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥")
    if not shown:
        return "∅"
    if not _INKED.search(shown):
        return "".join("␣" if character == " " else f"U+{ord(character):04X}" for character in shown)
    return "·" + shown[1:] if shown.startswith(" ") else shown


def number(value: float | int | None, digits: int = 3) -> str:
    """A number in at most `digits` significant digits; integers as they are; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{THIN SPACE}")
    return (
        f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}", 1)
        if not f"{value:.{digits}g}".count("e")
        else f"{value:.{digits - 1}e}"
    )


def seconds_text(seconds: float) -> str:
    """A duration for people: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )
