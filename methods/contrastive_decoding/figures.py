"""Plots of finished contrastive decoding, as plotly dictionaries. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


def differences(record: RunRecord) -> dict[str, Any]:
    """How much more the finetuned model expects the texts than the base, by alpha: a finetune that taught nothing stays
    near zero.
    """
    rows = record.table("texts", ["alpha", "difference", "prompt"]).to_pylist()
    data = [
        {
            "type": "box",
            "boxpoints": "all",
            "name": f"{alpha:+.3g}",
            "y": [row["difference"] for row in rows if row["alpha"] == alpha],
            "text": [row["prompt"] for row in rows if row["alpha"] == alpha],
        }
        for alpha in sorted({row["alpha"] for row in rows})
    ]
    return {
        "data": data,
        "layout": {
            "showlegend": False,
            "xaxis": {"title": {"text": "alpha (0: finetuned, -1: base)"}},
            "yaxis": {"title": {"text": "log-probability, finetuned minus base, nats a token"}},
        },
    }
