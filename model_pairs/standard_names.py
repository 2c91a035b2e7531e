"""A transformer under nnterp's names, which are the same for every architecture.

Importing this imports nnsight; `loading` does so when a model is loaded, not before.
"""

from __future__ import annotations

import json
from typing import Any

from nnsight import Envoy
from nnterp import StandardizedTransformer

Structure = tuple[type, str, tuple[tuple[str, type], ...]]

_checked: set[Structure] = set()
"""Structures under which nnterp's pass has found what its names promise. The pass looks at types and shapes alone, so
it says the same of every model that is built alike; it takes longer than loading a small model does.
"""


class _Part(Envoy):
    """A module of a wrapped model. As text it is its path: nnsight tries each of nnterp's names on every module and
    writes the module into the error of each name that is not there, and by default that is all that is below it.
    """

    def __str__(self) -> str:
        return str(self.path)


class _Whole(StandardizedTransformer):
    """The wrapped model, whose text is short for the same reason."""

    envoys = _Part

    def __str__(self) -> str:
        return type(self._module).__name__


def with_standard_names(transformer: Any, tokenizer: Any) -> StandardizedTransformer:
    """The model wrapped by nnterp. Raises whatever nnterp's pass does for an architecture whose modules it cannot
    name: that breaks anywhere.
    """
    structure = _structure(transformer)
    # A model given as a module is dispatched from the start: an adapter attached later lands on the real weights.
    wrapped = _Whole(transformer, tokenizer=tokenizer, allow_multimodal=True, check_renaming=structure not in _checked)
    _checked.add(structure)
    return wrapped


def _structure(transformer: Any) -> Structure:
    modules = tuple((name, type(module)) for name, module in transformer.named_modules())
    config = transformer.config.to_dict() | {"_name_or_path": ""}  # where it lies makes no other model of it
    return type(transformer), json.dumps(config, default=str), modules
