"""An adapter on a base model of its own: the model that `PeftModel.from_pretrained` makes, for every kind and option
that cannot share a base.

peft may rebuild the base here (PiSSA), resize its vocabulary, wrap layers in any way or put learned tokens in front:
the base that the finetune is compared with is another copy. What runs afterwards is the transformers model inside, so
it is compared with what peft itself computes before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.adapter_files import OWN_ADAPTER, StoredAdapter
from diffing_mcp.model_pairs.finite import is_finite
from diffing_mcp.model_pairs.learned_prompt import LearnedPrompt
from diffing_mcp.model_pairs.peft_loading import check_acts, check_landed, loading_by_peft, probe_ids, probe_logits

if TYPE_CHECKING:
    from peft import PeftModel

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
_COARSE = 2e-2
"""Largest difference to peft's own logits, in standard deviations of the logits: the same modules run, in other batches
of tokens at most.
"""

_MERGED = {torch.float32: 1e-3, torch.float64: 1e-6}
_COARSE_MERGED = 0.3
"""Largest change of the logits, in standard deviations, that rounding merged weights to the model's type explains."""


@dataclass(frozen=True)
class AdaptedModel:
    """The transformers model inside of what peft made, and the learned prompt that it reads first."""

    transformer: Any
    prompt: LearnedPrompt | None


def adapted(transformer: Any, stored: StoredAdapter) -> AdaptedModel:
    """The base model (which is changed in place) with its adapter, in evaluation mode.

    Raises:
        NotTheSame: made for another model, not all of it landed, or weights that are not zero and change nothing.
        InvalidInput: rows beyond the base's vocabulary that the adapter does not hold, or a kind that computes more
            than the model inside can.
    """
    base = probe_logits(transformer, stored)
    _resize(transformer, stored)
    model = _loaded(transformer, stored)
    prompt = _learned_prompt(model, stored)
    inner = model.get_base_model()
    if prompt is not None:
        inner.register_forward_pre_hook(prompt, with_kwargs=True)
    if not is_finite(probe_logits(inner, stored)):
        return AdaptedModel(inner, prompt)  # the first pass says of which side and of which weights
    _check_same(model, inner, stored, prompt is not None)
    check_acts(stored, base, probe_logits(inner, stored)[..., : base.shape[-1]])
    return AdaptedModel(inner, prompt)


def merged(transformer: Any, stored: StoredAdapter) -> Any:
    """The base model (which is changed in place) with the adapter merged into its weights, in the model's dtype, no
    adapter left.

    Raises:
        NotTheSame: as `adapted`.
        InvalidInput: an adapter that is no change of weights, or whose merged model is another one.
    """
    _resize(transformer, stored)
    model = _loaded(transformer, stored)
    if not hasattr(model, "merge_and_unload"):
        raise InvalidInput(
            f"An adapter of the kind {stored.kind} is no change of weights and cannot be merged. Name it without "
            "`merged`."
        )
    with loading_by_peft(stored):
        before = probe_logits(model, stored)
        result = model.merge_and_unload(adapter_names=[OWN_ADAPTER]).requires_grad_(False).eval()
        after = probe_logits(result, stored)
    worst = float((after.float() - before.float()).abs().max()) / float(before.float().std().clamp_min(1e-12))
    if is_finite(before) and not worst <= _MERGED.get(before.dtype, _COARSE_MERGED):
        raise InvalidInput(
            f"Merged into its base, this {stored.kind} adapter makes another model than the one that was trained "
            f"(logits are {worst:.2g} standard deviations away), as where the input embedding and the head share one "
            "weight and the adapter changes one of the two. Name it without `merged`."
        )
    return result


def _resize(transformer: Any, stored: StoredAdapter) -> None:
    """Give the base the vocabulary rows that the adapter was trained with."""
    rows, own = stored.vocabulary_rows, int(transformer.get_input_embeddings().weight.shape[0])
    if rows is None or rows == own:
        return
    if not stored.brings_all_rows:
        raise InvalidInput(
            f"The adapter was trained with a vocabulary of {rows} rows and the base model has {own}; the adapter's "
            "files do not hold the rows of the added tokens, so the trained model cannot be rebuilt. Save it with "
            "save_embedding_layers=True, or merge it and name the full model."
        )
    transformer.resize_token_embeddings(rows, mean_resizing=False)


def _loaded(transformer: Any, stored: StoredAdapter) -> PeftModel:
    from peft import PeftModel

    with loading_by_peft(stored):
        model = PeftModel.from_pretrained(transformer, str(stored.folder), adapter_name=OWN_ADAPTER, is_trainable=False)
        # Once more, because only this tells what did not land.
        check_landed(
            stored, model.load_adapter(str(stored.folder), OWN_ADAPTER, is_trainable=False), model, OWN_ADAPTER
        )
    return model.requires_grad_(False).eval()


def _learned_prompt(model: PeftModel, stored: StoredAdapter) -> LearnedPrompt | None:
    config = model.peft_config[OWN_ADAPTER]
    if not config.is_prompt_learning:
        return None
    from transformers import DynamicCache

    base: Any = model.get_base_model()
    with loading_by_peft(stored), torch.inference_mode():
        if stored.kind in ("PREFIX_TUNING", "CARTRIDGE"):
            cache = model.get_prompt(batch_size=1)
        else:
            embeddings = model.get_prompt(batch_size=1).to(base.dtype)
            mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
            cache = base(inputs_embeds=embeddings, attention_mask=mask, use_cache=True).past_key_values
    if not isinstance(cache, DynamicCache):
        raise InvalidInput(
            f"This model keeps no plain keys and values, which an adapter of the kind {stored.kind} needs."
        )
    return LearnedPrompt(cache, int(cache.get_seq_length()), stored.kind)


def _check_same(model: PeftModel, inner: Any, stored: StoredAdapter, hooked: bool) -> None:
    """Raise InvalidInput unless the model inside computes what peft's own forward does, and the same each time."""
    with loading_by_peft(stored):
        if hooked:
            hooks = inner._forward_pre_hooks.copy()
            inner._forward_pre_hooks.clear()
            try:
                first, second = (probe_logits(model, stored) for _ in range(2))
            finally:
                inner._forward_pre_hooks.update(hooks)
        else:
            first, second = (probe_logits(model, stored) for _ in range(2))
        own = probe_logits(inner, stored)
    if first.shape != own.shape:
        raise InvalidInput(
            f"peft's {stored.kind} gives logits of the shape {tuple(first.shape)}, the model inside {tuple(own.shape)}."
        )
    if not torch.equal(first, second):
        raise InvalidInput(
            f"This {stored.kind} adapter draws random numbers when it runs, so no two passes agree and no difference "
            "could be trusted."
        )
    scale = float(first.float().std().clamp_min(1e-12))
    worst = float((first.float() - own.float()).abs().max()) / scale
    if not worst <= _TOLERANCE.get(first.dtype, _COARSE):
        raise InvalidInput(
            f"peft runs this {stored.kind} adapter in a way that the model itself does not show (its logits are "
            f"{worst:.2g} standard deviations away), so its layers cannot be read. Merge it into a full model, if its "
            "kind allows, and name that."
        )
    if not probe_in_batch(inner, stored, own) <= _TOLERANCE.get(first.dtype, _COARSE) * 10:
        raise InvalidInput(
            f"What this {stored.kind} adapter makes of a text depends on the other texts of a batch and on padding, so "
            "it has no one answer for a text and cannot be compared with its base."
        )


def probe_in_batch(inner: Any, stored: StoredAdapter, alone: torch.Tensor) -> float:
    """Largest difference, in standard deviations of the logits, that a longer text in the same batch makes to the
    probe's logits.
    """
    ids = probe_ids(inner, stored)
    half = ids.shape[1] // 2
    rows = torch.cat([ids, torch.cat([ids[:, :half], torch.zeros_like(ids[:, half:])], dim=1)])
    mask = torch.ones_like(rows)
    mask[1, half:] = 0
    with torch.inference_mode():
        both = inner(input_ids=rows, attention_mask=mask, use_cache=False).logits
    worst = max(float((both[0] - alone[0]).abs().max()), float((both[1, :half] - alone[0, :half]).abs().max()))
    return worst / float(alone.float().std().clamp_min(1e-12))
