"""Which floating-point type a model's files ask for, and the one type in which both sides of a pair run. No torch,
nothing is loaded.

Two sides that round differently differ by their rounding: a base in bfloat16 against a float32 copy of it would hide a
small finetune, or show one that is not there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs.checkpoint import quantisation, read_config_file, read_header, weight_paths
from diffing_mcp.model_pairs.files import cached_folder, local_folder
from diffing_mcp.model_pairs.specs import ModelFiles
from diffing_mcp.organisms.embedded import EMBEDDED_ID
from diffing_mcp.organisms.nulls import NULL_ID

_STORED = {
    "F64": "float32",
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "F8_E4M3": "bfloat16",
    "F8_E5M2": "bfloat16",
}
"""Type to compute in, for each stored one: float64 is not computed in, and bfloat16 holds every value of the 8-bit
ones.
"""


def declared_dtype(files: ModelFiles, stored: Mapping[str, Any]) -> str:
    """What the source names, else what config.json says, float32 where that is silent."""
    if files.dtype != "auto":
        return files.dtype
    texts = [
        stored,
        *(
            stored[name]
            for name in ("text_config", "llm_config", "language_config")
            if isinstance(stored.get(name), dict)
        ),
    ]
    said = next(
        (
            str(value).removeprefix("torch.")
            for text in texts
            for name in ("dtype", "torch_dtype")
            if (value := text.get(name))
        ),
        "float32",
    )
    return computed_dtype(said)


def computed_dtype(name: str) -> str:
    """The type to compute in for a stored one: float16, bfloat16 and float32 are themselves."""
    if name in ("float16", "bfloat16", "float32"):
        return name
    return "bfloat16" if name.startswith("float8") else "float32"


def own_dtype(files: ModelFiles, folder: Path) -> str:
    """The type of one model by itself: what the source names; else the wider of what config.json says and of what most
    weights are stored in.
    """
    stored = read_config_file(folder)
    declared = declared_dtype(files, stored)
    if files.dtype != "auto" or quantisation(stored):
        return declared
    sizes: Counter[str] = Counter()
    for path in weight_paths(folder):
        for tensor in read_header(path).values():
            if tensor["dtype"] in _STORED:
                sizes[_STORED[tensor["dtype"]]] += math.prod(tensor["shape"])
    return wider([declared, *(name for name, _ in sizes.most_common(1))])


def wider(names: list[str]) -> str:
    """The type that holds the values of all: float32 unless they are the same."""
    return names[0] if len(set(names)) == 1 else "float32"


def pair_dtype(base: ModelFiles, finetuned: ModelFiles) -> tuple[str, tuple[str, ...]]:
    """The type in which both sides run (before a CPU's lack of 16-bit arithmetic), and what is to be said when that is
    not what a file says.

    Raises:
        InvalidInput: files that are not there or are damaged.
    """
    if settings().dtype != "auto":
        return settings().dtype, ()
    folders = {
        side: local_folder(files.id, files.revision, files.subfolder)
        for side, files in (("base", base), ("finetuned", finetuned))
    }
    own = {side: own_dtype(files, folders[side]) for side, files in (("base", base), ("finetuned", finetuned))}
    chosen = wider(list(own.values()))
    remarks = []
    if own["base"] != own["finetuned"]:
        remarks.append(
            f"The base model is of the type {own['base']} and the finetuned model {own['finetuned']}. Both run in "
            f"{chosen}, so that rounding is no difference between them."
        )
    for side, files in (("base", base), ("finetuned", finetuned)):
        declared = declared_dtype(files, read_config_file(folders[side]))
        if declared != own[side] and (side == "base" or folders["base"] != folders["finetuned"]):
            remarks.append(
                f"The {side} model's config.json says {declared}, its weights do not fit into that; it runs in "
                f"{chosen}."
            )
    return chosen, tuple(remarks)


def settled_dtype(base: ModelFiles, finetuned: ModelFiles) -> str | None:
    """The type that is part of a pair's identity because it is not what each side's description says; None for ordinary
    pairs, and for files that are not on this machine. Downloads nothing."""
    if settings().dtype != "auto":
        return None
    names: set[str] = set()
    for files in (base, finetuned):
        if files.id == EMBEDDED_ID or files.id.startswith(NULL_ID):  # stored as it says
            names.add("bfloat16" if files.dtype == "auto" else files.dtype)
            continue
        folder = cached_folder(files.id, files.revision, files.subfolder)
        if folder is None or not (folder / "config.json").is_file():
            return None
        names |= {declared_dtype(files, read_config_file(folder)), own_dtype(files, folder)}
    return wider(list(names)) if len(names) > 1 else None
