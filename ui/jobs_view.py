"""Jobs of the model server as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from diffing_mcp.ui.addresses import link
from diffing_mcp.ui.html import chip, div, element, escape, join, seconds_text, table

LIVE = ("queued", "running")
_KINDS = {"completed": "good", "failed": "bad", "cancelled": "warn", "running": "finetuned"}


def jobs_html(jobs: Sequence[Mapping[str, Any]]) -> Markup:
    """A table of jobs, the newest first: what is done of what, and how long it took so far."""
    rows = ([_name(job), chip(job["state"], _KINDS.get(job["state"], "")), _progress(job), _time(job)] for job in jobs)
    return table(["job", "state", "progress", "time"], rows, [3], classes="d-stack")


def _name(job: Mapping[str, Any]) -> Markup:
    pair = job.get("pair")
    return join(
        [
            element("b", job["tool"]),
            div(element("code", job["job_id"]), classes="d-remark"),
            link(pair, "", pair=pair) if pair else "",
        ]
    )


def _progress(job: Mapping[str, Any]) -> Markup:
    if job["state"] == "failed":
        return escape(job.get("error") or job.get("message") or "")
    share = job.get("progress")
    said = job.get("message") or ""
    if job["state"] == "queued" and job.get("queued_before"):
        said = f"{job['queued_before']} before it"
    if share is None or job["state"] not in LIVE:
        return escape(said)
    percent = round(100 * share)
    bar = Markup(
        f"<div class='d-bar' role='progressbar' aria-label='progress' aria-valuenow='{percent}' aria-valuemin='0' "
        f"aria-valuemax='100'><div style='width:{percent}%'></div></div>"
    )
    return join([f"{percent} % {said}".strip(), bar])


def _time(job: Mapping[str, Any]) -> Markup:
    spent = float(job.get("seconds") or 0)
    left = _left(job, spent)
    return join([seconds_text(spent), div(f"about {seconds_text(left)} left", classes="d-remark") if left else ""])


def _left(job: Mapping[str, Any], spent: float) -> float | None:
    """Seconds left by the pace so far; None before a tenth is done."""
    share = job.get("progress") or 0
    return spent * (1 - share) / share if job["state"] == "running" and 0.1 <= share < 1 else None
