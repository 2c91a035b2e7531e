"""What is told of stored activations: one row a collection, and its sizes by layer. For tools and commands of
operators: it names real models.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.preprocessing.activation_store import ActivationStore, CollectionIndex, short_id


class CollectionRow(BaseModel):
    """A stored collection of both models' activations."""

    id: str = Field(description="Give it to a method as `activations`.")
    pair: str
    corpus: str
    dropped: str | None = Field(None, description="Rows of the corpus that are no document, and were left out.")
    layers: list[int] = Field(description="Absolute layers.")
    tokens: int = Field(description="Rows a layer and side.")
    samples: int
    dtype: str
    skip_first: int
    finished: bool = Field(description="Otherwise collect_activations with its parameters goes on.")
    shards: str
    megabytes: float
    created: str
    broken: bool = Field(
        False, description="Its index cannot be read: delete it. Everything but id and size is unknown."
    )

    def as_text(self) -> str:
        if self.broken:
            return f"{self.id}: broken (its index cannot be read), {self.megabytes:.1f} MB; delete it"
        state = "" if self.finished else f", unfinished ({self.shards} shards)"
        left_out = f"; left out of the corpus: {self.dropped}" if self.dropped else ""
        size = f"{self.tokens} tokens, {self.dtype}, {self.megabytes:.1f} MB"
        return f"{self.id}: {self.pair}, {self.corpus}, layers {self.layers}, {size}{state}{left_out}"


class LayerSizes(BaseModel):
    """Root mean square lengths of the rows of a layer."""

    layer: int
    base: float
    finetuned: float
    difference: float


class CollectionDescription(BaseModel):
    """What a collection holds."""

    collection: CollectionRow
    params: dict[str, Any]
    position_origin: str
    seconds: float
    sizes: list[LayerSizes]
    damaged: list[str] | None = Field(None, description="Files that are missing or changed (with `check`).")

    def as_text(self) -> str:
        lines = [
            self.collection.as_text(),
            f"position 0 = {self.position_origin}",
            "layer: root mean square length of base, finetuned, difference",
        ]
        lines += [
            f"  {size.layer}: {size.base:.4g}, {size.finetuned:.4g}, {size.difference:.4g}" for size in self.sizes
        ]
        if self.damaged is not None:
            lines.append(f"damaged files: {', '.join(self.damaged) or 'none'}")
        return "\n".join(lines)


def collection_row(index: CollectionIndex) -> CollectionRow:
    """A collection in one row."""
    rows = index.shards[-1].stop if index.shards else 0
    return CollectionRow(
        id=index.id,
        pair=index.pair_name,
        corpus=index.corpus["id"],
        dropped=index.corpus.get("dropped"),
        layers=index.layers,
        tokens=index.tokens,
        samples=index.samples,
        dtype=index.dtype,
        skip_first=index.skip_first,
        finished=index.finished,
        shards=f"{len(index.shards)}/{len(index.plan)}",
        megabytes=round((index.bytes or 2 * len(index.layers) * index.row_bytes * rows) / 1e6, 3),
        created=index.created.isoformat(timespec="seconds"),
    )


def broken_rows(store: ActivationStore) -> list[CollectionRow]:
    """The collections whose index cannot be read, one row each."""
    rows = []
    for key in store.broken():
        folder = store.folder / key
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        created = datetime.fromtimestamp(folder.stat().st_mtime, UTC).isoformat(timespec="seconds")
        unknown: dict[str, Any] = {
            "pair": "?",
            "corpus": "?",
            "layers": [],
            "tokens": 0,
            "samples": 0,
            "dtype": "?",
            "skip_first": 0,
        }
        shown = {
            "finished": False,
            "broken": True,
            "shards": "?",
            "megabytes": round(size / 1e6, 3),
            "created": created,
        }
        rows.append(CollectionRow(id=short_id(key), **unknown, **shown))
    return rows


def describe(store: ActivationStore, index: CollectionIndex, check: bool) -> CollectionDescription:
    """Sizes of a collection, from the moments that were stored with its shards."""
    sizes = []
    for layer in index.layers if index.shards else []:
        moments = store.statistics(index, layer)
        lengths = {
            name: float((found.mean.square() + found.squares / max(1, found.count)).sum().sqrt())
            for name, found in moments.items()
        }
        sizes.append(LayerSizes(layer=layer, **lengths))
    return CollectionDescription(
        collection=collection_row(index),
        params=index.params,
        position_origin=str(index.text.get("position_origin", "")),
        seconds=index.seconds,
        sizes=sizes,
        damaged=list(store.damaged(index)) if check else None,
    )


def exactly(store: ActivationStore, identifier: str) -> str:
    """The key of the collection with this whole id.

    Raises:
        UnknownName: none, or only one whose id begins so.
    """
    key = store.key_of(identifier)
    if identifier.strip() not in (short_id(key), key):
        raise UnknownName(f"{identifier!r} is not a whole id; list_activations gives them.")
    return key


def row_of(store: ActivationStore, key: str) -> CollectionRow:
    """The row of a collection, broken or not."""
    index = store.read(key)
    return collection_row(index) if index else next(row for row in broken_rows(store) if row.id == short_id(key))
