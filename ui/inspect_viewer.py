"""The logs of LLM investigators in Inspect's own viewer, which the panel hands out beside its pages."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from markupsafe import Markup

from diffing_mcp.agents.records import LOGS, EvaluationFolder, EvaluationRecord
from diffing_mcp.core.errors import DiffingError, InvalidInput, UnknownName
from diffing_mcp.ui.files import PanelFiles

_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}


def log_link(record: EvaluationRecord) -> Markup | None:
    """A link that opens this investigation in Inspect's viewer; None without a log, or without Inspect."""
    if record.log is None or find_spec("inspect_ai") is None:
        return None
    sample = f"#/logs/{quote(PurePosixPath(record.log).name)}/samples/sample/{quote(record.cell_id, safe='')}/1/"
    href = f"inspect/{quote(record.evaluation_id, safe='')}/{sample}"
    opened = Markup('<a class="d-link" href="{}" target="_blank" rel="noopener">Open in Inspect&rsquo;s viewer</a>')
    return opened.format(href)


def add_viewer(app: FastAPI, files: PanelFiles) -> None:
    """Serve `inspect/EVALUATION/`: the viewer with the logs of that evaluation."""
    sites = _Sites(files.data_folder / "evaluations")

    @app.get("/inspect/{evaluation}")
    def root(evaluation: str) -> Response:
        return RedirectResponse(f"{quote(evaluation, safe='')}/")

    # The viewer asks for the size of a log before it reads parts of it.
    @app.api_route("/inspect/{evaluation}/{file:path}", methods=["GET", "HEAD"])
    def part(evaluation: str, file: str) -> Response:
        try:
            site = sites.of(evaluation, fresh=file in ("", "index.html"))
        except DiffingError as error:
            return PlainTextResponse(error.message, 404, _HEADERS)
        found = (site / (file or "index.html")).resolve()
        if not found.is_relative_to(site.resolve()) or not found.is_file():
            return PlainTextResponse("There is no such file.", 404, _HEADERS)
        return FileResponse(found, headers=_HEADERS)


class _Sites:
    """Inspect's static viewer with the logs of an evaluation, written when it is first asked for, and anew when the
    viewer is opened after logs have changed. They end with the panel.
    """

    def __init__(self, evaluations: Path) -> None:
        self._evaluations = evaluations
        self._place = tempfile.TemporaryDirectory(prefix="diffing-inspect-")
        self._made: dict[str, tuple[list[tuple[str, int]], Path]] = {}
        self._lock = threading.Lock()

    def of(self, evaluation: str, fresh: bool) -> Path:
        """The folder of the viewer.

        Raises:
            InvalidInput, UnknownName: there is no such evaluation, it has no logs, or Inspect is not installed.
        """
        logs = EvaluationFolder(evaluation, self._evaluations).path / LOGS
        with self._lock:
            made = self._made.get(evaluation)
            if made is not None and not fresh:
                return made[1]
            state = sorted((file.name, file.stat().st_mtime_ns) for file in logs.glob("*.eval"))
            if not state:
                raise UnknownName(f"The evaluation {evaluation!r} has no logs of Inspect: only LLM investigators do.")
            if made is not None and made[0] == state:
                return made[1]
            site = Path(tempfile.mkdtemp(dir=self._place.name)) / "site"
            _write(logs, site)
            self._made[evaluation] = (state, site)
            if made is not None:
                shutil.rmtree(made[1].parent, ignore_errors=True)
            return site


def _write(logs: Path, site: Path) -> None:
    os.environ.setdefault("INSPECT_DISPLAY", "none")
    try:
        from inspect_ai.log import bundle_log_dir
    except ModuleNotFoundError as error:
        raise InvalidInput("Inspect's viewer needs the extra `eval`: pip install 'diffing-mcp[eval]'.") from error
    bundle_log_dir(str(logs), str(site))
