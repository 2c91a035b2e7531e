"""What the declarations of both dictionary methods share: cost, keys, vectors and figures. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, PairSize, View
from diffing_mcp.methods.dictionaries.recipe import estimate
from diffing_mcp.methods.dictionaries.schema import DictionaryParams, DictionaryResult
from diffing_mcp.methods.dictionaries.views import VIEWS, read_vector, vector_names
from diffing_mcp.preprocessing.text_sources import source_identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.directions.vectors import ResidualVector
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.specs import PairSpec


def training_curve(record: RunRecord) -> dict[str, Any]:
    """Loss and held-out fraction of variance explained by step; empty for a loaded dictionary."""
    if "training" not in record.manifest.tables:
        return {"data": [], "layout": {}}
    table = record.table("training").to_pydict()
    return {
        "data": [
            {"type": "scatter", "name": "loss", "x": table["step"], "y": table["loss"]},
            {
                "type": "scatter",
                "name": "held-out variance explained",
                "x": table["step"],
                "y": table["variance_explained"],
                "yaxis": "y2",
            },
        ],
        "layout": {
            "xaxis": {"title": {"text": "step"}},
            "yaxis": {"title": {"text": "loss"}, "type": "log"},
            "yaxis2": {"title": {"text": "variance explained"}, "overlaying": "y", "side": "right", "showgrid": False},
        },
    }


def latents(record: RunRecord) -> dict[str, Any]:
    """How often each latent fires against how strongly, the size by its share of the difference."""
    if "latents" not in record.manifest.tables:
        return {"data": [], "layout": {}}
    table = [row for row in record.table("latents").to_pylist() if row["frequency"] > 0]
    largest = max((row["share"] or 0.0 for row in table), default=0.0) or 1.0
    trace = {
        "type": "scattergl",
        "mode": "markers",
        "x": [row["frequency"] for row in table],
        "y": [row["strength"] for row in table],
        "text": [f"latent {row['latent']}" for row in table],
        "marker": {"size": [4 + 16 * ((row["share"] or 0.0) / largest) ** 0.5 for row in table]},
    }
    axes = {
        "xaxis": {"title": {"text": "share of tokens"}, "type": "log"},
        "yaxis": {"title": {"text": "largest activation, residual units"}},
    }
    return {"data": [trace], "layout": axes}


def ratios(record: RunRecord) -> dict[str, Any]:
    """Both ratios of latent scaling, one point a latent, coloured by whose own it is."""
    if "latents" not in record.manifest.tables:
        return {"data": [], "layout": {}}
    table = record.table("latents", ["latent", "owner", "ratio_error", "ratio_reconstruction"]).to_pylist()
    data = []
    for owner in ("finetuned", "base", None):
        rows = [
            row
            for row in table
            if row["owner"] == owner and row["ratio_error"] is not None and row["ratio_reconstruction"] is not None
        ]
        data.append(
            {
                "type": "scattergl",
                "mode": "markers",
                "name": f"{owner}'s own" if owner else "neither's",
                "marker": {"size": 5} if owner else {"size": 5, "color": "#999999"},
                "x": [row["ratio_reconstruction"] for row in rows],
                "y": [row["ratio_error"] for row in rows],
                "text": [f"latent {row['latent']}" for row in rows],
            }
        )
    axes = {
        "xaxis": {"title": {"text": "ratio of reconstruction"}, "range": [-0.5, 2]},
        "yaxis": {"title": {"text": "ratio of error"}, "range": [-0.5, 2]},
    }
    return {"data": data, "layout": axes}


def decoder_norms(record: RunRecord) -> dict[str, Any]:
    """Histogram of the relative decoder norm of the latents that fire."""
    if "latents" not in record.manifest.tables:
        return {"data": [], "layout": {}}
    table = record.table("latents", ["tag", "relative_norm"]).to_pylist()
    values = [row["relative_norm"] for row in table if row["tag"] != "dead"]
    axis = {"title": {"text": "relative decoder norm: 0 base only, 1 finetuned only"}, "range": [0, 1]}
    return {
        "data": [{"type": "histogram", "x": values, "xbins": {"start": 0, "end": 1, "size": 0.02}}],
        "layout": {"xaxis": axis},
    }


P = TypeVar("P", bound=DictionaryParams)
R = TypeVar("R", bound=DictionaryResult)


class DictionaryMethod(DiffingMethod[P, R]):
    """A method that trains (or loads) a sparse dictionary, whose latents are vectors for other methods.

    Subclasses add `name`, `title`, `Params`, `Result`, `sources`, `figures` and `run`.
    """

    version: ClassVar[int] = 2
    cost: ClassVar[Cost] = "long"
    trains: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = VIEWS
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
