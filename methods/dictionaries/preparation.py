"""From parameters to a dictionary over a pair's activations: collected, split, trained (or loaded), and kept in the
data folder.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffing_mcp.core.atomic_files import DISK_FULL, held
from diffing_mcp.core.errors import InvalidInput, OutOfRoom
from diffing_mcp.core.progress import Progress
from diffing_mcp.methods.dictionaries.files import load_dictionary, save_dictionary
from diffing_mcp.methods.dictionaries.models import SparseDictionary
from diffing_mcp.methods.dictionaries.recipe import CurvePoint, Kind, TrainingRecipe, training_bytes
from diffing_mcp.methods.dictionaries.schema import DictionaryParams
from diffing_mcp.methods.dictionaries.stored import (
    CHECKPOINT,
    FILES,
    StoredConfig,
    dictionaries_folder,
    dictionary_lock,
    read_config,
    remove_checkpoint,
)
from diffing_mcp.methods.dictionaries.training import RowsOf, Training, fit_normalisation, train
from diffing_mcp.model_pairs.layers import resolve_layer
from diffing_mcp.preprocessing.activation_collection import SPARE_BYTES
from diffing_mcp.preprocessing.activation_outliers import without_outliers
from diffing_mcp.preprocessing.activation_sources import activations_of
from diffing_mcp.preprocessing.activations import ActivationBlock, PairedActivations

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair

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
        """Blocks of rows [start, stop) in the order of the text, with their normalised rows and latent activations on
        the dictionary's device.
        """
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
        raise InvalidInput(
            f"{reader.num_tokens} tokens are too few to train a dictionary and hold some out; raise max_samples or "
            "max_tokens."
        )
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
    """The dictionary that the parameters ask for. A training that was interrupted goes on where it was; one that was
    finished is read.

    Raises:
        InvalidInput: a dictionary of another shape, or a stored one that is damaged.
        OutOfRoom: no disk for the checkpoints, before anything is trained or while it is.
        Cancelled: from `progress`; the checkpoint stays.
    """
    device = torch.device("cpu") if pair.device.type == "mps" else pair.device
    sources = 1 if kind == "sae" else 2
    train_stop = split(reader, params.held_out)
    if params.dictionary:
        dictionary = load_dictionary(params.dictionary, sources, pair.d_model).to(device)
        return Prepared(reader, dictionary, train_stop, None, rows_of)
    latents = params.latents(pair.d_model)
    asked = TrainingRecipe(
        kind=kind,
        latents=latents,
        k=min(params.k, latents // 2),
        steps=params.steps,
        batch_rows=params.batch_rows,
        learning_rate=params.learning_rate or RELATIVE_LEARNING_RATE / pair.d_model**0.5,
        patience=params.patience,
        seed=params.training_seed,
        **recipe,
    )
    training, folder = _trained(pair, asked, rows_of, reader, train_stop, device, progress)
    run.note("dictionary", str(folder))
    run.add_rows("training", training.curve, CurvePoint)
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
    with held(dictionary_lock(folder.name), progress, "waiting for another process that trains the same dictionary"):
        if (folder / FILES[0]).is_file():
            return _read(folder, recipe, pair.d_model, device), folder
        normalisation = fit_normalisation(reader, rows_of, train_stop)
        if normalisation is None:
            raise InvalidInput("The rows to train on do not vary; raise max_samples or max_tokens.")
        _check_room(folder, training_bytes(recipe.latents, pair.d_model, 1 if recipe.kind == "sae" else 2))
        try:
            training = train(reader, rows_of, recipe, normalisation, train_stop, device, folder / CHECKPOINT, progress)
            _store(training, recipe, reader, folder)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise OutOfRoom(
                "The disk became full while the dictionary was trained. The last checkpoint is kept: free space and "
                "call again to go on from it."
            ) from error
    return training, folder


def _store(training: Training, recipe: TrainingRecipe, reader: PairedActivations, folder: Path) -> None:
    """A finished dictionary into its folder. A process that dies in between leaves the checkpoint, from which the next
    one ends at once.
    """
    config = StoredConfig(
        recipe=recipe,
        layer=reader.layer,
        activation_dim=reader.d_model,
        steps=training.steps,
        stopped_early=training.stopped_early,
        curve=training.curve,
    )
    save_dictionary(training.dictionary, folder, {"rows": reader.content_hash, **config.model_dump(mode="json")})
    remove_checkpoint(folder)


def _check_room(folder: Path, needed: int) -> None:
    """Refuse a training whose checkpoints do not fit. One that is there already is paid for."""
    checkpoint = folder / CHECKPOINT
    needed -= checkpoint.stat().st_size if checkpoint.is_file() else 0
    free = shutil.disk_usage(dictionaries_folder()).free
    if needed + SPARE_BYTES > free:
        raise OutOfRoom(
            f"Training this dictionary takes {needed / 2**20:.0f} MiB of disk for its checkpoints and "
            f"{free / 2**20:.0f} MiB are free. Lower `expansion`, or free space (`diffing dictionaries list` shows "
            "what is there, `diffing dictionaries delete ID` removes it)."
        )


def _read(folder: Path, recipe: TrainingRecipe, d_model: int, device: torch.device) -> Training:
    """A finished dictionary of the data folder."""
    try:
        config = read_config(folder)
        dictionary = load_dictionary(str(folder), 1 if recipe.kind == "sae" else 2, d_model).to(device)
    except (OSError, ValueError, InvalidInput) as error:
        raise InvalidInput(
            f"The dictionary {folder.name} that these parameters trained is damaged. `diffing dictionaries delete "
            f"{folder.name}` removes it, and the next call trains it anew; another training_seed trains another one."
        ) from error
    remove_checkpoint(folder)
    return Training(dictionary, config.curve, config.steps, config.stopped_early)
