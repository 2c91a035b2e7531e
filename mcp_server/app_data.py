"""What the page inside of a host (`app.html`) draws beside an answer, and the pictures of a run's figures."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from diffing_mcp.methods.overview.digest import OverviewResult
from diffing_mcp.methods.registry import all_methods
from diffing_mcp.queries.schemas import CompareResult

if TYPE_CHECKING:
    from diffing_mcp.mcp_server.redaction import Redactor
    from diffing_mcp.methods.contract import Figure
    from diffing_mcp.methods.runs.store import RunRecord

logger = logging.getLogger(__name__)

MOST_FIGURES = 4


def app_data(result: BaseModel | None, answer: dict[str, Any], run: RunRecord | None, redactor: Redactor | None) -> Any:
    """What the page draws for an answer: a heat map, the page of a pair or the figures of a run; None: nothing.
    `answer` is the answer as data, redacted already.
    """
    if isinstance(result, CompareResult):
        return {"kind": "heat_map", "result": answer["result"]}
    if isinstance(result, OverviewResult):
        return {"kind": "pair", "result": answer["result"]}
    if run is None:
        return None
    method = all_methods().get(run.manifest.method)
    headline = str(run.result_json().get("headline", ""))
    return {
        "kind": "run",
        "run_id": run.id,
        "title": method.title if method is not None else run.manifest.method,
        "headline": redactor.result(headline) if redactor is not None else headline,
        "figures": [
            {"title": figure.title, "png": base64.b64encode(picture).decode()}
            for figure, picture in run_pictures(run, redactor)
        ],
    }


def figures_of(run: RunRecord) -> dict[str, Figure]:
    """The figures that a run's method declares; none when it is not installed here."""
    method = all_methods().get(run.manifest.method)
    return {figure.name: figure for figure in method.figures} if method is not None else {}


def run_pictures(run: RunRecord, redactor: Redactor | None = None) -> Iterator[tuple[Figure, bytes]]:
    """Each figure of a run with its picture (PNG). One that cannot be drawn, or is empty, is left out."""
    from diffing_mcp.mcp_server.plot_images import png  # brings numpy, which listing tools does not wait for

    for figure in list(figures_of(run).values())[:MOST_FIGURES]:
        try:
            plain = figure.build(run)
            picture = png(redactor.result(plain) if redactor is not None else plain)
        except Exception:  # one broken plot must not take the answer with it
            logger.exception("figure %s of run %s", figure.name, run.id)
            continue
        if picture:
            yield figure, picture
