"""Latent scaling in closed form (Minder et al., arXiv 2504.02922): how much of a latent each model really has, whatever
its decoder norms say.

For latent j with activations f [N], a vector d [D] and a target Y [N, D], `beta = argmin |Y - beta f d^T|^2 = sum_n f_n
<d, Y_n> / (|f|^2 |d|^2)`. Targets of each model: `error`, what the reconstruction without this latent leaves of the
activations; `reconstruction`, what the dictionary writes; `activation`, the activations themselves (biases and means
taken off the last two, because f is never negative and would explain a constant). d is the latent's decoder vector in
the model where it is longer: the finetuned one's for whatever may be specific to it, and the same with the models
exchanged.

All sums are scalars a latent, in float64, so the memory is O(latents), and a second pass over stored activations
repeats it without training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffing_mcp.methods.dictionaries.models import SparseDictionary

TARGETS = ("error", "reconstruction", "activation")
MAX_ERROR_RATIO = 0.2
MAX_RECONSTRUCTION_RATIO = 0.5
"""Ratios beta_other / beta_own below which a latent counts as one model's own: the paper's."""
_LIMITS = {"error": MAX_ERROR_RATIO, "reconstruction": MAX_RECONSTRUCTION_RATIO}
BASE, FINETUNED = 0, 1


@dataclass(frozen=True)
class LatentScaling:
    """Per latent [F], float64 on the CPU; NaN where a latent never fired.

    Attributes:
        count: tokens at which it fired; documents: documents with such tokens.
        beta: target -> [2, F], of the base and of the finetuned model.
        ratio: target -> [F], beta of the base over beta of the finetuned model (nu): 0 = finetuned only, 1 = shared.
        evidence: [2, F], how many standard errors (over documents) the ratio other / own lies below both of the limits,
            for latents as the base's own and as the finetuned model's own; negative: it is above one of them.
    """

    count: Tensor
    documents: Tensor
    beta: dict[str, Tensor]
    ratio: dict[str, Tensor]
    evidence: Tensor


class LatentScalingSums:
    """Feed blocks with `update`, in the order of the text, then read `result`."""

    def __init__(self, dictionary: SparseDictionary) -> None:
        self._dictionary = dictionary
        device = dictionary.decoder.device
        self._device = torch.device("cpu") if device.type == "mps" else device  # no float64 there
        sides = torch.stack([dictionary.decoder_of(BASE), dictionary.decoder_of(FINETUNED)])
        longer = sides.norm(dim=2).argmax(0)
        self._direction = sides[longer, torch.arange(dictionary.num_latents, device=device)]
        self._own = (sides * self._direction).sum(2)
        latents = dictionary.num_latents

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, latents, dtype=torch.float64, device=self._device)

        self._count, self._documents, self._squares = zeros(), zeros(), zeros()
        self._products = {target: zeros(2) for target in TARGETS}
        self._contrast = {(target, own): zeros(2) for target in _LIMITS for own in (BASE, FINETUNED)}
        self._open: tuple[int, dict[Any, Tensor]] | None = None
        """The last document so far, which may go on in the next block, and its sums [1, F]."""

    def update(self, rows: Tensor, activations: Tensor, samples: Tensor) -> None:
        """Normalised rows [N, 2 * D], their latent activations [N, F] and the document of each row [N] (equal ones
        adjacent).
        """
        dictionary = self._dictionary
        _, group = torch.unique_consecutive(samples.to(activations.device), return_inverse=True)
        groups = int(group[-1]) + 1
        self._count += (activations > 0).sum(0).to(self._device)
        self._squares += activations.square().sum(0).to(self._device, torch.float64)
        sums: dict[Any, Tensor] = {"fired": self._by_document(activations, group, groups)}
        written = activations @ dictionary.decoder
        targets = {"reconstruction": written, "error": rows - written - dictionary.decoder_bias, "activation": rows}
        for target, values in targets.items():
            sides = []
            for side in (BASE, FINETUNED):
                projected = values.view(len(rows), 2, -1)[:, side] @ self._direction.T
                if target == "error":  # without this latent, its own part is left over as well
                    projected = torch.addcmul(projected, activations, self._own[side])
                sides.append(self._by_document(projected.mul_(activations), group, groups))
            self._products[target] += torch.stack([side.sum(0) for side in sides])
            if target in _LIMITS:
                for own in (BASE, FINETUNED):
                    sums[target, own] = _LIMITS[target] * sides[own] - sides[1 - own]
        if self._open is not None:
            document, begun = self._open
            if document == int(samples[0]):
                for name, values in begun.items():
                    sums[name][0] += values[0]
            else:
                self._close(begun)
        self._close({name: values[:-1] for name, values in sums.items()})
        self._open = int(samples[-1]), {name: values[-1:].clone() for name, values in sums.items()}

    def _close(self, sums: dict[Any, Tensor]) -> None:
        """Count whole documents: sums [G, F] of the activations (`fired`) and of each contrast."""
        self._documents += (sums["fired"] > 0).sum(0)
        for name, total in self._contrast.items():
            total += torch.stack([sums[name].sum(0), sums[name].square().sum(0)])

    def _by_document(self, values: Tensor, group: Tensor, groups: int) -> Tensor:
        """Sums [G, F] in float64 over the rows of each document."""
        summed = values.new_zeros(groups, values.shape[1]).index_add_(0, group, values)
        return summed.to(self._device, torch.float64)

    def result(self) -> LatentScaling:
        """The coefficients, their ratios and the evidence. No block may come after it."""
        if self._open is not None:
            self._close(self._open[1])
            self._open = None
        length = self._direction.square().sum(1).to(self._device, torch.float64)
        beta = {target: (product / (self._squares * length)).cpu() for target, product in self._products.items()}
        evidence = torch.full((2, len(length)), math.inf, dtype=torch.float64)
        for (_, own), (total, squares) in self._contrast.items():
            # Sums over independent documents: their variance is estimated by that of the documents' sums about their
            # mean.
            variance = squares - total.square() / self._documents.clamp_min(1)
            score = total / (variance * self._documents / (self._documents - 1).clamp_min(1)).clamp_min(1e-300).sqrt()
            evidence[own] = torch.minimum(evidence[own], score.cpu())
        evidence[:, (self._documents < 2).cpu()] = -math.inf
        return LatentScaling(
            count=self._count.cpu(),
            documents=self._documents.cpu(),
            beta=beta,
            ratio={target: values[BASE] / values[FINETUNED] for target, values in beta.items()},
            evidence=evidence,
        )


class ActivationScalingSums:
    """Latent scaling of a dictionary over one source (differences) towards the activations of each model: how much of
    the latent's direction the base and the finetuned model have while it fires. Means are taken off. Where the
    dictionary is right, the coefficients differ by about 1."""

    def __init__(self, dictionary: SparseDictionary) -> None:
        self._decoder = dictionary.decoder
        self._scale = dictionary.normalisation.scale
        latents, width = dictionary.decoder.shape
        self._fired = torch.zeros(2, latents, dtype=torch.float64)  # sums of activations and of squared ones
        self._products = torch.zeros(2, latents, dtype=torch.float64)
        self._totals = torch.zeros(2, width, dtype=torch.float64)
        self._rows = 0

    def update(self, base: Tensor, finetuned: Tensor, activations: Tensor) -> None:
        """Rows [N, D] of both models in units of the residual stream, and the latents' activations [N, F] on their
        differences.
        """
        self._rows += len(base)
        self._fired += torch.stack([activations.sum(0), activations.square().sum(0)]).cpu()
        for side, rows in enumerate((base, finetuned)):
            self._totals[side] += rows.double().sum(0).cpu() * self._scale
            projected = (rows.to(self._decoder.device) * self._scale) @ self._decoder.T
            self._products[side] += (projected * activations).sum(0).cpu()

    def result(self) -> Tensor:
        """Coefficients [2, F] float64 of the base and of the finetuned model; NaN where a latent never fired."""
        decoder = self._decoder.cpu().double()
        constant = (self._totals / max(1, self._rows)) @ decoder.T * self._fired[0]
        return (self._products - constant) / (self._fired[1] * decoder.square().sum(1))
