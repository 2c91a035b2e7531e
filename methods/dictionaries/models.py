"""One form for every trained dictionary: an SAE on one source of activations, or a crosscoder on the base and the
finetuned model's, side by side.

A latent fires when its ReLU pre-activation times its weight (`selection`) exceeds the threshold; it then writes its
decoder vector into every source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Selection = Literal["sum", "joint", "none"]
"""What a pre-activation is multiplied by before it is compared: the sum over sources of the decoder norms (crosscoders:
Minder et al., arXiv 2504.02922), the norm of the joined decoder vector (as an SAE on joined activations), or nothing.
"""
_SAMPLED = 65_536
_MARGIN = 1.3
"""Of `nth_largest`: entries looked at first, and how many more than expected are kept of them."""


@dataclass(frozen=True)
class Normalisation:
    """`(x - mean) * scale`, with one scale for all dimensions and sources, so that relative variances stay.

    Attributes:
        mean: [S * D] float32, in the units of the residual stream.
        scale: units of the dictionary per unit of the residual stream.
    """

    mean: Tensor
    scale: float

    def apply(self, rows: Tensor) -> Tensor:
        """Rows [N, S * D] as the dictionary reads them, on their own device."""
        return (rows - self.mean.to(rows.device)) * self.scale

    @staticmethod
    def none(width: int) -> Normalisation:
        """Rows as they are, for published dictionaries that read them so."""
        return Normalisation(torch.zeros(width), 1.0)


@dataclass(frozen=True)
class SparseDictionary:
    """A trained dictionary of F latents over S sources of width D (S = 1: SAE; S = 2: crosscoder, base before
    finetuned). Float32.

    Attributes:
        encoder: [S * D, F]; encoder_bias: [F].
        decoder: [F, S * D]; decoder_bias: [S * D].
        threshold: [F], of the weighted pre-activation; 0 for ReLU dictionaries.
        selection: see `Selection`.
        normalisation: applied to activations before `encode`.
        sources: S.
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    threshold: Tensor
    selection: Selection
    normalisation: Normalisation
    sources: int

    @property
    def num_latents(self) -> int:
        """F."""
        return len(self.encoder_bias)

    @property
    def width(self) -> int:
        """D, the width of one source."""
        return len(self.decoder_bias) // self.sources

    def to(self, device: torch.device | str) -> SparseDictionary:
        """This dictionary on another device (the normalisation follows its rows)."""
        moved = {
            name: getattr(self, name).to(device)
            for name in ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold")
        }
        return replace(self, **moved)

    def encode(self, rows: Tensor) -> Tensor:
        """Latent activations [N, F] of normalised rows [N, S * D]; each row's do not depend on the others'."""
        activations = torch.relu(torch.addmm(self.encoder_bias, rows, self.encoder))
        return activations * (
            activations * selection_weights(self.decoder, self.sources, self.selection) > self.threshold
        )

    def decode(self, activations: Tensor) -> Tensor:
        """Normalised reconstructions [N, S * D]."""
        return torch.addmm(self.decoder_bias, activations, self.decoder)

    def decoder_of(self, source: int) -> Tensor:
        """[F, D]: what the latents write into one source, in normalised units."""
        return self.decoder.view(self.num_latents, self.sources, self.width)[:, source]


def selection_weights(decoder: Tensor, sources: int, selection: Selection) -> Tensor:
    """[F] weights of pre-activations for a decoder [F, S * D]."""
    if selection == "none":
        return decoder.new_ones(len(decoder))
    norms = decoder.view(len(decoder), sources, -1).norm(dim=2)
    return norms.sum(1) if selection == "sum" else norms.norm(dim=1)


def nth_largest(values: Tensor, count: int) -> Tensor:
    """The `count`-th largest entry of a tensor of any shape, as a scalar tensor. Exact.

    A strided sample gives a bound that nearly all entries stay below; only those above it are ordered. That is several
    times faster than `topk` over everything, where `count` is a few percent.
    """
    flat = values.detach().flatten()
    count = max(1, min(count, flat.numel()))
    sample = flat[:: max(1, flat.numel() // _SAMPLED)]
    rank = min(len(sample), int(_MARGIN * count * len(sample) / flat.numel()) + 64)
    bound = torch.topk(sample, rank, sorted=True).values[-1]
    candidates = flat[flat > bound]
    return torch.topk(candidates if len(candidates) >= count else flat, count, sorted=False).values.min()


def batch_top_k(activations: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Activations [N, F] with all but the `count` largest keys set to zero, and the smallest key kept (0 when fewer are
    positive).
    """
    smallest = nth_largest(keys, count)
    return activations * ((keys >= smallest) & (keys > 0)), smallest.clamp_min(0)
