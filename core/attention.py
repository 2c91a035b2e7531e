"""Which implementation of attention a model runs with. No torch, nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def attention_of(named: str | None, config: Mapping[str, Any]) -> str | None:
    """What is `named`; `eager` instead of nothing and of `sdpa` where scores are soft-capped (Gemma 2). None:
    transformers' choice.

    By default transformers runs such models with SDPA, which leaves the cap out without a word: another model runs.

    Args:
        config: config.json, or the configuration of the language model in it.
    """
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    capped = any(part.get("attn_logit_softcapping") for part in parts)
    return "eager" if capped and named in (None, "sdpa") else named
