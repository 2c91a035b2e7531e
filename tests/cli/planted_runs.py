"""Runs with known texts and tokens, stored as methods store theirs, so that what judges finished runs is tested without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from methods.contract import MethodResult
from methods.contrastive_decoding.declaration import ContrastiveDecodingResult
from methods.registry import get_method
from methods.runs import RunKey, RunRecord, default_store


def store_run(method: str, result: MethodResult, tables: Mapping[str, Mapping[str, Any]], organism: str = "cake_bake", **params: Any) -> RunRecord:
    """A finished run of `method` on an organism's pair."""
    key = RunKey(
        method=method,
        method_version=get_method(method).version,
        pair_name=f"{organism}/default@tiny",
        pair={"of": organism},
        params=params,
        key_parts={},
    )
    with default_store().writer(key) as run:
        for name, columns in tables.items():
            run.add_table(name, columns)
        run.result = result
    assert run.record is not None
    return run.record


def contrastive_run(texts: Mapping[float, Sequence[str]], organism: str = "cake_bake", alpha: float | None = None, **params: Any) -> RunRecord:
    """Contrastive decoding that wrote these texts at each alpha; `alpha` is the one that the method itself found to be the largest coherent one."""
    rows = [(at, f"Prompt {number}", text) for at, several in texts.items() for number, text in enumerate(several)]
    table = {
        "alpha": [row[0] for row in rows],
        "prompt": [row[1] for row in rows],
        "text": [row[2] for row in rows],
        "tokens": [len(row[2].split()) for row in rows],
        "difference": [0.0] * len(rows),
    }
    result = ContrastiveDecodingResult(
        stands_out=False, headline="Texts.", identical=False, alpha=alpha, words=[], texts=[], alphas=[], start="prefixes"
    )
    return store_run("contrastive_decoding", result, {"texts": table}, organism, **params)
