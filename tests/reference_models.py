"""Models as transformers alone loads them: what ours are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def reference_model(folder: Path | str, dtype: torch.dtype = torch.float32) -> Any:
    """A model in evaluation mode; with soft-capped scores, which SDPA leaves out, by eager attention."""
    from transformers import AutoConfig, AutoModelForCausalLM

    capped = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "attn_logit_softcapping", None)
    options = {"attn_implementation": "eager"} if capped else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).eval()
