"""The steps of a crosscoder, with a state that can be resumed.

BatchTopK (Minder et al., arXiv 2504.02922) or L1 (Lindsey et al., 2024), with dedicated latents as an option; its loss
is the squared error summed over both sources' dimensions; BatchTopK adds the auxiliary loss of dead latents, L1 the
penalty `l1_weight * sum_j f_j * (|d_j base| + |d_j finetuned|)`. Dedicated latents (arXiv 2602.11729) read and write
one source alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffing_mcp.methods.checkpoints import adam_tensors, restore_adam
from diffing_mcp.methods.dictionaries.models import (
    Normalisation,
    Selection,
    SparseDictionary,
    batch_top_k,
    selection_weights,
)
from diffing_mcp.methods.dictionaries.recipe import TrainingRecipe

SOURCES = 2
_INITIAL_NORM = 1.0
"""Decoder norm of each source at the start."""
_CROSSCODER_AUXILIARY = 1 / 8
"""Weight of the auxiliary loss, in the units of the loss. With 1/32 latents of rare features (0.5 % of the tokens)
merge or come late.
"""
_SELECTION: Selection = "sum"


class CrosscoderTrainer:
    """The parameters, the optimiser and what a step does. See `diffing_mcp.methods.dictionaries.training.Trainer`."""

    def __init__(self, recipe: TrainingRecipe, d_model: int, first_rows: Tensor, device: torch.device | str) -> None:
        self.recipe = recipe
        generator = torch.Generator().manual_seed(recipe.seed)
        directions = torch.randn(recipe.latents, d_model, generator=generator)
        directions = directions / directions.norm(dim=1, keepdim=True)
        self.mask = dedicated_mask(recipe, d_model).to(device) if recipe.dedicated else None
        # Both sources start with the same vectors: a latent has to learn to be of one model alone.
        decoder = (_INITIAL_NORM * directions).repeat(1, SOURCES).to(device)
        self.decoder = (decoder if self.mask is None else decoder * self.mask).requires_grad_()
        self.encoder = (self.decoder.detach().T / _INITIAL_NORM / SOURCES).contiguous().requires_grad_()
        self.encoder_bias = torch.zeros(recipe.latents, device=device, requires_grad=True)
        self.decoder_bias = torch.zeros(SOURCES * d_model, device=device, requires_grad=True)
        self.parameters = {
            "encoder": self.encoder,
            "encoder_bias": self.encoder_bias,
            "decoder": self.decoder,
            "decoder_bias": self.decoder_bias,
        }
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=recipe.learning_rate, fused=True)
        self.silent = torch.zeros(recipe.latents, dtype=torch.int64, device=device)
        self.threshold = torch.tensor(-1.0, device=device)

    def step(self, number: int, rows: Tensor) -> float:
        """One update on normalised rows [N, 2 * d_model]; returns the mean squared error a token before it."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(number)
        raw = torch.addmm(self.encoder_bias, rows, self.encoder)
        weights = selection_weights(self.decoder, SOURCES, _SELECTION)
        if recipe.kind == "batch_top_k":
            active, smallest = batch_top_k(raw, raw.detach() * weights.detach(), recipe.k * len(rows))
            self._follow(number, smallest)
        else:
            active = torch.relu(raw)
        error = torch.addmm(self.decoder_bias, active, self.decoder) - rows
        squared = error.square().sum(1).mean()
        penalty = (
            recipe.l1_weight * (active.mean(0) * weights).sum()
            if recipe.kind == "l1"
            else _CROSSCODER_AUXILIARY * self._auxiliary(raw, error.detach())
        )
        loss = squared + penalty
        self.silent += len(rows)
        self.silent[active.detach().amax(0) > 0] = 0
        loss.backward()
        self._update()
        return float(squared.detach())

    def _update(self) -> None:
        if self.mask is not None and self.decoder.grad is not None and self.encoder.grad is not None:
            self.decoder.grad *= self.mask
            self.encoder.grad *= self.mask.T
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _follow(self, number: int, smallest: Tensor) -> None:
        if number < self.recipe.threshold_start:
            return
        memory = self.recipe.threshold_memory
        self.threshold = smallest if self.threshold < 0 else memory * self.threshold + (1 - memory) * smallest

    def _auxiliary(self, raw: Tensor, error: Tensor) -> Tensor:
        """What the strongest dead latents leave of the error, in the units of the loss: over its variance, as where the
        loss is normalised too, it would be too small to bring a latent back."""
        dead = (self.silent >= self.recipe.dead_after).nonzero().squeeze(1)
        if not len(dead):
            return error.new_zeros(())
        chosen = torch.relu(raw[:, dead])
        count = min(len(dead), error.shape[1] // 2)
        if count < len(dead):
            least = torch.topk(chosen.detach(), count, dim=1, sorted=False).values.amin(1, keepdim=True)
            chosen = chosen * (chosen >= least)
        return (chosen @ self.decoder[dead] + error).square().sum(1).mean()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        state = {name: value.detach() for name, value in self.parameters.items()} | {
            "silent": self.silent,
            "threshold": self.threshold,
        }
        return state | adam_tensors(self.optimizer, self.parameters)

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Go on from `tensors()` after `steps` steps."""
        for name, value in self.parameters.items():
            value.data.copy_(tensors[name])
        self.silent = tensors["silent"].to(self.silent.device)
        self.threshold = tensors["threshold"].to(self.threshold.device)
        restore_adam(self.optimizer, self.parameters, tensors, steps)

    def dictionary(self, normalisation: Normalisation) -> SparseDictionary:
        """The dictionary as trained so far, for inference."""
        values = {name: value.detach().clone() for name, value in self.parameters.items()}
        threshold = self.threshold.clamp_min(0.0) if self.recipe.kind == "batch_top_k" else self.threshold.new_zeros(())
        return SparseDictionary(
            **values,
            threshold=threshold.expand(self.recipe.latents).clone(),
            selection=_SELECTION,
            normalisation=normalisation,
            sources=SOURCES,
        )


def dedicated_mask(recipe: TrainingRecipe, d_model: int) -> Tensor:
    """[F, 2 * d_model] of 0 and 1: the first latents are the base's alone, the last as many the finetuned model's."""
    count = int(recipe.dedicated * recipe.latents)
    mask = torch.ones(recipe.latents, SOURCES, d_model)
    mask[:count, 1] = 0
    mask[recipe.latents - count :, 0] = 0
    return mask.flatten(1)
