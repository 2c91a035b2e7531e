"""When the causal effect of a direction stands out.

The least change and share were set on the bundled organisms, the runs they judge: five that were taught something and
two that were not.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffing_mcp.methods.causal_effect.rows import EffectRow

LEAST_CHANGE = 0.05
"""Nats a token. Directions along which two models differ always do a little: 0.001 and 0.03 in finetunes that taught
nothing, 0.09 to 0.3 in those that taught something. A share of the gap says little by itself: one of the former carries
more than half of a gap of 0.05."""
LEAST_SHARE = 0.1
"""Part of the gap between the models that a direction must carry."""
LARGEST_P = 0.05
"""Rank among either null. Ranks cannot go below 1 / (1 + nulls), so fewer than 19 nulls of a kind never
make a finding.
"""


def judge(rows: Sequence[EffectRow], gap: float, identical: bool, mode: str) -> tuple[bool, str]:
    """Whether some direction carries a part of the change, and the headline."""
    if identical:
        return False, "Both models give every text exactly the same loss: there is nothing for a direction to carry."
    best = max(rows, key=lambda row: abs(row.loss_change))
    action = "Carrying over" if mode == "patch" else "Removing"
    share = "" if best.share_of_gap is None else f", {100 * best.share_of_gap:.0f} % of the gap of {gap:+.3f}"
    state = (
        f"{action} {best.vector} changes the loss by {best.loss_change:+.4f} nats a token{share}; null directions by "
        f"up to {best.largest_null:.4f}"
    )
    strong = (
        abs(best.loss_change) >= LEAST_CHANGE
        and not best.low <= 0 <= best.high
        and max(best.p_random, best.p_difference) <= LARGEST_P
        and (mode == "ablate" or (best.share_of_gap is not None and best.share_of_gap >= LEAST_SHARE))
    )
    return strong, f"{state}." if strong else f"No direction carries a clear part of the change. {state}."
