"""A model that the devices have no room for is refused where transformers would put a part of it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest

from diffing_mcp.core.errors import OutOfRoom
from diffing_mcp.model_pairs import loading
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import PairSpec
from tests.conftest import TinyModels


def test_a_model_that_would_be_left_on_the_disk_in_part_is_refused(
    tiny_models: TinyModels, make_pair: Callable[..., PairSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `device_map=auto` does where somebody else has the GPUs; weights that are not there have no digest."""
    spec = make_pair(tiny_models(), finetuned=tiny_models(seed=1))
    monkeypatch.setattr(loading, "choose_device", lambda: "auto")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=150_000, total=1 << 40))
    with pytest.raises(OutOfRoom, match="free memory of the devices"), ModelPairs(1 << 40).use(spec):
        pass
