"""Plots of a finished patchscope, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


def agreement(record: RunRecord) -> dict[str, Any]:
    """Agreement of the prompts on content words by scale, beside the best random direction."""
    rows = record.table("scales").to_pylist() if "scales" in record.manifest.tables else []
    data = []
    for sign in ("promoted", "suppressed"):
        chosen = [row for row in rows if row["sign"] == sign]
        data.append(
            {
                "type": "scatter",
                "name": sign,
                "x": [row["scale"] for row in chosen],
                "y": [row["agreement"] for row in chosen],
            }
        )
    chosen = [row for row in rows if row["sign"] == "promoted"]
    null = {
        "type": "scatter",
        "name": "best random direction",
        "x": [row["scale"] for row in chosen],
        "y": [row["null_agreement"] for row in chosen],
    }
    axes = {
        "xaxis": {"title": {"text": "norm, in norms of the replaced activations"}, "type": "log"},
        "yaxis": {"title": {"text": "shared probability"}},
    }
    return {"data": [*data, {**null, "line": {"dash": "dot"}}], "layout": axes}
