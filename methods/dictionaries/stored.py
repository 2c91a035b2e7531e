"""The dictionaries that were trained here, each a folder of the data folder. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from methods.dictionaries.recipe import TrainingRecipe
from organisms.durable import sync_folder, write_synced
from organisms.errors import InvalidInput, UnknownName
from organisms.settings import settings

if TYPE_CHECKING:
    from methods.runs import RunRecord

FILES = ("model.safetensors", "config.json")


class StoredDictionary(BaseModel):
    """A trained dictionary of the data folder."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: str = Field(description="`sae`, or the crosscoder's `batch_top_k` or `l1`.")
    layer: int
    d_model: int
    latents: int
    k: int
    steps: int
    variance_explained: float | None = Field(description="Of the held-out tokens at the last validation, 0 to 1.")
    megabytes: float
    folder: str


def dictionaries_folder() -> Path:
    """Where trained dictionaries lie."""
    return settings().data_folder / "dictionaries"


def stored_dictionaries() -> list[StoredDictionary]:
    """All finished ones, newest first."""
    found = [path.parent for path in dictionaries_folder().glob(f"*/{FILES[0]}") if (path.parent / FILES[1]).is_file()]
    return [_described(folder) for folder in sorted(found, key=lambda folder: -(folder / FILES[0]).stat().st_mtime)]


def folder_of(identifier: str) -> Path:
    """The folder of a dictionary by its id (or the beginning of it), as `diffing dictionaries list` shows it.

    Raises:
        UnknownName: none or several begin so.
    """
    known = [Path(each.folder) for each in stored_dictionaries()]
    found = [folder for folder in known if identifier and folder.name.startswith(identifier)]
    if len(found) != 1:
        names = ", ".join(folder.name for folder in known) or "none; `diffing run crosscoder` and `diffing run sae_difference` train them"
        raise UnknownName(f"{len(found) or 'No'} trained dictionaries begin with {identifier!r}. There are: {names}.")
    return found[0]


def folder_of_run(record: RunRecord) -> Path:
    """The folder of the dictionary that a run trained or looked up.

    Raises:
        InvalidInput: the run trained none.
        UnknownName: it is not there any more.
    """
    noted = record.manifest.notes.get("dictionary")
    if noted is None:
        raise InvalidInput(f"The run {record.id} trained no dictionary. `diffing dictionaries list` shows those that were.")
    return folder_of(Path(noted).name)


def export(folder: Path, target: Path) -> Path:
    """Copy a dictionary's files into the folder `target`, which is made when needed.

    Raises:
        InvalidInput: `target` holds a dictionary already, or cannot be written.
    """
    if taken := [name for name in FILES if (target / name).exists()]:
        raise InvalidInput(f"{target} has a {taken[0]} already; name another folder.")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in reversed(FILES):  # the weights last: a folder with weights is whole
            write_synced(target / name, (folder / name).read_bytes())
        sync_folder(target)
    except OSError as error:
        raise InvalidInput(f"{target} cannot be written: {error.strerror}.") from error
    return target


def push(folder: Path, repository: str, private: bool = True) -> str:
    """Upload a dictionary to a model repository of the hub, which is made when it does not exist. Returns the address of the commit.

    Raises:
        InvalidInput: the hub does not take it (no such account, no token, no network).
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(FILES)))
    except Exception as error:  # huggingface_hub raises its own, httpx's and OSError; all of them mean that it is not there
        raise InvalidInput(
            f"The hub did not take {repository!r} ({type(error).__name__}). Check the name (`account/repository`), the network, "
            "and that HF_TOKEN is set to a token that may write there."
        ) from error


def _described(folder: Path) -> StoredDictionary:
    config = json.loads((folder / FILES[1]).read_text(encoding="utf-8"))
    recipe = TrainingRecipe(**config["recipe"])
    curve = config["curve"]
    return StoredDictionary(
        id=folder.name,
        kind=recipe.kind,
        layer=config["layer"],
        d_model=config["activation_dim"],
        latents=recipe.latents,
        k=recipe.k,
        steps=config["steps"],
        variance_explained=curve[-1]["variance_explained"] if curve else None,
        megabytes=(folder / FILES[0]).stat().st_size / 1e6,
        folder=str(folder),
    )
