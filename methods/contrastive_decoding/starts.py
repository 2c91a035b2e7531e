"""What contrastive decoding starts from when no prompts are given. Torch-free."""

from __future__ import annotations

from typing import Literal

from diffing_mcp.methods.contrastive_decoding.declaration import BUNDLED_STARTS
from diffing_mcp.methods.texts.prefills import prefills_for


def bundled_starts(start: Literal["prefixes", "nothing", "chat"]) -> tuple[str, ...]:
    """Neutral beginnings or questions, evenly taken from those of perplexity differencing; empty texts for
    `nothing`.
    """
    if start == "nothing":
        return ("",) * BUNDLED_STARTS
    whole = prefills_for("chat" if start == "chat" else "none", None)
    return tuple(whole[index * len(whole) // BUNDLED_STARTS] for index in range(BUNDLED_STARTS))
