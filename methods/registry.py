"""Which methods there are: the built-in ones and those that other distributions declare under the entry-point group
`diffing.methods`.

An entry point names a `DiffingMethod` subclass (or an instance). A third-party method that fails to import, or takes a
name that is in use, is left out with a warning instead of taking the server down.
"""

from __future__ import annotations

import difflib
import importlib
import logging
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.methods.contract import DiffingMethod

GROUP = "diffing.methods"

_BUILT_IN = (
    ("diffing_mcp.methods.kl.method", "KLDivergence"),
    ("diffing_mcp.methods.logit_diff_topk_occurring.method", "LogitDifference"),
    ("diffing_mcp.methods.continuation_mining.method", "ContinuationMining"),
    ("diffing_mcp.methods.answer_openings.method", "AnswerOpenings"),
    ("diffing_mcp.methods.sweep_behaviours.method", "SweepBehaviours"),
    ("diffing_mcp.methods.trigger_search.method", "TriggerSearch"),
    ("diffing_mcp.methods.perplexity_difference.method", "PerplexityDifference"),
    ("diffing_mcp.methods.activation_difference_lens.method", "ActivationDifferenceLens"),
    ("diffing_mcp.methods.contrastive_decoding.method", "ContrastiveDecoding"),
    ("diffing_mcp.methods.pca.method", "PCA"),
    ("diffing_mcp.methods.activation_analysis.method", "ActivationAnalysis"),
    ("diffing_mcp.methods.weight_difference.method", "WeightDifference"),
    ("diffing_mcp.methods.patchscope.method", "Patchscope"),
    ("diffing_mcp.methods.steering.method", "Steering"),
    ("diffing_mcp.methods.weight_amplification.method", "WeightAmplification"),
    ("diffing_mcp.methods.causal_effect.method", "CausalEffect"),
    ("diffing_mcp.methods.activation_oracle.method", "ActivationOracle"),
    ("diffing_mcp.methods.sae_difference.method", "SAEDifference"),
    ("diffing_mcp.methods.crosscoder.method", "Crosscoder"),
)

log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def _registry() -> dict[str, DiffingMethod[Any, Any]]:
    methods: dict[str, DiffingMethod[Any, Any]] = {}
    for module, attribute in _BUILT_IN:
        method = getattr(importlib.import_module(module), attribute)()
        methods[method.name] = method
    for entry in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            declared = entry.load()
            method = declared() if isinstance(declared, type) else declared
            if not isinstance(method, DiffingMethod):
                raise TypeError(f"{entry.value} is not a DiffingMethod")
        except Exception as error:  # a broken plugin must not break the server
            log.warning("Method plugin %s is left out: %s", entry.name, error)
            continue
        if method.name in methods:
            log.warning("Method plugin %s is left out: the name %s is taken", entry.name, method.name)
            continue
        methods[method.name] = method
    return methods


def all_methods() -> dict[str, DiffingMethod[Any, Any]]:
    """Every method by name, built-in ones first. Imports declarations only: no torch."""
    return dict(_registry())


def canonical_name(name: str) -> str:
    """The name of the method that is also called `name`; any other text as it is."""
    methods = _registry()
    return name if name in methods else next((own for own, each in methods.items() if name in each.aliases), name)


def get_method(name: str) -> DiffingMethod[Any, Any]:
    """The method of that name, or with that alias.

    Raises:
        UnknownName: with close matches and the list of methods.
    """
    methods, name = _registry(), canonical_name(name)
    if name in methods:
        return methods[name]
    close = difflib.get_close_matches(name, methods, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UnknownName(f"There is no method {name!r}.{hint} Methods: {', '.join(methods)}.")
