"""Drill-down over a finished dictionary run: list latents, look at one, search them by text. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.contract import by_name, view
from diffing_mcp.methods.dictionaries.schema import (
    MOST_READ,
    SHOWN_TOKENS,
    LatentExample,
    LatentRow,
    Owner,
    Tag,
    latent_name,
    shown_example,
)
from diffing_mcp.methods.directions.lens_words import LensToken
from diffing_mcp.methods.directions.vectors import ResidualVector
from diffing_mcp.methods.examples.views import examples
from diffing_mcp.methods.views.pages import PageParams, ViewParams, page_size
from diffing_mcp.methods.views.rows import grouped

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

SortBy = Literal[
    "rank",
    "evidence",
    "evidence_base",
    "share",
    "frequency",
    "max_activation",
    "strength",
    "relative_norm",
    "base_norm",
    "finetuned_norm",
    "decoder_norm",
    "cosine",
    "ratio_error",
    "ratio_reconstruction",
    "ratio_activation",
    "held_out_documents",
    "beta_base",
    "beta_finetuned",
]
_ASCENDING = ("rank", "ratio_error", "ratio_reconstruction", "ratio_activation")
_DESCRIBED = 200
"""Characters of a search text at most."""
_SEARCHED, _FOUND, _EXAMPLES = 1000, 4, 25
"""Latents searched, and texts shown of each at most; examples of one latent at most."""


class LatentsParams(PageParams):
    """Which latents to list."""

    tag: Tag | None = Field(None, description="Only these, by decoder norms (crosscoder).")
    owner: Owner | None = Field(None, description="Only one model's own, by latent scaling (crosscoder).")
    alive: bool | None = Field(None, description="Only those that fire at some token (true) or at none (false).")
    min_frequency: float = Field(0.0, ge=0, le=1)
    max_frequency: float = Field(1.0, ge=0, le=1)
    sort_by: SortBy = Field("rank", description="A column; latents for which it was not measured come last.")
    reverse: bool = Field(False, description="The other end first.")
    limit: int = page_size(20)


class LatentsView(BaseModel):
    """A page of latents, without examples."""

    total: int = Field(description="Latents that fit.")
    latents: list[LatentRow]


class LatentParams(ViewParams):
    """Which latent to look at."""

    latent: int = Field(ge=0)
    bin: int | None = Field(
        None,
        ge=0,
        le=4,
        description="Only examples of this share of the largest activation: 4 above 0.95, 3 above 0.75, and so on.",
    )


class LatentView(BaseModel):
    """One latent. Lens and examples exist for the latents that were read, the first by rank."""

    latent: LatentRow
    promoted: list[LensToken]
    suppressed: list[LensToken]
    betas: dict[str, float | None] = Field(
        default_factory=dict,
        description=(
            "Coefficients of latent scaling by target and model (crosscoder); the ratios are base over finetuned."
        ),
    )
    vector: str | None = Field(None, description="Handle of its direction for other methods; None when it never fires.")
    next_step: str = Field("", description="What to call to see what it does, or to have it read.")


class SearchParams(ViewParams):
    """What to look for."""

    text: str = Field(
        min_length=1, max_length=_DESCRIBED, description="Part of a lens token, or words of an example, in any case."
    )
    limit: int = page_size(10, 50)


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
    return record.rows("latents")


def _row(values: dict[str, Any], lens: dict[int, list[str]], examples: list[LatentExample] | None = None) -> LatentRow:
    known = {name: values[name] for name in LatentRow.model_fields if name in values}
    tokens = lens.get(values["latent"], [])
    # Runs of earlier versions have no such column.
    return LatentRow(**{"read": bool(tokens), **known}, tokens=tokens, examples=examples or [])


def _lens_tokens(record: RunRecord) -> dict[int, list[str]]:
    """The first promoted tokens of every latent that was read."""
    found: dict[int, list[str]] = {}
    for row in record.rows("lens", sign="promoted"):
        if len(tokens := found.setdefault(row["latent"], [])) < SHOWN_TOKENS:
            tokens.append(row["token"])
    return found


@view("List latents with their lens tokens: filter by tag, owner, alive and frequency, sort, page.", LatentsParams)
def latents(record: RunRecord, params: LatentsParams) -> LatentsView:
    """A page of the latent table.

    Raises:
        InvalidInput: a filter or an order by a column that runs of this method do not have.
    """
    rows = _rows(record)
    columns = rows[0].keys()
    for name in ("tag", "owner"):
        if getattr(params, name) is not None and name not in columns:
            raise InvalidInput(
                f"Latents of {record.manifest.method} have no {name}; filter by `alive` or by frequency."
            )
    if params.sort_by not in columns:
        allowed = ", ".join(name for name in get_args(SortBy) if name in columns)
        raise InvalidInput(f"Latents of {record.manifest.method} have no {params.sort_by}. Sort by one of: {allowed}.")
    chosen = [
        row
        for row in rows
        if params.tag in (None, row.get("tag"))
        and params.owner in (None, row.get("owner"))
        and params.alive in (None, row["max_activation"] > 0)
        and params.min_frequency <= row["frequency"] <= params.max_frequency
    ]
    known = [row for row in chosen if row[params.sort_by] is not None]
    known.sort(key=lambda row: row[params.sort_by], reverse=(params.sort_by not in _ASCENDING) != params.reverse)
    ordered = known + [row for row in chosen if row[params.sort_by] is None]
    lens = _lens_tokens(record)
    return LatentsView(
        total=len(ordered), latents=[_row(row, lens) for row in ordered[params.offset : params.offset + params.limit]]
    )


@view("One latent: all its numbers, lens tokens, examples by quantile bin, its vector.", LatentParams)
def latent(record: RunRecord, params: LatentParams) -> LatentView:
    values = _one(record, params.latent)
    lens = grouped(record.rows("lens", latent=params.latent), "sign")
    signs = {sign: [LensToken.model_validate(row) for row in lens.get(sign, [])] for sign in ("promoted", "suppressed")}
    row = _row(values, _lens_tokens(record), _examples(record, params.latent, params.bin))
    fires = values["max_activation"] > 0
    betas = {
        name.removeprefix("beta_"): values[name] for name in values if name.startswith("beta_") and name.count("_") == 2
    }
    handle = f"{record.id}/{row.vector}" if fires else None
    return LatentView(
        latent=row, **signs, betas=betas, vector=handle, next_step=_next_step(row, values["rank"], handle)
    )


def _next_step(row: LatentRow, rank: int, handle: str | None) -> str:
    if handle is None:
        return (
            "It fires at no token of this text: there is nothing to read and no strength to steer with. Other text "
            "may make it fire."
        )
    steer = f'Steering with vector="{handle}" shows what it makes the model write.'
    if row.read:
        return steer
    if rank >= MOST_READ:
        return f"It was not read: it is number {rank + 1} by rank, and at most {MOST_READ} are. {steer}"
    return (
        "It was not read, so it has no lens tokens and no examples: call the method again with the same parameters and "
        f"read_latents={rank + 1} (the trained dictionary is used again). {steer}"
    )


@view("Latents whose lens tokens or examples hold a text.", SearchParams)
def search(record: RunRecord, params: SearchParams) -> SearchView:
    wanted = params.text.casefold()
    found: dict[int, list[str]] = {}
    for row in record.rows("lens", sign="promoted") if _rows(record) else []:
        if wanted in row["token"].casefold():
            found.setdefault(row["latent"], []).append(row["token"])
    numbers = {latent_name(row["latent"]): row["latent"] for row in _rows(record)}
    for feature in record.examples().features(params.text, limit=_SEARCHED).rows:
        page = record.examples().examples(feature.name, search=params.text, limit=_FOUND)
        found.setdefault(numbers[feature.name], []).extend(shown_example(example).text for example in page.rows)
    rows = sorted((row for row in _rows(record) if row["latent"] in found), key=lambda row: row["rank"])
    lens = _lens_tokens(record)
    return SearchView(
        hits=[SearchHit(latent=_row(row, lens), found=found[row["latent"]][:_FOUND]) for row in rows[: params.limit]]
    )


def _examples(record: RunRecord, number: int, bin: int | None) -> list[LatentExample]:
    """Examples of a latent, strongest first; none when it has none (it never fires, or is not among the
    first by rank).
    """
    try:
        return [
            shown_example(example)
            for example in record.examples().examples(latent_name(number), bin, limit=_EXAMPLES).rows
        ]
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
    """`latentN`: its decoder vector (of the finetuned model, for a crosscoder) with the normalisation undone; strength
    1 is the length that it has at its largest activation.

    Raises:
        InvalidInput: another form.
        UnknownName: no such latent, or one that never fires.
    """
    number = name.removeprefix("latent")
    if not name.startswith("latent") or not number.isdigit():
        raise InvalidInput(f"{name!r} is not of the form latentN, for instance latent0.")
    row = _one(record, int(number))
    if not row["max_activation"]:
        raise UnknownName(
            f"Latent {number} of run {record.id} fires at no token, so it has no strength; the view `latents` lists "
            "those that do."
        )
    values = record.array("decoder")[int(number)].astype(np.float32)
    note = (
        "the latent is the base model's own: what the finetuned model writes for it is small"
        if row.get("owner") == "base"
        else ""
    )
    return ResidualVector(
        values,
        int(record.array("layer")[0]),
        float(row["strength"]),
        f"latent {number} of {record.manifest.method}",
        note,
    )


VIEWS = by_name(latents, latent, search, examples)
