"""The steps of a BatchTopK SAE, with a state that can be resumed: `dictionary_learning`'s trainer, with its arithmetic
rearranged where that is faster. It alone needs that library.
"""

from __future__ import annotations

from typing import Any

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from torch import Tensor

from diffing_mcp.methods.checkpoints import adam_tensors, restore_adam
from diffing_mcp.methods.dictionaries.models import Normalisation, SparseDictionary, batch_top_k
from diffing_mcp.methods.dictionaries.recipe import AUXILIARY, TrainingRecipe


class _FastBatchTopKSAE(BatchTopKSAE):
    """The same function; the bias of the input goes into that of the encoder, which saves a matrix product in the
    backward pass.
    """

    smallest_kept: Tensor

    def __init__(self, activation_dim: int, dict_size: int, k: int) -> None:
        super().__init__(activation_dim, dict_size, k)
        self.count = k

    def encode(self, x: Tensor, return_active: bool = False, use_threshold: bool = True) -> Any:
        weight = self.encoder.weight
        # Negative entries are masked with the others that are not kept, which spares a pass over the batch both ways.
        raw = torch.addmm(self.encoder.bias - weight @ self.b_dec, x, weight.T)
        if use_threshold:
            active = raw * (raw > self.threshold.clamp_min(0))
        else:
            active, self.smallest_kept = batch_top_k(raw, raw.detach(), self.count * len(x))
        return (active, active.detach().amax(0) > 0, raw) if return_active else active


class SAETrainer(BatchTopKTrainer):
    """See `diffing_mcp.methods.dictionaries.training.Trainer`. Loss, threshold and auxiliary loss are the library's."""

    def __init__(self, recipe: TrainingRecipe, d_model: int, first_rows: Tensor, device: torch.device | str) -> None:
        with torch.random.fork_rng():  # the library seeds the global generator
            super().__init__(
                steps=max(2, recipe.steps),
                activation_dim=d_model,
                dict_size=recipe.latents,
                k=recipe.k,
                layer=0,
                lm_name="",
                dict_class=_FastBatchTopKSAE,
                lr=recipe.learning_rate,
                auxk_alpha=AUXILIARY,
                warmup_steps=0,
                threshold_beta=recipe.threshold_memory,
                threshold_start_step=recipe.threshold_start,
                seed=recipe.seed,
                device=str(device),
            )
        self.recipe = recipe
        # The library's constant means that no latent of a short training ever counts as dead.
        self.dead_feature_threshold = recipe.dead_after
        self.parameters = dict(self.ae.named_parameters())
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=recipe.learning_rate, fused=True)
        median = self.geometric_median(first_rows.to(device))
        # The library divides by zero when a row is the median itself.
        self.ae.b_dec.data = median if bool(median.isfinite().all()) else first_rows.to(device).mean(0)

    def step(self, number: int, rows: Tensor) -> float:
        """One update on normalised rows [N, d_model]; returns the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate_at(number)
        loss = self.loss(rows, step=number)
        loss.backward()
        decoder = self.ae.decoder.weight
        decoder.grad -= (decoder.grad * decoder.detach()).sum(0) * decoder.detach()  # its columns have length 1
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decoder.data /= decoder.data.norm(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
        return float(loss.detach())

    def get_auxiliary_loss(self, residual_BD: Tensor, post_relu_acts_BF: Tensor) -> Tensor:
        """The library's, which is given pre-activations here and needs none of them while no latent is dead."""
        if not bool((self.num_tokens_since_fired >= self.dead_feature_threshold).any()):
            return residual_BD.new_zeros(())
        return super().get_auxiliary_loss(residual_BD, torch.relu(post_relu_acts_BF))

    def update_threshold(self, f: Tensor) -> None:
        """As the library's; the smallest activation kept is known already."""
        smallest, threshold = self.ae.smallest_kept, self.ae.threshold
        memory = self.threshold_beta
        self.ae.threshold = torch.where(threshold < 0, smallest, memory * threshold + (1 - memory) * smallest)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        state = {name: value.detach() for name, value in self.parameters.items()}
        state |= {"silent": self.num_tokens_since_fired, "threshold": torch.as_tensor(self.ae.threshold)}
        return state | adam_tensors(self.optimizer, self.parameters)

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Go on from `tensors()` after `steps` steps."""
        for name, value in self.parameters.items():
            value.data.copy_(tensors[name])
        self.num_tokens_since_fired = tensors["silent"].to(self.device)
        self.ae.threshold = tensors["threshold"].to(self.device)
        restore_adam(self.optimizer, self.parameters, tensors, steps)

    def dictionary(self, normalisation: Normalisation) -> SparseDictionary:
        """The dictionary as trained so far, for inference."""
        return from_library(self.ae, normalisation)


def from_library(sae: BatchTopKSAE, normalisation: Normalisation) -> SparseDictionary:
    """One of the library's SAEs in our form."""
    weight, bias = sae.encoder.weight.detach(), sae.b_dec.detach()
    return SparseDictionary(
        encoder=weight.T.clone(),
        encoder_bias=sae.encoder.bias.detach() - weight @ bias,
        decoder=sae.decoder.weight.detach().T.clone(),
        decoder_bias=bias.clone(),
        threshold=torch.as_tensor(sae.threshold).clamp_min(0.0).expand(len(weight)).clone(),
        selection="none",
        normalisation=normalisation,
        sources=1,
    )
