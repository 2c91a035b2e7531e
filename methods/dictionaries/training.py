"""The one training loop of all dictionaries: seeded batches from a reader, validation on held-out tokens, checkpoints,
exact resume, early stop.

A training is decided by its recipe and its rows alone: the batch of a step follows from the seed and the step, and a
step from the state before it, so a resumed training ends in the same dictionary, bit for bit on the same machine.
Checkpoints are safetensors, written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from diffing_mcp.core.errors import Cancelled, InvalidInput
from diffing_mcp.core.extras import SAE_TRAINING, install_alone
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.methods.checkpoints import read_checkpoint, save_checkpoint
from diffing_mcp.methods.dictionaries.evaluation import explained_variance
from diffing_mcp.methods.dictionaries.models import Normalisation, SparseDictionary
from diffing_mcp.methods.dictionaries.recipe import CurvePoint, TrainingRecipe
from diffing_mcp.preprocessing.activation_rows import Moments
from diffing_mcp.preprocessing.activations import ActivationBlock, PairedActivations

RowsOf = Callable[[ActivationBlock], Tensor]
"""What a dictionary reads of a block: rows [N, S * D]."""

VALIDATION_ROWS = 16_384
_NORMALISATION_ROWS = 1_000_000
_READ_ROWS = 4096
_LEAST_GAIN = 1e-4
"""A held-out fraction of variance explained counts as better from this much on."""


class Trainer(Protocol):
    """The parameters of a dictionary and what a step does to them."""

    def step(self, number: int, rows: Tensor) -> float:
        """One update on normalised rows; the loss before it."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Go on from `tensors()` after `steps` steps."""

    def dictionary(self, normalisation: Normalisation) -> SparseDictionary:
        """The dictionary as trained so far."""


@dataclass(frozen=True)
class Training:
    """A finished training."""

    dictionary: SparseDictionary
    curve: list[CurvePoint]
    steps: int
    stopped_early: bool


def differences(block: ActivationBlock) -> Tensor:
    """[N, D], finetuned minus base: what an SAE on differences reads."""
    return block.difference


def both_sides(block: ActivationBlock) -> Tensor:
    """[N, 2 * D], base before finetuned: what a crosscoder reads."""
    return torch.cat([block.base, block.finetuned], dim=1)


def fit_normalisation(reader: PairedActivations, rows_of: RowsOf, stop: int) -> Normalisation | None:
    """Mean of the rows before `stop`, and the scale that gives their dimensions a variance of 1 on average; None when
    they do not vary.

    Of more than a million rows the first million counts.
    """
    moments: Moments | None = None
    for block in reader.blocks(_READ_ROWS, stop=min(stop, _NORMALISATION_ROWS)):
        found = Moments.of(rows_of(block))
        moments = found if moments is None else moments.merged(found)
    if moments is None or not float(moments.squares.sum()):
        return None
    variance = float(moments.std.square().mean())
    return Normalisation(moments.mean.float(), variance**-0.5)


def batches(reader: PairedActivations, recipe: TrainingRecipe, stop: int, first: int = 0) -> Iterator[ActivationBlock]:
    """Endless full batches of the rows before `stop`, from that of step `first` on; every epoch in another order."""
    rows = min(recipe.batch_rows, stop)
    in_epoch = stop // rows
    epoch, skipped = divmod(first, in_epoch)
    while True:
        yield from islice(reader.blocks(rows, seed=recipe.seed * 1_000_003 + epoch, stop=stop), skipped, in_epoch)
        epoch, skipped = epoch + 1, 0


def make_trainer(recipe: TrainingRecipe, d_model: int, first_rows: Tensor, device: torch.device | str) -> Trainer:
    """A fresh trainer.

    Raises:
        InvalidInput: the library that trains SAEs is not installed.
    """
    if recipe.kind == "sae":
        try:
            from diffing_mcp.methods.dictionaries.sae_trainer import SAETrainer
        except ModuleNotFoundError as error:
            raise InvalidInput(
                f"SAEs are trained with dictionary-learning, of which {error.name} is missing: "
                f"`{install_alone(*SAE_TRAINING)}`."
            ) from error
        return SAETrainer(recipe, d_model, first_rows, device)
    from diffing_mcp.methods.dictionaries.crosscoder_trainer import CrosscoderTrainer

    return CrosscoderTrainer(recipe, d_model, first_rows, device)


def train(
    reader: PairedActivations,
    rows_of: RowsOf,
    recipe: TrainingRecipe,
    normalisation: Normalisation,
    train_stop: int,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress = silent,
) -> Training:
    """Train on rows [0, `train_stop`) of the reader, validate on the rest.

    With `checkpoint` (a file) the state is kept there at every validation and when the work is cancelled, and a
    training that finds a checkpoint of the same recipe and rows goes on from it.

    Raises:
        Cancelled: from `progress`.
    """
    first = next(batches(reader, recipe, train_stop))
    trainer = make_trainer(recipe, reader.d_model, normalisation.apply(rows_of(first)), device)
    identity = {"recipe": recipe.model_dump_json(), "rows": f"{reader.content_hash}:{train_stop}"}
    done, curve = _restore(checkpoint, identity, trainer)
    since, stopped = _Since(), _stale(curve, recipe)
    stream = batches(reader, recipe, train_stop, done)
    try:
        while done < recipe.steps and not stopped:
            rows = normalisation.apply(rows_of(next(stream)).to(device))
            since.add(trainer.step(done, rows))
            done += 1
            if done % recipe.validate_every == 0 or done == recipe.steps:
                curve.append(_point(done, since.mean(), trainer, recipe, reader, rows_of, normalisation, train_stop))
                stopped = _stale(curve, recipe)
                _save(checkpoint, identity, trainer, done, curve)
            progress(done, recipe.steps, _message(since, curve))
    except Cancelled:
        _save(checkpoint, identity, trainer, done, curve)
        raise
    return Training(trainer.dictionary(normalisation), curve, done, stopped and done < recipe.steps)


class _Since:
    """Losses since the last point of the curve."""

    def __init__(self) -> None:
        self.total, self.count, self.last = 0.0, 0, 0.0

    def add(self, loss: float) -> None:
        self.total, self.count, self.last = self.total + loss, self.count + 1, loss

    def mean(self) -> float:
        mean = self.total / max(1, self.count)
        self.total, self.count = 0.0, 0
        return mean


def _message(since: _Since, curve: list[CurvePoint]) -> str:
    explained = curve[-1].variance_explained if curve else None
    return f"loss {since.last:.4g}" + (
        f", held-out variance explained {explained:.3f}" if explained is not None else ""
    )


def _point(
    done: int,
    loss: float,
    trainer: Trainer,
    recipe: TrainingRecipe,
    reader: PairedActivations,
    rows_of: RowsOf,
    normalisation: Normalisation,
    train_stop: int,
) -> CurvePoint:
    explained = None
    held_out = min(reader.num_tokens, train_stop + VALIDATION_ROWS)
    # Before the threshold exists, inference would let every latent fire.
    if held_out > train_stop and (recipe.kind == "l1" or done > recipe.threshold_start):
        blocks = reader.blocks(_READ_ROWS, start=train_stop, stop=held_out)
        explained = explained_variance(trainer.dictionary(normalisation), (rows_of(block) for block in blocks)).total
    return CurvePoint(step=done, loss=loss, variance_explained=explained)


def _stale(curve: list[CurvePoint], recipe: TrainingRecipe) -> bool:
    """Whether the last `patience` validations brought nothing."""
    found = [point.variance_explained for point in curve if point.variance_explained is not None]
    if recipe.patience is None or len(found) <= recipe.patience:
        return False
    return max(found[-recipe.patience :]) < max(found[: -recipe.patience]) + _LEAST_GAIN


def _save(path: Path | None, identity: dict[str, str], trainer: Trainer, done: int, curve: list[CurvePoint]) -> None:
    if path is not None and done:
        notes = {"steps": str(done), "curve": json.dumps([point.model_dump() for point in curve])}
        save_checkpoint(path, trainer.tensors(), identity | notes)


def _restore(path: Path | None, identity: dict[str, str], trainer: Trainer) -> tuple[int, list[CurvePoint]]:
    """Steps done and the curve so far; nothing when there is no checkpoint of this training."""
    found = read_checkpoint(path, identity) if path is not None else None
    if found is None:
        return 0, []
    tensors, notes = found
    trainer.restore(tensors, int(notes["steps"]))
    return int(notes["steps"]), [CurvePoint(**point) for point in json.loads(notes["curve"])]
