"""Where calibrations lie: those that ship in `data/`, and those made here, in the cache folder. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffing_mcp.core.atomic_files import replace_synced
from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.calibration.schema import STATISTICS_VERSION, Calibration

BUNDLED = Path(__file__).parent / "data"
_NOT_THE_WEIGHTS = frozenset(("dtype", "attn_implementation", "tokenizer", "chat_template", "revision"))


def base_of(pair: Mapping[str, Any]) -> dict[str, Any] | None:
    """The base model of a pair's identity (`fingerprint.pair_identity`), by its weights; None where the base side is
    no bare model, or is told in another way."""
    side = pair.get("base")
    if not isinstance(side, Mapping) or "model" not in side or side.get("adapter") or side.get("steering"):
        return None
    return {name: value for name, value in side["model"].items() if name not in _NOT_THE_WEIGHTS}


def folder_of(base: Mapping[str, Any]) -> Path:
    """Where what belongs to the calibration of a base is kept."""
    digest = hashlib.sha256(json.dumps(base, sort_keys=True).encode()).hexdigest()[:16]
    return settings().cache_folder / "calibrations" / digest


def find_calibration(base: Mapping[str, Any]) -> Calibration | None:
    """The calibration of exactly this base: made here, else bundled; of the statistics of today."""
    own = _read(_path(base))
    return own or next((each for each in bundled_calibrations() if each.base == base), None)


def is_outdated(base: Mapping[str, Any]) -> bool:
    """Whether a calibration of this base was made here that holds other statistics than those of today."""
    return _path(base).is_file() and _read(_path(base)) is None


def _path(base: Mapping[str, Any]) -> Path:
    return folder_of(base) / "calibration.json"


def save_calibration(calibration: Calibration) -> Path:
    """Write it where `find_calibration` looks; the old one stays until the new one is whole."""
    path = _path(calibration.base)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_synced(path, calibration.model_dump_json(indent=1).encode())
    return path


def stored_calibrations() -> list[Calibration]:
    """All that there are, those made here first."""
    folder = settings().cache_folder / "calibrations"
    here = [found for path in sorted(folder.glob("*/calibration.json")) if (found := _read(path)) is not None]
    known = [each.base for each in here]
    return [*here, *(each for each in bundled_calibrations() if each.base not in known)]


def calibration_named(base: str) -> Calibration:
    """The stored calibration that was made under this name of its base.

    Raises:
        UnknownName: there is none, with those that there are.
    """
    found = stored_calibrations()
    for each in found:
        if each.base_name == base:
            return each
    names = ", ".join(each.base_name for each in found) or "none yet"
    raise UnknownName(f"There is no calibration of {base!r}. `diffing calibrate {base}` makes one. There are: {names}.")


@lru_cache(maxsize=1)
def bundled_calibrations() -> tuple[Calibration, ...]:
    """Those that ship with the package."""
    return tuple(found for path in sorted(BUNDLED.glob("*.json")) if (found := _read(path)) is not None)


def _read(path: Path) -> Calibration | None:
    try:
        found = Calibration.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.statistics_version == STATISTICS_VERSION else None
