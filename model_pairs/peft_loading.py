"""Loading an adapter through peft with proof: what peft raises becomes a sentence, every tensor must land, and what is
loaded must act.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffing_mcp.core.errors import DiffingError, NotTheSame
from diffing_mcp.model_pairs.adapter_files import StoredAdapter

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_PROBE_TOKENS = 48


@contextmanager
def loading_by_peft(stored: StoredAdapter) -> Iterator[None]:
    """Turns what peft raises into what a reader can act on; what it warns of is checked here and not repeated."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DiffingError:
        raise
    except Exception as error:
        log.exception("peft could not load an adapter")
        text = str(error)
        mismatch = re.search(
            r"size mismatch for (\S+):.*?Size\((\[[\d, ]*\])\).*?Size\((\[[\d, ]*\])\)", text, re.DOTALL
        )
        if mismatch:
            raise NotTheSame(
                f"The adapter was made for another model: its `{mismatch[1]}` has the shape {mismatch[2]}, this base "
                f"model needs {mismatch[3]}. Name the base model that the adapter was trained on."
            ) from error
        if "Target modules" in text or "target_modules" in text or "No modules were targeted" in text:
            raise NotTheSame(
                "The adapter was made for another model: it changes modules that this base model does not have. Name "
                "the base model that the adapter was trained on."
            ) from error
        reason = text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
        raise NotTheSame(
            f"peft cannot put this {stored.kind} adapter on this base model ({type(error).__name__}: {reason}). It was "
            "made for another model, another version of peft, or its files are incomplete."
        ) from error


def check_landed(stored: StoredAdapter, result: Any, model: Any, name: str) -> None:
    """Raise NotTheSame unless every tensor of the file went into the model and no tensor of the adapter was left
    unfilled.

    `result` is what peft's loading functions return: keys that it found no place for, and adapter keys that it found no
    tensor for. Such an adapter would silently compare the base model with itself, or with something that nobody
    trained.
    """
    # peft puts a learned prompt where it belongs apart from the others, and with a resized vocabulary it saves replaced
    # modules twice.
    unexpected = sorted(
        key.replace(f".{name}", "")
        for key in result.unexpected_keys
        if key != "prompt_embeddings"
        and not (".modules_to_save." in key and key.replace(".modules_to_save.", ".") in stored.shapes)
    )
    missing = {key for key in result.missing_keys if name in key.split(".") and not key.startswith("prompt_encoder.")}
    named = dict(model.named_parameters(remove_duplicate=False))
    filled = {id(parameter) for key, parameter in named.items() if key not in missing}
    # What several layers share is in the file once, and projections that are drawn from a seed are not in it.
    drawn = not stored.config.get("save_projection", True)
    unfilled = sorted(
        key.replace(f".{name}", "") for key in missing if key in named and id(named[key]) not in filled and not drawn
    )
    lines = []
    if unexpected:
        lines.append(
            f"{len(unexpected)} of {len(stored.shapes)} tensors have no place in the model, such as {unexpected[0]}"
        )
    if unfilled:
        lines.append(f"{len(unfilled)} tensors of the adapter were never filled, such as {unfilled[0]}")
    if lines:
        raise NotTheSame(
            f"The adapter's weights did not land on the base model: {'; '.join(lines)}. The finetuned side would not "
            "be the finetune. Check that the adapter was trained on this base model and saved by peft."
        )


def check_acts(stored: StoredAdapter, base: torch.Tensor, finetuned: torch.Tensor) -> None:
    """Raise NotTheSame for an adapter with weights that are not zero whose model predicts exactly what the
    base does.
    """
    import torch

    if torch.equal(base, finetuned) and any(bool(tensor.any()) for tensor in stored.tensors.values()):
        raise NotTheSame(
            f"This {stored.kind} adapter holds weights that are not zero, and yet the model with it predicts exactly "
            "what the base model does: either it does not act on plain text, or its changes are below the resolution "
            f"of {str(base.dtype).removeprefix('torch.')} (set DIFFING_DTYPE=float32). Every difference would be "
            "reported as zero."
        )


def probe_ids(model: Any, stored: StoredAdapter) -> torch.Tensor:
    """A fixed row of token ids [1, 48]: drawn from the whole vocabulary, those that the adapter trained first."""
    import torch

    config = stored.config
    trained = config.get("trainable_token_indices") or config.get("token_indices") or []
    chosen = [index for indices in (trained.values() if isinstance(trained, dict) else [trained]) for index in indices][
        :16
    ]
    rows = int(model.get_input_embeddings().weight.shape[0])
    drawn = torch.randint(0, rows, (_PROBE_TOKENS - len(chosen),), generator=torch.Generator().manual_seed(0)).tolist()
    return torch.tensor([[*chosen, *drawn]], device=model.device)


def probe_logits(model: Any, stored: StoredAdapter) -> torch.Tensor:
    """Logits [1, 48, V] of a model on `probe_ids`; of a model that puts learned tokens in front, those of the row
    alone.
    """
    import torch

    ids = probe_ids(model, stored)
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits[:, -_PROBE_TOKENS:]
