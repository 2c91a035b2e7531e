"""Plots of a finished run of `kl`, as plotly figures in plain JSON. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

_BINS = 60
_NAMES = {
    "kl_finetuned_base": "KL(finetuned || base)",
    "kl_base_finetuned": "KL(base || finetuned)",
    "js": "Jensen-Shannon",
}


def histogram(record: RunRecord) -> dict[str, Any]:
    """Counts of tokens over the logarithm of their divergence; tokens at exactly 0 are counted in the title."""
    table = record.table("tokens", list(_NAMES))
    columns = {name: table[name].to_numpy() for name in _NAMES}
    positive = {name: np.log10(values[values > 0]) for name, values in columns.items()}
    everything = np.concatenate(list(positive.values())) if positive else np.zeros(0)
    edges = (
        np.linspace(max(everything.min(), -8.0), everything.max() + 1e-9, _BINS + 1)
        if everything.size
        else np.linspace(-8, 0, _BINS + 1)
    )
    centres = 10 ** ((edges[1:] + edges[:-1]) / 2)
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "line": {"shape": "hvh"},
            "name": _NAMES[name],
            "x": centres.tolist(),
            "y": np.histogram(logs, edges)[0].tolist(),
        }
        for name, logs in positive.items()
    ]
    zeros = int((columns["kl_finetuned_base"] == 0).sum())
    return {
        "data": data,
        "layout": {
            "title": {"text": f"Divergence per token ({table.num_rows} tokens, {zeros} exactly 0)"},
            "xaxis": {"type": "log", "title": {"text": "nats"}},
            "yaxis": {"title": {"text": "tokens"}},
        },
    }


def positions(record: RunRecord) -> dict[str, Any]:
    """Mean divergence at each position, with the standard error of KL(finetuned || base)."""
    count = record.array("positions.count")
    places = np.arange(len(count)).tolist()
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": label,
            "x": places,
            "y": record.array(f"positions.{name}").tolist(),
        }
        for name, label in _NAMES.items()
    ]
    data[0]["error_y"] = {"type": "data", "array": record.array("positions.standard_error").tolist(), "visible": True}
    return {
        "data": data,
        "layout": {
            "title": {"text": "Mean divergence by position"},
            "xaxis": {"title": {"text": "position"}},
            "yaxis": {"title": {"text": "nats"}},
        },
    }
