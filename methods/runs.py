"""The run store: every result under one key, in one folder, written whole or not at all.

A run folder holds `manifest.json`, `result.json`, `arrays.safetensors` and `tables/<name>.parquet`. It is written beside its final place and
renamed, so a half-written run is never visible; two writers of one key do no harm (the first to finish wins, both hold the same content). Ids are short (`kl-1f3a9c`)
and unambiguous prefixes of them work. No pickle. Torch-free, so that the panel and the agents' drill-down can read runs.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from methods.contract import DiffingMethod, MethodResult
from methods.registry import get_method
from organisms.errors import DiffingError, InvalidInput, OutOfRoom, UnknownName

if TYPE_CHECKING:
    import pyarrow

    from model_pairs.specs import PairSpec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_STAGING = ".writing-"
_LIBRARIES = ("torch", "transformers", "peft", "nnterp", "nnsight", "numpy", "diffing-mcp")


class RunManifest(BaseModel):
    """Everything that identifies a run and what it cost. Names real models: never show it to a blinded agent as it stands."""

    id: str
    key: str
    method: str
    method_version: int
    pair_name: str
    pair: dict[str, Any] = Field(description="PairSpec.identity()")
    params: dict[str, Any]
    key_parts: dict[str, Any] = Field(default_factory=dict, description="For corpus methods: {'corpus': {'id', 'content_hash'}}.")
    created: datetime
    seconds: float = Field(description="Seconds of the work, including the whole of a shared pass.")
    notes: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    arrays: dict[str, list[int]] = Field(default_factory=dict, description="Name -> shape.")
    tables: dict[str, int] = Field(default_factory=dict, description="Name -> number of rows.")
    bytes: int = 0


class RunKey(BaseModel):
    """What decides a result, and its hash."""

    method: str
    method_version: int
    pair_name: str
    pair: dict[str, Any]
    params: dict[str, Any]
    key_parts: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        """sha256, in hex, of the canonical JSON of everything but the pair's display name."""
        decisive = self.model_dump(mode="json", exclude={"pair_name"})
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def run_key(method: DiffingMethod[Any, Any], spec: PairSpec, params: BaseModel) -> RunKey:
    """The key of running `method` with `params` on `spec`. Corpus methods load their documents (not the models) for the content hash.

    A seed is an ordinary parameter, so it is part of the key.
    """
    return RunKey(
        method=method.name,
        method_version=method.version,
        pair_name=spec.name,
        pair=spec.identity(),
        params=params.model_dump(mode="json"),
        key_parts=method.key_parts(params),
    )
