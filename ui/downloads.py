"""Files that the panel hands out under addresses of their own: a pair's report, a run's result, its stored tables."""

from __future__ import annotations

import io
from collections.abc import Callable
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.ui.files import PanelFiles
from diffing_mcp.ui.report import pair_report

_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def add_downloads(app: FastAPI, files: PanelFiles) -> None:
    """Serve the files beside the pages: `report?pair=`, `result.json?run=`, `table.csv?run=&table=` and `.parquet`."""

    @app.get("/report")
    def report(pair: str, download: bool = False) -> Response:
        def written() -> Response:
            named = _attachment(f"{pair}.html") if download else {}
            return Response(pair_report(pair, files.runs), media_type="text/html", headers=_HEADERS | named)

        return _found(written)

    @app.get("/result.json")
    def result(run: str) -> Response:
        def written() -> Response:
            record = files.runs.get(run)
            return JSONResponse(record.result_json(), headers=_HEADERS | _attachment(f"{record.id}.json"))

        return _found(written)

    @app.get("/table.csv")
    def csv(run: str, table: str) -> Response:
        def written() -> Response:
            record = files.runs.get(run)
            # Through pandas, because Arrow's own writer refuses the lists that some columns hold.
            text = record.table(table).to_pandas().to_csv(index=False)
            return Response(text, media_type="text/csv", headers=_HEADERS | _attachment(f"{record.id}-{table}.csv"))

        return _found(written)

    @app.get("/table.parquet")
    def parquet(run: str, table: str) -> Response:
        def written() -> Response:
            from pyarrow.parquet import write_table

            record, sink = files.runs.get(run), io.BytesIO()
            write_table(record.table(table), sink)
            named = _attachment(f"{record.id}-{table}.parquet")
            return Response(sink.getvalue(), media_type="application/vnd.apache.parquet", headers=_HEADERS | named)

        return _found(written)


def _found(written: Callable[[], Response]) -> Response:
    """The file, or what is wrong with its address."""
    try:
        return written()
    except DiffingError as error:
        return PlainTextResponse(error.message, 404, _HEADERS)


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
