"""Jobs of the model server as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from diffing_mcp.ui.addresses import link, run_link
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
    said = job.get("message") or ""
    if job["state"] == "queued" and job.get("queued_before"):
        said = f"{job['queued_before']} before it"
    share = job.get("progress")
    if share is None or job["state"] not in LIVE:
        return escape(said)
    parts = (
        element("li", run_link(part["run_id"]), f": {part['headline']}")
        for part in job.get("parts") or []
        if part.get("run_id")
    )
    return join(
        [f"{round(100 * share)} % {said}".strip(), share_bar(share), element("ul", *parts, classes="d-list plain")]
    )


def share_bar(share: float) -> Markup:
    """How much is done, as a bar."""
    percent = round(100 * share)
    return Markup(
        f"<div class='d-bar' role='progressbar' aria-label='progress' aria-valuenow='{percent}' aria-valuemin='0' "
        f"aria-valuemax='100'><div style='width:{percent}%'></div></div>"
    )


def _time(job: Mapping[str, Any]) -> Markup:
    parts: list[Any] = [seconds_text(float(job.get("seconds") or 0))]
    for name, said in (("starts_in", "begins in about"), ("ends_in", "about")):
        if job["state"] in LIVE and job.get(name):
            left = " left" if name == "ends_in" else ""
            parts.append(div(f"{said} {seconds_text(job[name])}{left}", classes="d-remark"))
    return join(parts)
