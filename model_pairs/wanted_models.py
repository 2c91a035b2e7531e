"""Which full model each side of a pair runs on, by its files, its type and the adapter that it has for good."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffing_mcp.model_pairs.adapter_files import read_adapter
from diffing_mcp.model_pairs.files import local_folder
from diffing_mcp.model_pairs.fingerprint import files_state
from diffing_mcp.model_pairs.specs import AdapterFiles, ModelFiles, ModelSource

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WantedModel:
    """A full model as the table knows it: its files, and an adapter that it has for good."""

    files: ModelFiles
    dtype: torch.dtype
    """The type that its pair runs in."""
    state: str
    """Its files as they were when the pair was opened (`files_state`): what is trained again into the same folder is
    another model.
    """
    adapter: AdapterFiles | None = None
    """An adapter that this model has to itself."""
    merge: bool = False
    """It is merged into the weights."""

    def now(self) -> WantedModel:
        """This wanted model with its files as they are now."""
        return replace(self, state=state_of_files(self.files, self.adapter))

    @property
    def label(self) -> str:
        return self.files.id + (f" with {self.adapter.id}{' merged' if self.merge else ''}" if self.adapter else "")


def _declared_rows(files: ModelFiles) -> int:
    """Rows of a model's embedding, as its configuration says."""
    from diffing_mcp.model_pairs.loading import read_config

    return int(read_config(files, folder_of(files)).get_text_config().vocab_size)


def vocabulary_rows(source: ModelSource, config: Any) -> int:
    """Rows of a side's vocabulary: as its adapter brings them, else as the model's configuration says."""
    if source.adapter is not None:
        rows = read_adapter(
            local_folder(source.adapter.id, source.adapter.revision, source.adapter.subfolder)
        ).vocabulary_rows
        if rows is not None:
            return rows
    return int(config.get_text_config().vocab_size)


def wanted_model(source: ModelSource, dtype: torch.dtype) -> WantedModel:
    """The model that a side runs on: a base that adapters share, or one with its adapter for good."""
    shared = WantedModel(source.files, dtype, state_of_files(source.files))
    if source.adapter is None:
        return shared
    stored = read_adapter(local_folder(source.adapter.id, source.adapter.revision, source.adapter.subfolder))
    if source.merge or stored.own_model_reason(_declared_rows(source.files)) is not None:
        return replace(shared, adapter=source.adapter, merge=source.merge).now()
    return shared


def state_of_files(files: ModelFiles, adapter: AdapterFiles | None = None) -> str:
    """State of the files of a model, its tokenizer's, and an adapter's."""
    folders = [folder_of(files)]
    if files.tokenizer_id:
        folders.append(local_folder(files.tokenizer_id))
    if adapter is not None:
        folders.append(local_folder(adapter.id, adapter.revision, adapter.subfolder))
    return "-".join(files_state(folder) for folder in folders)


def folder_of(files: ModelFiles) -> Path:
    return local_folder(files.id, files.revision, files.subfolder)
