"""Drill-down over a finished dictionary run: list latents, look at one, search them by text. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from methods.contract import View
from methods.dictionaries.rows import Example, LatentRow, Owner, Tag, latent_name, shown_example
from methods.example_views import EXAMPLES_VIEW
from methods.lens_words import LensToken
from methods.vectors import ResidualVector
from organisms.errors import InvalidInput, UnknownName

if TYPE_CHECKING:
    from methods.runs import RunRecord

SortBy = Literal[
    "rank", "evidence", "share", "frequency", "max_activation", "strength", "relative_norm", "ratio_error", "ratio_reconstruction", "cosine"
]
_ASCENDING = ("rank", "ratio_error", "ratio_reconstruction")
_DESCRIBED = 200
"""Characters of a search text at most."""
_SEARCHED, _FOUND, _EXAMPLES = 1000, 4, 25
"""Latents searched, and texts shown of each at most; examples of one latent at most."""


class LatentsParams(BaseModel):
    """Which latents to list."""

    model_config = ConfigDict(extra="forbid")

    tag: Tag | None = Field(None, description="Only these, by decoder norms.")
    owner: Owner | None = Field(None, description="Only one model's own, by latent scaling.")
    min_frequency: float = Field(0.0, ge=0, le=1)
    max_frequency: float = Field(1.0, ge=0, le=1)
    sort_by: SortBy = "rank"
    reverse: bool = Field(False, description="The other end first.")
    offset: int = Field(0, ge=0)
    limit: int = Field(20, ge=1, le=100)


class LatentsView(BaseModel):
    """A page of latents, without examples."""

    total: int = Field(description="Latents that fit.")
    latents: list[LatentRow]


class LatentParams(BaseModel):
    """Which latent to look at."""

    model_config = ConfigDict(extra="forbid")

    latent: int = Field(ge=0)
    bin: int | None = Field(
        None, ge=0, le=4, description="Only examples of this share of the largest activation: 4 above 0.95, 3 above 0.75, and so on."
    )


class LatentView(BaseModel):
    """One latent. Lens and examples exist for the first latents by rank."""

    latent: LatentRow
    promoted: list[LensToken]
    suppressed: list[LensToken]


class SearchParams(BaseModel):
    """What to look for."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1, max_length=_DESCRIBED, description="Part of a lens token, or words of an example, in any case.")
    limit: int = Field(10, ge=1, le=50)


class SearchHit(BaseModel):
    """A latent whose lens or examples hold the text."""

    latent: LatentRow
    found: list[str] = Field(description="Lens tokens and example texts that hold it.")


class SearchView(BaseModel):
    """The latents found, by rank; searched are those that have a lens and examples."""

    hits: list[SearchHit]


def _rows(record: RunRecord) -> list[dict[str, Any]]:
    if "latents" not in record.manifest.tables:
        raise InvalidInput(f"Run {record.id} has no latents: both models' activations are the same.")
    rows: list[dict[str, Any]] = record.table("latents").to_pylist()
    return rows


def _row(values: dict[str, Any], examples: list[Example] | None = None) -> LatentRow:
    return LatentRow(**{name: values[name] for name in LatentRow.model_fields if name in values}, examples=examples or [])


def latents(record: RunRecord, params: LatentsParams) -> LatentsView:
    """A page of the latent table."""
    chosen = [
        row
        for row in _rows(record)
        if params.tag in (None, row.get("tag"))
        and params.owner in (None, row.get("owner"))
        and params.min_frequency <= row["frequency"] <= params.max_frequency
    ]
    known = [row for row in chosen if row.get(params.sort_by) is not None]
    known.sort(key=lambda row: row[params.sort_by], reverse=(params.sort_by not in _ASCENDING) != params.reverse)
    page = known[params.offset : params.offset + params.limit]
    return LatentsView(total=len(known), latents=[_row(row) for row in page])


def latent(record: RunRecord, params: LatentParams) -> LatentView:
    """One latent with its lens and its examples."""
    values = _one(record, params.latent)
    lens = [row for row in record.table("lens").to_pylist() if row["latent"] == params.latent]
    signs = {
        sign: [LensToken(token=row["token"], z=row["z"], probability=row["probability"]) for row in lens if row["sign"] == sign]
        for sign in ("promoted", "suppressed")
    }
    return LatentView(latent=_row(values, _examples(record, params.latent, params.bin)), **signs)


def search(record: RunRecord, params: SearchParams) -> SearchView:
    """Latents by the text of their lens and examples."""
    wanted = params.text.casefold()
    found: dict[int, list[str]] = {}
    for row in record.table("lens", ["latent", "sign", "token"]).to_pylist() if _rows(record) else []:
        if row["sign"] == "promoted" and wanted in row["token"].casefold():
            found.setdefault(row["latent"], []).append(row["token"])
    numbers = {latent_name(row["latent"]): row["latent"] for row in _rows(record)}
    for feature in record.examples().features(params.text, limit=_SEARCHED).rows:
        page = record.examples().examples(feature.name, search=params.text, limit=_FOUND)
        found.setdefault(numbers[feature.name], []).extend(shown_example(example).text for example in page.rows)
    rows = sorted((row for row in _rows(record) if row["latent"] in found), key=lambda row: row["rank"])
    return SearchView(hits=[SearchHit(latent=_row(row), found=found[row["latent"]][:_FOUND]) for row in rows[: params.limit]])


def _examples(record: RunRecord, number: int, bin: int | None) -> list[Example]:
    """Examples of a latent, strongest first; none when it has none (it never fires, or is not among the first by rank)."""
    try:
        return [shown_example(example) for example in record.examples().examples(latent_name(number), bin, limit=_EXAMPLES).rows]
    except UnknownName:
        return []


def _one(record: RunRecord, number: int) -> dict[str, Any]:
    rows = _rows(record)
    found = next((row for row in rows if row["latent"] == number), None)
    if found is None:
        raise UnknownName(f"Run {record.id} has latents 0 to {len(rows) - 1}, not {number}.")
    return found


def vector_names(record: RunRecord) -> list[str]:
    """Vectors of the latents that fire, the first by rank first."""
    if "latents" not in record.manifest.tables:
        return []
    return [row["vector"] for row in sorted(_rows(record), key=lambda row: row["rank"]) if row["max_activation"] > 0]


def read_vector(record: RunRecord, name: str) -> ResidualVector:
    """`latentN`: its decoder vector (of the finetuned model, for a crosscoder) with the normalisation undone; strength 1 is the length that it
    has at its largest activation.

    Raises:
        InvalidInput: another form.
        UnknownName: no such latent, or one that never fires.
    """
    number = name.removeprefix("latent")
    if not name.startswith("latent") or not number.isdigit():
        raise InvalidInput(f"{name!r} is not of the form latentN, for instance latent0.")
    row = _one(record, int(number))
    if not row["max_activation"]:
        raise UnknownName(f"Latent {number} of run {record.id} fires at no token, so it has no strength; the view `latents` lists those that do.")
    values = record.array("decoder")[int(number)].astype(np.float32)
    note = "the latent is the base model's own: what the finetuned model writes for it is small" if row.get("owner") == "base" else ""
    return ResidualVector(values, int(record.array("layer")[0]), float(row["strength"]), f"latent {number} of {record.manifest.method}", note)


VIEWS = {
    "latents": View("latents", "List latents: filter by tag, owner and frequency, sort, page.", LatentsParams, latents),
    "latent": View("latent", "One latent: numbers, lens tokens, examples by quantile bin.", LatentParams, latent),
    "search": View("search", "Latents whose lens tokens or examples hold a text.", SearchParams, search),
    "examples": EXAMPLES_VIEW,
}
