"""What the declarations of both dictionary methods share: cost, keys, vectors and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from diffing_mcp.methods.contract import CostEstimate, DiffingMethod, PairSize
from diffing_mcp.methods.dictionaries.recipe import estimate
from diffing_mcp.methods.dictionaries.schema import DictionaryParams, DictionaryResult
from diffing_mcp.methods.dictionaries.views import VIEWS, read_vector, vector_names
from diffing_mcp.methods.views.figures import figure, trace
from diffing_mcp.methods.views.rows import grouped
from diffing_mcp.preprocessing.text_sources import source_identity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffing_mcp.methods.directions.vectors import ResidualVector
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.specs import PairSpec


def training_curve(record: RunRecord) -> dict[str, Any]:
    """Loss and held-out fraction of variance explained by step; empty for a loaded dictionary."""
    if "training" not in record.manifest.tables:
        return figure([])
    rows = record.rows("training")
    explained = trace("curve", rows, "held-out variance explained", x="step", y="variance_explained", yaxis="y2")
    return figure(
        [trace("curve", rows, "loss", x="step", y="loss"), explained],
        x="step",
        y={"title": "loss", "type": "log"},
        yaxis2={"title": {"text": "variance explained"}, "overlaying": "y", "side": "right", "showgrid": False},
    )


def _latents(record: RunRecord) -> list[dict[str, Any]]:
    rows = record.rows("latents") if "latents" in record.manifest.tables else []
    return [row | {"name": f"latent {row['latent']}"} for row in rows]


def latents(record: RunRecord) -> dict[str, Any]:
    """How often each latent fires against how strongly, the size by its share of the difference."""
    rows = [row for row in _latents(record) if row["frequency"] > 0]
    largest = max((row["share"] or 0.0 for row in rows), default=0.0) or 1.0
    sizes = [4 + 16 * ((row["share"] or 0.0) / largest) ** 0.5 for row in rows]
    return figure(
        [trace("points", rows, x="frequency", y="strength", text="name", marker={"size": sizes})],
        x={"title": "share of tokens", "type": "log"},
        y="largest activation, residual units",
    )


def ratios(record: RunRecord) -> dict[str, Any]:
    """Both ratios of latent scaling, one point a latent, coloured by whose own it is."""
    measured = [
        row for row in _latents(record) if row["ratio_error"] is not None and row["ratio_reconstruction"] is not None
    ]
    by_owner = grouped(measured, "owner")
    data = []
    for owner in ("finetuned", "base", None):
        marker = {"size": 5} if owner else {"size": 5, "color": "#999999"}
        name = f"{owner}'s own" if owner else "neither's"
        rows = by_owner.get(owner, [])
        data.append(trace("points", rows, name, x="ratio_reconstruction", y="ratio_error", text="name", marker=marker))
    span = [-0.5, 2]
    return figure(
        data, x={"title": "ratio of reconstruction", "range": span}, y={"title": "ratio of error", "range": span}
    )


def decoder_norms(record: RunRecord) -> dict[str, Any]:
    """Histogram of the relative decoder norm of the latents that fire."""
    rows = [row for row in _latents(record) if row["tag"] != "dead"]
    histogram = trace("histogram", rows, x="relative_norm", xbins={"start": 0, "end": 1, "size": 0.02})
    return figure([histogram], x={"title": "relative decoder norm: 0 base only, 1 finetuned only", "range": [0, 1]})


P = TypeVar("P", bound=DictionaryParams)
R = TypeVar("R", bound=DictionaryResult)


class DictionaryMethod(DiffingMethod[P, R]):
    """A method that trains (or loads) a sparse dictionary, whose latents are vectors for other methods.

    Subclasses add `name`, `title`, `Params`, `Result`, `sources`, `figures` and `run`.
    """

    version = 2
    cost = "long"
    trains = True
    views = VIEWS
    sources: ClassVar[int]
    """Activations that a latent reads and writes at a token: 1, the difference; 2, those of both models."""

    def operator_only(self, params: P) -> str | None:
        return "dictionary names a folder or a hub id; leave it out and one is trained" if params.dictionary else None

    def key_parts(self, params: P, spec: PairSpec) -> dict[str, Any]:
        """What decides the rows, and the content of a loaded dictionary."""
        from diffing_mcp.methods.dictionaries.files import content_hash

        parts = source_identity(params)
        return parts | {"dictionary": content_hash(params.dictionary)} if params.dictionary else parts

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return vector_names(record)

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        return read_vector(record, name)

    def estimate(self, pair: PairSize, params: P) -> CostEstimate:
        return estimate(pair, params, self.sources)
