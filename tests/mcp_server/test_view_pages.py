"""Pages of views count rows, whatever other lists a view has, and say when fewer rows fit than were asked for."""

from __future__ import annotations

from typing import Any, cast

import pytest
from pydantic import BaseModel

from diffing_mcp.mcp_server.view_pages import read_page
from diffing_mcp.methods.contract import View


class Params(BaseModel):
    offset: int = 0
    limit: int = 25


class Rows(BaseModel):
    alphas: list[float] = [-2, -1, 0, 1, 2, 3]
    rows: list[str]
    total: int = 240
    next_offset: int | None


def texts(length: int) -> View:
    def page(record: Any, params: Any) -> Rows:
        end = params.offset + params.limit
        return Rows(rows=["x" * length] * params.limit, next_offset=end if end < 240 else None)

    return View(name="texts", description="Texts.", Params=Params, run=page)


@pytest.mark.parametrize("offset", [0, 6])
def test_a_page_goes_on_after_its_last_row(offset: int) -> None:
    page = read_page(texts(10), cast(Any, None), Params(offset=offset), whole=False)
    assert page.place == f"showing {offset + 1}-{offset + 25} of 240"
    assert page.next_step == f"offset={offset + 25} for more."


def test_a_page_that_does_not_fit_keeps_what_fits_and_says_so() -> None:
    page = read_page(texts(1000), cast(Any, None), Params(), whole=False)
    rows = len(page.values["rows"])
    assert 4 <= rows <= 8
    assert f"showing 1-{rows} of 240 (of the 25 asked for no more fit" in page.place
    assert page.next_step == f"offset={rows} for more."
