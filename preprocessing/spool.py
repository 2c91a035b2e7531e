"""What one side of a pair computed, kept on disk until the other side has computed the same batches.

Two full models that do not fit into memory together are read in blocks of batches: one side over the whole block, then
the other. Every block costs one loading of a model, so blocks are as large as the disk allows: one side's logits of the
compared positions and its hidden states, in the model's own dtype (98 kB a token for a bf16 model with 49,152 tokens: 3
GB for 30,000 tokens), at most `SPOOL_BYTES` and at most half of what is free. The file is unlinked from the start, so a
killed process leaves nothing behind.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.core.errors import OutOfRoom
from diffing_mcp.core.settings import settings

SPOOL_BYTES = 32 * 2**30
"""Bytes on disk for one block at most."""

_Stored = tuple[torch.dtype, tuple[int, ...], int]


def spool_folder() -> Path:
    """Where spools are written: the cache folder, because the system's temporary folder may be memory."""
    folder = settings().cache_folder
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def split_blocks(plan: Sequence[list[int]], lengths: Sequence[int], bytes_per_token: int) -> list[list[list[int]]]:
    """Group batches (lists of sample indices) into blocks whose spool fits on the disk.

    Args:
        lengths: tokens of each sample.
        bytes_per_token: what one side writes for a token, at most.

    Raises:
        OutOfRoom: not even one batch fits.
    """
    room = min(SPOOL_BYTES, shutil.disk_usage(spool_folder()).free // 2)
    blocks: list[list[list[int]]] = []
    used = 0
    for batch in plan:
        size = bytes_per_token * sum(lengths[index] for index in batch)
        if size > room:
            raise OutOfRoom(
                "The two models do not fit into memory together, and comparing them in turn needs at least "
                f"{size / 2**20:.0f} MiB of disk for one batch; {room / 2**20:.0f} MiB may be used. Free disk space or "
                "lower max_tokens."
            )
        if not blocks or used + size > room:
            blocks.append([])
            used = 0
        blocks[-1].append(batch)
        used += size
    return blocks


class Spool:
    """Tensors in and out in the same order, through a nameless temporary file."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(dir=spool_folder(), buffering=0)  # noqa: SIM115  (closed by __exit__)
        self._entries: deque[tuple[dict[int, _Stored], _Stored | None]] = deque()
        self._read_from = 0
        self.written = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def put(self, hidden: dict[int, Tensor], rows: Tensor | None) -> None:
        """Append one batch: hidden states by layer, and the logits of its compared positions [N, V]."""
        stored = {layer: self._write(tensor) for layer, tensor in hidden.items()}
        self._entries.append((stored, None if rows is None else self._write(rows)))

    def take(self, device: torch.device) -> tuple[dict[int, Tensor], Tensor | None]:
        """The next batch, in the order of `put`."""
        stored, rows = self._entries.popleft()
        hidden = {layer: self._read(entry, device) for layer, entry in stored.items()}
        return hidden, None if rows is None else self._read(rows, device)

    def _write(self, tensor: Tensor) -> _Stored:
        content = tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data
        try:
            position = 0
            while position < len(content.cast("B")):
                position += self._file.write(content.cast("B")[position:])
        except OSError as error:
            raise OutOfRoom(
                "The disk became full while the outputs of the first model were kept for the second. Free space, then "
                "call again."
            ) from error
        self.written += position
        return tensor.dtype, tuple(tensor.shape), position

    def _read(self, entry: _Stored, device: torch.device) -> Tensor:
        dtype, shape, size = entry
        self._file.seek(self._read_from)
        content = np.fromfile(self._file, dtype=np.uint8, count=size)
        self._read_from += size
        return torch.from_numpy(content).view(dtype).view(shape).to(device)
