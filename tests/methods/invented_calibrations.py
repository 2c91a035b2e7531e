"""Calibrations that nobody measured, with statistics of a known kind."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from diffing_mcp.methods.calibration.schema import STATISTICS_VERSION, Calibration, Reading
from diffing_mcp.methods.calibration.statistics import label_of
from diffing_mcp.methods.registry import get_method

TELLING, ALSO_TELLING = "contrastive_decoding", "logit_diff_topk_occurring"


def made(readings: list[Reading], base: dict[str, Any] | None = None, name: str = "base") -> Calibration:
    params: dict[str, dict[str, Any]] = {label: {} for label in dict.fromkeys(map(label_of, readings[0].statistics))}
    return Calibration(
        base=base or {"id": name},
        base_name=name,
        statistics_version=STATISTICS_VERSION,
        params=params,
        versions={label: get_method(label.partition(" on ")[0]).version for label in params},
        made=datetime(2026, 1, 1, tzinfo=UTC),
        readings=readings,
    )


def invented(
    nulls: int = 24, taught: int = 12, power: float = 3.0, seed: int = 0, name: str = TELLING
) -> list[Reading]:
    """Statistics that grow with the size; of taught ones two are `power` times as large."""
    random = np.random.default_rng(seed)
    found = []
    for place in range(nulls + taught):
        is_taught = place >= nulls
        size = float(np.exp(random.normal(-2, 1)))
        statistics = {
            each: float(5 * size**0.3 * np.exp(0.15 * random.normal()) * (power if is_taught and each != "pca" else 1))
            for each in (name, "pca", ALSO_TELLING)
        }
        found.append(
            Reading(
                name=str(place),
                made_by=str(place),
                role="taught" if is_taught else "null",
                kind=f"{'t' if is_taught else 'n'}{place % 4}",
                held_out=place % 2 == 1,
                size=size,
                statistics=statistics,
            )
        )
    return found
