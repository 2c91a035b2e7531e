"""One model computed twice over the same tokens: what its dtype leaves undecided."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from diffing_mcp.model_pairs.padding import padded
from diffing_mcp.preprocessing.batches import LogitChunk, text_chunks

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus

TEXTS = 4
_ROWS = 8


@torch.inference_mode()
def repeated_pass(pair: LoadedPair, corpus: TokenizedCorpus) -> Iterator[LogitChunk]:
    """Chunks of the compared positions of the `TEXTS` shortest texts, as a pass would give them, in which both sides
    are the finetuned model: as `base` each text alone, as `finetuned` all in one batch.

    Both are the same function in exact arithmetic.
    """
    chosen = sorted(range(len(corpus.ids)), key=lambda index: len(corpus.ids[index]))[:TEXTS]
    device = torch.device(pair.device)
    batch_ids, batch_mask = (each.to(device) for each in padded([corpus.ids[index] for index in chosen], 0))
    together = pair.forward("finetuned", batch_ids, batch_mask).logits
    for row, index in enumerate(chosen):
        start, length = corpus.content_start[index], len(corpus.ids[index])
        alone = pair.forward("finetuned", batch_ids[row : row + 1, :length], batch_mask[row : row + 1, :length]).logits
        if alone is None or together is None:
            raise RuntimeError("a forward pass that was asked for logits gave none")
        yield from text_chunks(alone[0, start:], together[row, start:length], _ROWS)
