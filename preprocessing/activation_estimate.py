"""What a collection of activations takes, said before any model is loaded. Imports torch only when called."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from diffing_mcp.preprocessing.activation_collection import CollectionParams

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.specs import PairSpec


class CollectionEstimate(BaseModel):
    """An upper bound: documents may be shorter than `max_tokens`, and fewer than `max_samples`."""

    tokens: int = Field(description="Rows a layer and side, at most.")
    layers: int
    d_model: int
    dtype: str
    bytes: int = Field(description="Disk, at most.")
    free_bytes: int = Field(description="Disk that is free.")

    def as_text(self) -> str:
        fit = "" if self.bytes <= self.free_bytes else "; if the text is really that long, it will be refused"
        return (
            f"at most {self.tokens} tokens x {self.layers} layers x 2 sides x {self.d_model} {self.dtype} = "
            f"{self.bytes / 1e6:.1f} MB of disk; {self.free_bytes / 1e6:.0f} MB are free{fit}"
        )


def estimate_collection(spec: PairSpec, params: CollectionParams, folder: Path) -> CollectionEstimate:
    """Read the base model's configuration (not its weights) and say what `collect` would write below `folder`.

    Raises:
        InvalidInput: a layer out of range, or a configuration that cannot be read.
    """
    import torch

    from diffing_mcp.core.devices import choose_device
    from diffing_mcp.model_pairs.files import local_folder
    from diffing_mcp.model_pairs.layers import resolve_layers
    from diffing_mcp.model_pairs.loading import compute_dtype, read_config

    files = spec.base.files
    config = read_config(files, local_folder(files.id, files.revision, files.subfolder))
    text = config.get_text_config()
    dtype = (
        getattr(torch, params.dtype)
        if params.dtype != "auto"
        else compute_dtype(files, spec.finetuned.files, choose_device())[0]
    )
    layers = len(resolve_layers(params.layers, text.num_hidden_layers))
    tokens = params.max_samples * params.max_tokens
    tokens = min(tokens, params.max_activation_tokens or tokens)
    while not folder.exists():
        folder = folder.parent
    return CollectionEstimate(
        tokens=tokens,
        layers=layers,
        d_model=text.hidden_size,
        dtype=str(dtype).removeprefix("torch."),
        bytes=2 * layers * tokens * text.hidden_size * dtype.itemsize,
        free_bytes=shutil.disk_usage(folder).free,
    )
