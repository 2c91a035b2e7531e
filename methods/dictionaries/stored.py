"""The dictionaries that were trained here, each a folder of the data folder, and what trainings that were cut off left
there. Torch-free.

A folder holds `model.safetensors` (written last: with it the dictionary is there), `config.json`, and
`checkpoint.safetensors` while it is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffing_mcp.core.atomic_files import discard, replace_synced
from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.dictionaries.recipe import CurvePoint, TrainingRecipe

if TYPE_CHECKING:
    from filelock import FileLock

    from diffing_mcp.methods.runs.store import RunRecord

FILES = ("model.safetensors", "config.json")
CHECKPOINT = "checkpoint.safetensors"


class StoredConfig(BaseModel):
    """`config.json` of a dictionary that was trained here."""

    recipe: TrainingRecipe
    layer: int
    activation_dim: int
    steps: int
    stopped_early: bool
    curve: list[CurvePoint]


class StoredDictionary(BaseModel):
    """A trained dictionary of the data folder."""

    model_config = ConfigDict(frozen=True)

    id: str
    state: Literal["finished"] = "finished"
    kind: str = Field(description="`sae`, or the crosscoder's `batch_top_k` or `l1`.")
    layer: int
    d_model: int
    latents: int
    k: int
    steps: int
    variance_explained: float | None = Field(description="Of the held-out tokens at the last validation, 0 to 1.")
    megabytes: float
    folder: str


class Leftover(BaseModel):
    """A folder that holds no dictionary: a training that was cut off or still runs, or files that cannot be read."""

    model_config = ConfigDict(frozen=True)

    id: str
    state: Literal["unfinished", "unreadable"]
    kind: str | None = None
    latents: int | None = None
    k: int | None = None
    steps: int | None = Field(None, description="Steps done (unfinished).")
    megabytes: float
    problem: str = Field(description="What it is and what to do.")
    folder: str


@dataclass(frozen=True)
class Listing:
    """Everything in the folder of dictionaries, newest first."""

    dictionaries: list[StoredDictionary]
    leftovers: list[Leftover]


def dictionaries_folder() -> Path:
    """Where trained dictionaries lie."""
    return settings().data_folder / "dictionaries"


def listing() -> Listing:
    """Finished dictionaries, and what else lies among them. One folder that cannot be read hides no other."""
    found: list[StoredDictionary | Leftover] = []
    for folder in sorted(_folders(), key=_modified, reverse=True):
        try:
            found.append(_described(folder))
        except (OSError, ValidationError, UnicodeDecodeError, InvalidInput) as error:
            found.append(_leftover(folder, error))
    return Listing(
        [each for each in found if isinstance(each, StoredDictionary)],
        [each for each in found if isinstance(each, Leftover)],
    )


def dictionary_lock(identifier: str) -> FileLock:
    """Held while a dictionary is trained or deleted; a dead process holds none."""
    from filelock import FileLock

    dictionaries_folder().mkdir(parents=True, exist_ok=True)
    return FileLock(dictionaries_folder() / f".lock-{identifier}")


def read_config(folder: Path) -> StoredConfig:
    """The configuration of a dictionary that was trained here.

    Raises:
        OSError, UnicodeDecodeError, ValidationError: there is none, or it is not one.
    """
    return StoredConfig.model_validate_json((folder / FILES[1]).read_text(encoding="utf-8"))


def remove_checkpoint(folder: Path) -> None:
    """What a finished dictionary needs no more: the checkpoint, and files that a killed process had begun to write."""
    for file in (folder / CHECKPOINT, *folder.glob(".writing-*")):
        file.unlink(missing_ok=True)


def exactly(identifier: str) -> str:
    """The whole id of a folder that is there.

    Raises:
        UnknownName: none has it.
    """
    if identifier not in [folder.name for folder in _folders()]:
        raise UnknownName(
            f"{identifier!r} is not the whole id of a dictionary; list_dictionaries (`diffing dictionaries list`) "
            "gives them."
        )
    return identifier


def delete(identifier: str) -> float:
    """Remove a dictionary, a training that was cut off, or what cannot be read, by its whole id; returns its megabytes.
    It becomes invisible at once, then its files go. Runs that used it keep their results.

    Raises:
        UnknownName: nothing has that id.
        InvalidInput: it is being trained.
    """
    from filelock import Timeout

    folder = dictionaries_folder() / exactly(identifier)
    megabytes = _megabytes(folder)
    try:
        with dictionary_lock(identifier).acquire(timeout=0):
            discard(folder)
    except Timeout as error:
        raise InvalidInput(f"The dictionary {identifier} is being trained. Cancel that first.") from error
    except FileNotFoundError as error:
        raise UnknownName(f"The dictionary {identifier} was deleted in the meantime.") from error
    return megabytes


def folder_of(identifier: str) -> Path:
    """The folder of a dictionary by its id (or the beginning of it), as `diffing dictionaries list` shows it.

    Raises:
        UnknownName: none or several begin so.
        InvalidInput: what begins so is unfinished or cannot be read.
    """
    everything = listing()
    known = [Path(each.folder) for each in everything.dictionaries]
    found = [folder for folder in known if identifier and folder.name.startswith(identifier)]
    if not found and (
        other := next((each for each in everything.leftovers if identifier and each.id.startswith(identifier)), None)
    ):
        raise InvalidInput(f"{other.id} is {other.state}: {other.problem}")
    if len(found) != 1:
        names = (
            ", ".join(folder.name for folder in known)
            or "none; `diffing run crosscoder` and `diffing run sae_difference` train them"
        )
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
        raise InvalidInput(
            f"The run {record.id} trained no dictionary. `diffing dictionaries list` shows those that were."
        )
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
            replace_synced(target / name, (folder / name).read_bytes())
    except OSError as error:
        raise InvalidInput(f"{target} cannot be written: {error.strerror}.") from error
    return target


def push(folder: Path, repository: str, private: bool = True) -> str:
    """Upload a dictionary to a model repository of the hub, which is made when it does not exist. Returns the address
    of the commit.

    Raises:
        InvalidInput: the hub does not take it (no such account, no token, no network).
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(FILES)))
    except (
        Exception
    ) as error:  # huggingface_hub raises its own, httpx's and OSError; all of them mean that it is not there
        raise InvalidInput(
            f"The hub did not take {repository!r} ({type(error).__name__}). Check the name (`account/repository`), the "
            "network, and that HF_TOKEN is set to a token that may write there."
        ) from error


def _folders() -> list[Path]:
    parent = dictionaries_folder()
    return (
        [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if parent.is_dir()
        else []
    )


def _modified(folder: Path) -> float:
    files = [folder / name for name in (*FILES, CHECKPOINT) if (folder / name).is_file()]
    return max((file.stat().st_mtime for file in files), default=0.0)


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def _described(folder: Path) -> StoredDictionary:
    """Of a finished dictionary; whatever `listing` catches for another."""
    header(folder / FILES[0])
    config = read_config(folder)
    return StoredDictionary(
        id=folder.name,
        kind=config.recipe.kind,
        layer=config.layer,
        d_model=config.activation_dim,
        latents=config.recipe.latents,
        k=config.recipe.k,
        steps=config.steps,
        variance_explained=config.curve[-1].variance_explained if config.curve else None,
        megabytes=_megabytes(folder),
        folder=str(folder),
    )


def _leftover(folder: Path, error: Exception) -> Leftover:
    values: dict[str, Any] = {"id": folder.name, "megabytes": _megabytes(folder), "folder": str(folder)}
    remove = f"`diffing dictionaries delete {folder.name}` removes it"
    if not (folder / FILES[0]).exists():
        try:
            noted = header(folder / CHECKPOINT)
            recipe = TrainingRecipe.model_validate_json(noted["recipe"])
            done = int(noted["steps"])
        except (OSError, ValidationError, InvalidInput, KeyError, ValueError):
            return Leftover(
                **values, state="unreadable", problem=f"It holds neither a dictionary nor a checkpoint; {remove}."
            )
        problem = f"{done} of {recipe.steps} steps; the call that trains it goes on from there, {remove}."
        return Leftover(
            **values,
            state="unfinished",
            kind=recipe.kind,
            latents=recipe.latents,
            k=recipe.k,
            steps=done,
            problem=problem,
        )
    if isinstance(error, InvalidInput):
        return Leftover(
            **values,
            state="unreadable",
            problem=f"Its weights are damaged; {remove}, and the next call trains it anew.",
        )
    problem = (
        f"Its {FILES[1]} is not that of a dictionary that was trained here; `dictionary={folder}` may read it all the "
        f"same, {remove}."
    )
    return Leftover(**values, state="unreadable", problem=problem)


def header(path: Path) -> dict[str, str]:
    """The notes of a safetensors file; the weights are not read.

    Raises:
        FileNotFoundError: there is none.
        InvalidInput: it is cut off or no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise InvalidInput(f"{path.name} is damaged or not complete.") from error
