"""Forward passes of one resident model through nnterp's uniform names: hidden states at chosen layers, logits, and the
logit lens.

The pass ends after the last layer that is wanted when the logits are not.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.finite import check_hidden, check_logits, check_values, mask_of
from diffing_mcp.model_pairs.interventions import Intervention, applied
from diffing_mcp.model_pairs.room import logit_tokens

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.forward_count import ForwardCount
    from diffing_mcp.model_pairs.resident import ResidentModel

_VOCABULARY_CHUNK = 8192
_TRACING = threading.RLock()
"""nnsight keeps what a trace saves in one set of the whole process and empties it when any trace ends: one at a time,
whatever the model.
"""
_ROW_BYTES = 32 * 2**20
"""Bytes of one float32 copy [rows, V] of logits: their log-softmax is taken for a few rows at a time."""


@dataclass
class ForwardOutput:
    """Of one batch [B, S]: logits [B, S, V] in the model's dtype (None when not asked for), and layer -> residual
    stream [B, S, d_model].

    `extra_logits` [B, S, E] are those of token ids that the other side of the pair does not have (None: there are
    none). Values at padded positions mean nothing.
    """

    logits: torch.Tensor | None
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    extra_logits: torch.Tensor | None = None

    def on(self, device: torch.device) -> ForwardOutput:
        """This output on one device. Copies nothing that is there already."""
        logits, extra = (None if each is None else each.to(device) for each in (self.logits, self.extra_logits))
        return ForwardOutput(logits, {layer: states.to(device) for layer, states in self.hidden.items()}, extra)

    def cut(self, vocab_size: int) -> ForwardOutput:
        """This output with the logits of the ids from `vocab_size` on as `extra_logits`. Copies nothing."""
        if self.logits is None or self.logits.shape[-1] <= vocab_size:
            return self
        return ForwardOutput(self.logits[..., :vocab_size], self.hidden, self.logits[..., vocab_size:])


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position of each token counted over the tokens that are not padding [B, S]; right for padding on either side."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


def check_batch(resident: ResidentModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
    """Raise InvalidInput for a batch that the model cannot take. What stands at padded positions is not looked at."""
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape or input_ids.numel() == 0:
        raise InvalidInput(
            f"A batch is input_ids and attention_mask of one shape [rows, tokens] with at least one token; "
            f"these are {tuple(input_ids.shape)} and {tuple(attention_mask.shape)}."
        )
    longest = int(attention_mask.sum(-1).max())
    if not longest:
        raise InvalidInput("A batch has at least one token that is not padding.")
    if longest > resident.context_length:
        raise InvalidInput(
            f"A text has {longest} tokens; this model's context holds {resident.context_length}. Shorten the text."
        )
    check_ids(input_ids[attention_mask.bool()], resident.vocab_size, resident.standardized.tokenizer)


def check_ids(ids: torch.Tensor, rows: int, tokenizer: Any) -> None:
    """Raise InvalidInput for a token id that a model with so many `rows` does not have, naming the token."""
    smallest, highest = int(ids.min()), int(ids.max())
    if smallest >= 0 and highest < rows:
        return
    index = smallest if smallest < 0 else highest
    told = f"Token ids lie in [0, {rows - 1}]; the text holds {index}"
    if index < 0 or tokenizer is None or index >= len(tokenizer):
        raise InvalidInput(f"{told}.")
    raise InvalidInput(
        f"{told}, the token {tokenizer.convert_ids_to_tokens(index)!r}, which was added to the tokenizer but not to "
        "the model. Leave it out of the text, or save the model again after `resize_token_embeddings(len(tokenizer))`."
    )


def input_check(rows: int, tokenizer: Any) -> Callable[..., None]:
    """Forward pre-hook of a transformer: `check_ids` of what is text. A device would end the process over an id that is
    not there.
    """

    def check(_module: Any, _arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids")
        if isinstance(ids, torch.Tensor):
            mask = mask_of(named, ids.shape[1])
            check_ids(ids if mask is None else ids[mask.to(ids.device).bool()], rows, tokenizer)

    return check


def make_head_input_contiguous(transformer: Any) -> None:
    """Let the output head of a model (and every copy that an adapter makes of it later) see contiguous tensors only.

    The last position of each row, `hidden[:, -1:]` [B, 1, d_model], is a slice with gaps: torch then multiplies row by
    row and copies the unembedding for each of them, which takes B times its memory and hundreds of times as long.
    """

    def contiguous(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(each.contiguous() if isinstance(each, torch.Tensor) else each for each in arguments)

    transformer.get_output_embeddings().register_forward_pre_hook(contiguous)


def run_forward(
    resident: ResidentModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    layers: Sequence[int] = (),
    logits: bool = True,
    interventions: Sequence[Intervention] = (),
) -> ForwardOutput:
    """One traced pass over a batch, all of it on the device of the model's input; the caller holds `resident.lock` and
    has switched the adapter.

    Raises:
        InvalidInput: a layer that is not there, a batch of a wrong shape, a text longer than the context.
        NotFinite: NaN or infinite numbers in a layer or in the logits.
    """
    check_batch(resident, input_ids, attention_mask)
    wanted = sorted(set(layers))
    if wanted and not (wanted[0] >= 0 and wanted[-1] < resident.num_layers):
        raise InvalidInput(f"Layers {wanted} are out of range: this model has layers 0 to {resident.num_layers - 1}.")
    if not wanted and not logits:
        raise InvalidInput("A forward pass needs layers or logits to return.")
    model = resident.standardized
    mask = attention_mask.to(resident.device)
    ids = (
        input_ids.to(resident.device) * mask.bool()
    )  # a model looks its padding up as well, so that must be a token that it has
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if takes_position_ids(resident):
        inputs["position_ids"] = positions_of(mask)
    hidden: dict[int, torch.Tensor] = {}
    scores: torch.Tensor | None = None
    with _TRACING, torch.inference_mode(), applied(resident, interventions, mask):
        if not logits:
            with model.trace(inputs, use_cache=False) as tracer:
                for layer in wanted:
                    hidden[layer] = model.layers_output[layer].save()
                tracer.stop()
        else:
            with model.trace(inputs, use_cache=False):
                for layer in wanted:
                    hidden[layer] = model.layers_output[layer].save()
                scores = model.logits.save()
    check_hidden(hidden, mask)
    # The layers of a model that is spread over several GPUs leave their states where they are.
    return ForwardOutput(logits=scores, hidden=hidden).on(resident.device)


def run_last_token(
    resident: ResidentModel,
    ids: Sequence[int],
    rows: int,
    always: Sequence[Intervention] = (),
    interventions: Sequence[Intervention] = (),
) -> torch.Tensor:
    """Float32 next-token logits [rows, V] after one text, on the model's device, when `interventions` change its last
    token only.

    The tokens before are read once and their keys and values shared by all rows, so a row costs one token. `always` are
    the side's own interventions, which act on every token. The caller holds `resident.lock` and has switched the
    adapter.
    """
    check_batch(resident, torch.tensor([list(ids)]), torch.ones(1, len(ids), dtype=torch.long))
    text = torch.tensor([list(ids)], device=resident.device)
    with torch.inference_mode():
        cache = None
        if len(ids) > 1:
            before = text[:, :-1]
            with applied(resident, always, torch.ones_like(before)):
                cache = resident.transformer(
                    input_ids=before,
                    attention_mask=torch.ones_like(before),
                    use_cache=True,
                    **last_logits_only(resident),
                ).past_key_values
            cache.batch_repeat_interleave(rows)
        last = text[:, -1:].expand(rows, 1)
        with applied(resident, (*always, *interventions), torch.ones_like(last)):
            output = resident.transformer(
                input_ids=last,
                attention_mask=torch.ones(rows, len(ids), dtype=torch.long, device=last.device),
                past_key_values=cache,
                use_cache=True,
            )
        logits: torch.Tensor = output.logits[:, -1]
        return logits.float()


def takes_position_ids(resident: ResidentModel) -> bool:
    """Whether the architecture has positions that padding on the left would shift (models with relative positions take
    none).
    """
    forward = type(resident.transformer).forward
    return (
        "position_ids" in inspect.signature(forward).parameters
        and getattr(resident.transformer.config, "vision_config", None) is None
    )


def last_logits_only(resident: ResidentModel) -> dict[str, Any]:
    """Arguments that make a pass return the logits of the last position only, where the model knows them."""
    return (
        {"logits_to_keep": 1}
        if "logits_to_keep" in inspect.signature(type(resident.transformer).forward).parameters
        else {}
    )


def effective_weight(
    resident: ResidentModel, which: Literal["output", "input"] = "output"
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [V, d_model] and bias of the unembedding (or of the input embedding, without bias) as the active adapter
    makes them.
    """
    from diffing_mcp.model_pairs.modules import unit_of

    module: Any = (
        resident.transformer.get_output_embeddings()
        if which == "output"
        else resident.transformer.get_input_embeddings()
    )
    values = unit_of(resident, module).values()
    return values["weight"], values.get("bias")


def token_rows(resident: ResidentModel, ids: Sequence[int], which: Literal["output", "input"]) -> torch.Tensor:
    """Float32 rows [N, d_model] of the unembedding or the input embedding on the CPU. Raises InvalidInput for ids
    outside the vocabulary.
    """
    if outside := [index for index in ids if not 0 <= index < resident.vocab_size]:
        raise InvalidInput(f"Token ids lie in [0, {resident.vocab_size - 1}]; {outside[0]} does not.")
    with torch.inference_mode():
        weight, _ = effective_weight(resident, which)
        rows = weight[torch.as_tensor(list(ids), dtype=torch.long, device=weight.device)].float().cpu()
        check_values(rows, f"the {which} embedding")
        return rows


def final_norm(resident: ResidentModel, vectors: torch.Tensor) -> torch.Tensor:
    """The model's final norm of vectors [..., d_model], in float32."""
    norm = resident.standardized.ln_final._module
    parameters = {name: parameter.float() for name, parameter in norm.named_parameters()}
    first = next(iter(parameters.values()), None)
    return torch.func.functional_call(
        norm, parameters, (vectors.to(first.device if first is not None else vectors.device).float(),)
    ).float()


def lens_logits(resident: ResidentModel, vectors: torch.Tensor) -> torch.Tensor:
    """Float32 logits [..., V] of vectors [..., d_model] read as a final residual stream: final norm, unembedding, bias,
    scale and soft cap.

    The caller holds `resident.lock` and has switched the adapter. The unembedding is turned into float32 chunk by
    chunk.
    """
    if vectors.shape[-1] != resident.d_model:
        raise InvalidInput(
            f"Vectors of {vectors.shape[-1]} dimensions do not fit a residual stream of {resident.d_model}."
        )
    with torch.inference_mode():
        weight, bias = effective_weight(resident)
        rows = final_norm(resident, vectors.reshape(-1, resident.d_model)).to(weight.device)
        result = torch.empty(rows.shape[0], weight.shape[0], dtype=torch.float32, device=weight.device)
        for start in range(0, weight.shape[0], _VOCABULARY_CHUNK):
            part = slice(start, start + _VOCABULARY_CHUNK)
            result[:, part] = rows @ weight[part].float().T
            if bias is not None:
                result[:, part] += bias[part].float()
        result *= _scale_of_logits(resident)
        if cap := _head_number(resident, "final_logit_softcapping", "logits_soft_cap"):
            result = cap * torch.tanh(result / cap)
        check_logits(result)
        return result.reshape(*vectors.shape[:-1], weight.shape[0]).to(resident.device)


def _scale_of_logits(resident: ResidentModel) -> float:
    """What a model's head multiplies its logits by: Cohere says the factor, Granite a divisor, HyperCLOVA X a
    factor by the divisor's name.
    """
    factor = _head_number(resident, "logit_scale") or 1.0
    scaling = _head_number(resident, "logits_scaling") or 1.0
    return factor * scaling if resident.config.model_type == "hyperclovax" else factor / scaling


def _head_number(resident: ResidentModel, *names: str) -> float | None:
    """The first of these that a model's configuration has and its forward heeds; None: none, or zero.

    Around a text model with an image part there is another forward, which often leaves out what the text model's own
    does to its logits (Aya Vision the scale, PaliGemma 2 the cap), and some configurations have numbers that nothing
    reads (MPT).
    """
    code = inspect.getsource(type(resident.transformer).forward)
    return next(
        (float(value) for name in names if name in code and (value := getattr(resident.config, name, None))), None
    )


def token_log_probs(
    resident: ResidentModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    steering: Sequence[Intervention],
    vocabulary: int,
    count: ForwardCount,
) -> torch.Tensor:
    """What `next_token_log_probs` gives of a batch [B, S] over the first `vocabulary` ids, as few rows at a time as
    their logits need.
    """
    results = []
    rows = max(1, logit_tokens(resident.vocab_size, resident.dtype.itemsize) // max(1, input_ids.shape[1]))
    for start in range(0, input_ids.shape[0], rows):
        ids, mask = input_ids[start : start + rows], attention_mask[start : start + rows]
        logits = run_forward(resident, ids, mask, interventions=steering).cut(vocabulary).logits
        count.add(1, int(mask.sum()))
        results.append(next_token_log_probs(cast("torch.Tensor", logits), ids, mask))
    return torch.cat(results)


def next_token_log_probs(logits: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Log-probability in nats of each token after the first, given those before: float32 [B, S - 1], 0.0 where either
    is padding.

    Log-softmax is taken in float32, for a few rows at a time.
    """
    with torch.inference_mode():
        batch, length, vocabulary = logits.shape
        ids = input_ids.to(logits.device) * attention_mask.to(logits.device).bool()
        targets = ids[:, 1:].reshape(-1)
        rows = logits.reshape(
            -1, vocabulary
        )  # all positions: without the last of each text, this would be a copy of the logits
        scored = torch.arange(batch * length, device=logits.device).view(batch, length)[:, :-1].reshape(-1)
        result = torch.empty(len(scored), dtype=torch.float32, device=logits.device)
        chunk = max(1, _ROW_BYTES // (4 * vocabulary))
        for start in range(0, len(scored), chunk):
            part = rows[scored[start : start + chunk]].float()
            chosen = part.gather(1, targets[start : start + chunk, None]).squeeze(1)
            result[start : start + chunk] = chosen - part.logsumexp(-1)
        mask = attention_mask.to(logits.device).bool()
        return (result.reshape(batch, length - 1) * (mask[:, 1:] & mask[:, :-1])).cpu()
