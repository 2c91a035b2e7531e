"""From parameters to a dictionary over a pair's activations: collected, split, trained (or loaded), and kept in the data folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from methods.dictionaries.files import load_dictionary, save_dictionary
from methods.dictionaries.models import SparseDictionary
from methods.dictionaries.params import DictionaryParams
from methods.dictionaries.recipe import Kind, TrainingRecipe
from methods.dictionaries.stored import dictionaries_folder
from methods.dictionaries.training import CurvePoint, RowsOf, Training, fit_normalisation, train
from model_pairs.layers import resolve_layer
from organisms.errors import InvalidInput
from organisms.progress import Progress
from preprocessing.activation_outliers import without_outliers
from preprocessing.activation_sources import activations_of
from preprocessing.activations import ActivationBlock, PairedActivations

if TYPE_CHECKING:
    from methods.contract import RunWriter
    from model_pairs.pair import LoadedPair

READ_ROWS = 2048
RELATIVE_LEARNING_RATE = 0.04
"""Learning rate in units of an entry of a decoder vector of length 1."""


@dataclass(frozen=True)
class Prepared:
    """A dictionary and the activations that it is read on.

    Attributes:
        train_stop: first held-out row.
        training: None for a loaded dictionary.
    """

    reader: PairedActivations
    dictionary: SparseDictionary
    train_stop: int
    training: Training | None
    rows_of: RowsOf

    def encoded(self, start: int, stop: int) -> Iterator[tuple[ActivationBlock, Tensor, Tensor]]:
        """Blocks of rows [start, stop) in the order of the text, with their normalised rows and latent activations on the dictionary's device."""
        for block in self.reader.blocks(READ_ROWS, start=start, stop=stop):
            rows = self.dictionary.normalisation.apply(self.rows_of(block).to(self.dictionary.decoder.device))
            yield block, rows, self.dictionary.encode(rows)


def open_reader(pair: LoadedPair, params: DictionaryParams, progress: Progress) -> PairedActivations:
    """The activations of the chosen layer, without outliers."""
    layer = resolve_layer(params.layer, pair.num_layers).absolute
    return without_outliers(activations_of(pair, params, [layer], progress)[layer])


def is_identical(reader: PairedActivations) -> bool:
    """Whether both models' activations are equal, bit for bit."""
    return all(torch.equal(block.base, block.finetuned) for block in reader.blocks(READ_ROWS))


def split(reader: PairedActivations, held_out: float) -> int:
    """First held-out row: the start of the document in which the last `held_out` share begins.

    Raises:
        InvalidInput: too few tokens to train on one part and judge on another.
    """
    row = int(reader.num_tokens * (1 - held_out))
    _, place = reader.locate(torch.tensor([min(row, reader.num_tokens - 1)]))
    start = row - int(place)
    if start < 2 or start >= reader.num_tokens:
        raise InvalidInput(f"{reader.num_tokens} tokens are too few to train a dictionary and hold some out; raise max_samples or max_tokens.")
    return start


def prepare(
    pair: LoadedPair,
    params: DictionaryParams,
    kind: Kind,
    rows_of: RowsOf,
    reader: PairedActivations,
    run: RunWriter,
    progress: Progress,
    **recipe: float,
) -> Prepared:
    """The dictionary that the parameters ask for. A training that was interrupted goes on where it was; one that was finished is read.

    Raises:
        InvalidInput: a dictionary of another shape.
        Cancelled: from `progress`; the checkpoint stays.
    """
    device = torch.device("cpu") if pair.device.type == "mps" else pair.device
    sources = 1 if kind == "sae" else 2
    train_stop = split(reader, params.held_out)
    if params.dictionary:
        dictionary = load_dictionary(params.dictionary, sources, pair.d_model).to(device)
        return Prepared(reader, dictionary, train_stop, None, rows_of)
    asked = TrainingRecipe(
        kind=kind,
        latents=max(2, round(params.expansion * pair.d_model)),
        k=min(params.k, max(1, round(params.expansion * pair.d_model) // 2)),
        steps=params.steps,
        batch_rows=params.batch_rows,
        learning_rate=params.learning_rate or RELATIVE_LEARNING_RATE / pair.d_model**0.5,
        patience=params.patience,
        seed=params.training_seed,
        **recipe,
    )
    training, folder = _trained(pair, asked, rows_of, reader, train_stop, device, progress)
    run.note("dictionary", str(folder))
    run.add_table("training", {name: [getattr(point, name) for point in training.curve] for name in CurvePoint.model_fields})
    return Prepared(reader, training.dictionary, train_stop, training, rows_of)


def _trained(
    pair: LoadedPair,
    recipe: TrainingRecipe,
    rows_of: RowsOf,
    reader: PairedActivations,
    train_stop: int,
    device: torch.device,
    progress: Progress,
) -> tuple[Training, Path]:
    decided = [recipe.model_dump_json(), reader.content_hash, train_stop]
    folder = dictionaries_folder() / hashlib.sha256(repr(decided).encode()).hexdigest()[:16]
    if (folder / "model.safetensors").is_file():
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        dictionary = load_dictionary(str(folder), 1 if recipe.kind == "sae" else 2, pair.d_model).to(device)
        return Training(dictionary, [CurvePoint(**point) for point in stored["curve"]], stored["steps"], stored["stopped_early"]), folder
    normalisation = fit_normalisation(reader, rows_of, train_stop)
    if normalisation is None:
        raise InvalidInput("The rows to train on do not vary; raise max_samples or max_tokens.")
    checkpoint = folder / "checkpoint.safetensors"
    training = train(reader, rows_of, recipe, normalisation, train_stop, device, checkpoint, progress)
    config = {
        "recipe": recipe.model_dump(mode="json"),
        "layer": reader.layer,
        "rows": reader.content_hash,
        "steps": training.steps,
        "stopped_early": training.stopped_early,
        "curve": [point.model_dump(mode="json") for point in training.curve],
    }
    save_dictionary(training.dictionary, folder, config)
    checkpoint.unlink(missing_ok=True)
    return training, folder
