"""Addresses of the panel's pages: relative, so that they hold behind a proxy's prefix too."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import markupsafe
from markupsafe import Markup

from diffing_mcp.ui.html import escape

PAGES = {
    "": "Pair",
    "runs": "Runs",
    "jobs": "Jobs",
    "ask": "Ask",
    "steer": "Steer",
    "results": "Evaluations",
    "transcripts": "Transcripts",
    "detection": "Detection",
}
"""Path -> what the navigation calls it, in its order."""


def address(page: str, /, **query: Any) -> str:
    """The address of a page with what it shall show, such as `run?run=kl-1f3a9c`; None is left out."""
    given = {name: value for name, value in query.items() if value is not None}
    return (page or "./") + (f"?{urlencode(given)}" if given else "")


def link(text: Any, page: str, /, **query: Any) -> Markup:
    """A link to a page; the text is escaped, the query encoded."""
    return Markup(f'<a class="d-link" href="{markupsafe.escape(address(page, **query))}">{escape(text)}</a>')


def run_link(identifier: str) -> Markup:
    """A run's id that opens the run."""
    return link(identifier, "run", run=identifier)


def navigation(current: str) -> Markup:
    """The links between the pages; the current one is marked."""
    items = [
        Markup('<a href="{}"{}>{}</a>').format(
            address(page), Markup(' aria-current="page"') if page == current else "", name
        )
        for page, name in PAGES.items()
    ]
    return Markup('<nav class="d-nav" aria-label="Pages">{}</nav>').format(Markup("").join(items))


KEEP_PAIR = """() => {
  const pair = new URLSearchParams(location.search).get('pair');
  if (pair) document.querySelectorAll('.d-nav a').forEach(a => {
    const to = new URL(a.href);
    if (/(\\/|runs|jobs|ask|steer)$/.test(to.pathname)) { to.searchParams.set('pair', pair); a.href = to; }
  });
}"""
"""JavaScript: the links between the pages keep the pair that is looked at."""


def show_in_address(*names: str, without: str = "") -> str:
    """JavaScript for an event whose inputs are the values of these query parameters: the address then opens what is
    shown. A name without an input, an empty value and the value `without` are taken out of the address.
    """
    return (
        "(...values) => { const here = new URL(location); "
        f"{json.dumps(names)}.forEach((name, place) => {{ const value = values[place]; "
        f"if (value === null || value === undefined || value === '' || value === {json.dumps(without)}) "
        "here.searchParams.delete(name); else here.searchParams.set(name, value); }); "
        "history.replaceState(null, '', here); }"
    )
