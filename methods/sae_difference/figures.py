"""Plots of a finished SAE on differences, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffing_mcp.methods.dictionaries.figures import training_curve

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

__all__ = ["latents", "training_curve"]


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
