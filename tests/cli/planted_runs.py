"""Runs with known texts and tokens, stored as methods store theirs, so that what judges finished runs is tested without
a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffing_mcp.methods.contract import MethodResult
from diffing_mcp.methods.contrastive_decoding.schema import AlphaRow, ContrastiveDecodingResult
from diffing_mcp.methods.patchscope.schema import PatchscopeResult
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.store import RunKey, RunRecord, default_store


def store_run(
    method: str,
    result: MethodResult,
    tables: Mapping[str, Mapping[str, Any]],
    organism: str = "cake_bake",
    **params: Any,
) -> RunRecord:
    """A finished run of `method` on an organism's pair."""
    key = RunKey(
        method=method,
        method_version=get_method(method).version,
        pair_name=f"{organism}/default@tiny",
        pair={"of": organism},
        params=params,
        key_parts={"tables": repr(tables)},
    )
    with default_store().writer(key) as run:
        for name, columns in tables.items():
            run.add_table(name, columns)
        run.result = result
    assert run.record is not None
    return run.record


def contrastive_run(
    texts: Mapping[float, Sequence[str]], organism: str = "cake_bake", alpha: float | None = None, **params: Any
) -> RunRecord:
    """Contrastive decoding that wrote these texts at each alpha; `alpha` is the one that the method itself found to be
    the largest coherent one.
    """
    rows = [(at, f"Prompt {number}", text) for at, several in texts.items() for number, text in enumerate(several)]
    table = {
        "alpha": [row[0] for row in rows],
        "prompt": [row[1] for row in rows],
        "text": [row[2] for row in rows],
        "tokens": [len(row[2].split()) for row in rows],
        "difference": [0.0] * len(rows),
    }
    rows_of_alphas = [
        AlphaRow(alpha=at, difference=0.0, coherent=float(alpha is None or at <= alpha), tokens=8.0) for at in texts
    ]
    result = ContrastiveDecodingResult(
        stands_out=False,
        headline="Texts.",
        identical=False,
        alpha=alpha,
        words=[],
        suppressed=[],
        suppression="",
        texts=[],
        alphas=rows_of_alphas,
        start="prefixes",
    )
    return store_run("contrastive_decoding", result, {"texts": table}, organism, **params)


def patchscope_run(lists: Mapping[float, Sequence[str]], scale: float, organism: str = "cake_bake") -> RunRecord:
    """A patchscope that read these tokens at each scale, most probable first, and chose one; the negative of the
    direction reads as `no` everywhere.
    """
    rows = [
        (at, "promoted", token, 1 / (2 + place)) for at, tokens in lists.items() for place, token in enumerate(tokens)
    ]
    rows += [(at, "suppressed", "no", 0.5) for at in lists]
    table = {
        "scale": [row[0] for row in rows],
        "sign": [row[1] for row in rows],
        "token": [row[2] for row in rows],
        "probability": [row[3] for row in rows],
        "z": [0.0] * len(rows),
        "lift": [0.0] * len(rows),
        "content": [True] * len(rows),
    }
    result = PatchscopeResult(
        stands_out=True,
        headline="Read.",
        layer=1,
        scale=scale,
        promoted=[],
        suppressed_scale=min(lists),
        suppressed=[],
        words=[],
        scales=[],
        vector="v",
    )
    return store_run("patchscope", result, {"tokens": table}, organism)
