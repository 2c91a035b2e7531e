"""The one way to change the residual stream: forward passes, generation and steering-vector organisms all use
`applied`.

An intervention acts on the residual stream AFTER layer `layer` (the output of the block), before anything reads it: the
hidden states that `LoadedPair.forward` returns for that layer already contain it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch

from diffing_mcp.core.errors import InvalidInput

Mode = Literal["add", "replace", "remove", "project"]
Positions = Literal["all", "prompt", "generated", "last_prompt_token"]


class Layered(Protocol):
    """What `applied` needs of a model: a `ResidentModel`, or a model in training."""

    @property
    def num_layers(self) -> int:
        """Number of blocks."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""

    def layer_module(self, layer: int) -> torch.nn.Module:
        """The torch module of block `layer`."""


@dataclass(frozen=True)
class PromptTokens:
    """Some tokens of each prompt: `indices` [B, K] long, counted from the prompt's first token that is not padding; -1
    is an unused place.

    They are changed in the pass that carries the prompt, and never after it.
    """

    indices: torch.Tensor


@dataclass(frozen=True)
class Intervention:
    """One change of the residual stream h [B, S, d_model] after layer `layer`.

    mode:
        add      h + strength * v
        replace  strength * v in place of h
        remove   h - strength * (h . u) u with u = v / |v| (strength 1 removes the direction)
        project  h + strength * (t - h . u) u (strength 1 makes the projection on u equal `targets` t [B, S], one number
        a token); plain
                 forwards only. A subspace is one such intervention for each vector of an orthonormal basis.
    positions:
        all                every token
        prompt             tokens of the prompt (of a plain forward: every token)
        generated          tokens after the prompt (of a plain forward: none)
        last_prompt_token  the last token of the prompt that is not padding
    A boolean tensor [B, S] instead names positions of a plain forward freely, and `PromptTokens` tokens of each prompt,
    in generation too. `vector` is [d_model], or [B, d_model] for one vector a row of the batch, or with `PromptTokens`
    [B, K, d_model] for one a token. `decay_tokens` N lets the strength fall linearly in generation: full on the prompt,
    strength * (N - i) / N on the i-th new token, nothing from the N-th on. None: the same strength throughout.
    `match_norm`: v is first rescaled to the length of the h that it meets, |h| v / |v| (a zero vector stays zero), so
    that `add` is the injection of activation oracles (arXiv 2512.15674): h + strength * |h| * v / |v|. For `add` and
    `replace`.
    """

    layer: int
    vector: torch.Tensor
    strength: float = 1.0
    mode: Mode = "add"
    positions: Positions | torch.Tensor | PromptTokens = "all"
    targets: torch.Tensor | None = None
    decay_tokens: int | None = None
    match_norm: bool = False

    def strength_at(self, step: int) -> float:
        """Strength in pass `step`: 0 carries the prompt, i the i-th new token."""
        return self.strength if self.decay_tokens is None else self.strength * max(0.0, 1.0 - step / self.decay_tokens)

    @property
    def differs_by_row(self) -> bool:
        """Whether rows of a batch have vectors or places of their own."""
        return self.vector.ndim > 1 or isinstance(self.positions, PromptTokens)

    def of_rows(self, rows: torch.Tensor) -> Intervention:
        """This intervention on a batch made of some rows [N] of the batch it was for, with repetitions."""
        vector = self.vector if self.vector.ndim == 1 else self.vector[rows.to(self.vector.device)]
        positions = self.positions
        if isinstance(positions, PromptTokens):
            positions = PromptTokens(positions.indices[rows.to(positions.indices.device)])
        return replace(self, vector=vector, positions=positions)


def check(interventions: Sequence[Intervention], num_layers: int, d_model: int) -> None:
    """Raise InvalidInput for a layer, mode or vector that this model cannot take."""
    for intervention in interventions:
        if not 0 <= intervention.layer < num_layers:
            raise InvalidInput(
                f"An intervention names layer {intervention.layer}; this model has layers 0 to {num_layers - 1}."
            )
        shape = tuple(intervention.vector.shape)
        places = (
            tuple(intervention.positions.indices.shape) if isinstance(intervention.positions, PromptTokens) else None
        )
        if shape[-1] != d_model or len(shape) not in (1, 2, 3) or (len(shape) == 3 and shape[:2] != places):
            raise InvalidInput(
                f"A vector of shape {shape} does not fit a residual stream of {d_model} "
                f"dimensions{f' at places {places}' if places else ''}."
            )
        if intervention.mode not in ("add", "replace", "remove", "project"):
            raise InvalidInput(
                f"The mode of an intervention is add, replace, remove or project, not {intervention.mode!r}."
            )
        if (intervention.mode == "project") != (intervention.targets is not None) or (
            intervention.targets is not None and places
        ):
            raise InvalidInput(
                "An intervention of mode project needs targets [batch, tokens] and no PromptTokens, and no other mode "
                "takes them."
            )
        if intervention.decay_tokens is not None and intervention.decay_tokens < 1:
            raise InvalidInput(f"decay_tokens is at least 1, not {intervention.decay_tokens}.")
        if intervention.match_norm and intervention.mode not in ("add", "replace"):
            raise InvalidInput(f"match_norm goes with add and replace, not with {intervention.mode!r}.")
        if not bool(torch.isfinite(intervention.vector).all()):
            raise InvalidInput("The vector of an intervention holds values that are not finite.")


def _selected(
    intervention: Intervention, hidden: torch.Tensor, attention_mask: torch.Tensor, first_pass: bool
) -> torch.Tensor | None:
    """Positions [B, S] to change as a boolean tensor; None means all of them."""
    positions = intervention.positions
    if isinstance(positions, torch.Tensor):
        if tuple(positions.shape) != tuple(hidden.shape[:2]):
            raise InvalidInput(
                f"The position mask has shape {tuple(positions.shape)}, the batch {tuple(hidden.shape[:2])}."
            )
        return positions.to(device=hidden.device, dtype=torch.bool)
    if positions == "all" or (positions == "prompt" and first_pass) or (positions == "generated" and not first_pass):
        return None
    selected = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if positions == "last_prompt_token" and first_pass:
        width = attention_mask.shape[1]
        last = width - 1 - attention_mask.flip(1).long().argmax(dim=1)
        selected[torch.arange(hidden.shape[0], device=hidden.device), last.to(hidden.device)] = True
    return selected


def unit_length(vector: torch.Tensor) -> torch.Tensor:
    """Vectors [..., d_model] of length 1; zero stays zero."""
    return vector / vector.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def projection(hidden: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Projection [..., 1] float32 of a stream [..., d_model] on the direction of a vector: what mode `project` sets."""
    return (hidden.float() * unit_length(vector.float())).sum(-1, keepdim=True)


def changed(
    intervention: Intervention, hidden: torch.Tensor, attention_mask: torch.Tensor, step: int = 0
) -> torch.Tensor:
    """The residual stream after one intervention in pass `step`; computed in float32 and returned in the stream's
    dtype.
    """
    strength = intervention.strength_at(step)
    vector = intervention.vector.to(device=hidden.device, dtype=torch.float32)
    if vector.ndim > 1 and vector.shape[0] != hidden.shape[0]:
        raise InvalidInput(f"There are {vector.shape[0]} vectors for a batch of {hidden.shape[0]}.")
    if vector.ndim == 2:
        vector = vector[:, None, :]
    if isinstance(intervention.positions, PromptTokens):
        return (
            _changed_at(intervention, intervention.positions, vector, hidden, attention_mask) if step == 0 else hidden
        )
    selected = _selected(intervention, hidden, attention_mask, first_pass=step == 0)
    result = _changed_stream(intervention, hidden.float(), vector, strength).to(hidden.dtype)
    return result if selected is None else torch.where(selected[..., None], result, hidden)


def _targets(intervention: Intervention, stream: torch.Tensor) -> torch.Tensor:
    """Projections to reach: [B, S, 1], or 0 everywhere when the direction is removed."""
    if intervention.targets is None:
        return stream.new_zeros(())
    if tuple(intervention.targets.shape) != tuple(stream.shape[:2]):
        raise InvalidInput(
            f"The targets have shape {tuple(intervention.targets.shape)}, the batch {tuple(stream.shape[:2])}."
        )
    return intervention.targets.to(stream)[..., None]


def _changed_stream(
    intervention: Intervention, stream: torch.Tensor, vector: torch.Tensor, strength: float
) -> torch.Tensor:
    """Every token of a stream [..., d_model] changed, by a vector that broadcasts to it; all in float32."""
    if intervention.mode in ("remove", "project"):
        return stream + strength * (_targets(intervention, stream) - projection(stream, vector)) * unit_length(vector)
    if intervention.match_norm:
        vector = stream.norm(dim=-1, keepdim=True) * unit_length(vector)
    if intervention.mode == "add":
        return stream + strength * vector
    return (strength * vector).expand_as(stream)


def _changed_at(
    intervention: Intervention,
    places: PromptTokens,
    vector: torch.Tensor,
    hidden: torch.Tensor,
    attention_mask: torch.Tensor,
) -> torch.Tensor:
    """The stream with only the named tokens of each prompt changed, in the pass that carries the prompt."""
    indices = places.indices.to(hidden.device)
    mask = attention_mask.to(hidden.device)
    if indices.ndim != 2 or indices.shape[0] != hidden.shape[0] or bool((indices >= mask.sum(1, keepdim=True)).any()):
        raise InvalidInput(
            f"Places of shape {tuple(indices.shape)} do not lie in the prompts of a batch of {tuple(hidden.shape[:2])}."
        )
    row, slot = (indices >= 0).nonzero(as_tuple=True)
    token = indices[row, slot] + mask.long().argmax(1)[row]
    chosen = vector.expand(*indices.shape, vector.shape[-1])[row, slot]
    new = _changed_stream(intervention, hidden[row, token].float(), chosen, intervention.strength_at(0)).to(
        hidden.dtype
    )
    return hidden.index_put((row, token), new)


@contextmanager
def applied(
    resident: Layered, interventions: Sequence[Intervention], attention_mask: torch.Tensor, step: int = 0
) -> Iterator[None]:
    """Apply the interventions, in order, to every pass of the model inside the context; `step` passes over the same
    texts went before it.

    `attention_mask` [B, S] is that of the prompt. In generation, the first pass carries the prompt and every further
    pass one new token.

    Plain module hooks, put in front of those of the tracing, so that the same code serves traced forwards and
    generation.
    """
    check(interventions, resident.num_layers, resident.d_model)
    handles = []
    for layer in sorted({intervention.layer for intervention in interventions}):
        chosen = [intervention for intervention in interventions if intervention.layer == layer]
        passes = [step]

        def hook(
            module: torch.nn.Module,
            arguments: Any,
            output: Any,
            chosen: list[Intervention] = chosen,
            passes: list[int] = passes,
        ) -> torch.Tensor | tuple[Any, ...]:
            hidden = output[0] if isinstance(output, tuple) else output
            for intervention in chosen:
                hidden = changed(intervention, hidden, attention_mask, step=passes[0])
            passes[0] += 1
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handles.append(resident.layer_module(layer).register_forward_hook(hook, prepend=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
