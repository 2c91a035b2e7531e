"""Logits read off a middle layer, fed to the same statistics as the final ones.

`logit_lens`: each side's own final norm and unembedding read its residual stream after the layer. `patchscope`: the
residual stream of one position replaces that of the last token of a prompt that repeats words, at the same layer of the
same model, and what the model would say next is read (Ghandeharioun et al. 2024, "Patchscopes"; the identity prompt
with three examples).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.directions.patchscope import IDENTITY_PROMPTS
from diffing_mcp.model_pairs.interventions import Intervention
from diffing_mcp.preprocessing.batches import Accumulator, LogitChunk, PairedBatch
from diffing_mcp.preprocessing.corpus_pass import scratch_of

if TYPE_CHECKING:
    from diffing_mcp.methods.logit_diff_topk_occurring.occurrences import LogitDifferenceAccumulator
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import Side

IDENTITY_PROMPT = IDENTITY_PROMPTS[0]
"""The last token's state is replaced; the examples before it set the task: say the word again."""
_MOST_PROMPTS = 256
"""Patched prompts at once: each holds keys and values of the whole prompt."""
_BLOCK_BYTES = 128 * 2**20
"""Bytes of one side's float32 logits at once."""


class ExtractedAccumulator(Accumulator):
    """Feeds `statistics` with logits made from the hidden states after `layer`.

    Args:
        chosen: [tokens] bool over the corpus's positions in the order of the text: those to read; None: all.

    Raises:
        InvalidInput: the pair's two models do not fit into memory together, so that every batch would load each of
            them.
    """

    def __init__(
        self,
        pair: LoadedPair,
        statistics: LogitDifferenceAccumulator,
        layer: int,
        extraction: Literal["logit_lens", "patchscope"],
        chosen: Tensor | None,
    ) -> None:
        if pair.sequential:
            raise InvalidInput(
                f"extraction={extraction} reads both models in turn at every batch, and the two do not fit into memory "
                "together. Use extraction=logits."
            )
        self.pair = pair
        self.statistics = statistics
        self.layers = (layer,)
        self.extraction = extraction
        self.scratch = scratch_of(pair)
        self._chosen = chosen
        lengths = [
            len(ids) - start for ids, start in zip(statistics.corpus.ids, statistics.corpus.content_start, strict=True)
        ]
        self._offsets = torch.tensor([0, *lengths[:-1]], device=pair.device).cumsum(0)
        self._prompt: list[int] = pair.tokenizer(IDENTITY_PROMPT)["input_ids"]
        self._block = max(1, _BLOCK_BYTES // (4 * pair.vocab_size))
        if extraction == "patchscope":
            self._block = min(self._block, _MOST_PROMPTS)

    def update(self, batch: PairedBatch) -> None:
        """Read the batch's positions, a block at a time."""
        rows = batch.compared_rows
        if self._chosen is not None:
            rows = rows[self._chosen[self._offsets[batch.row_samples[rows]] + batch.flat_positions[rows]]]
        layer = self.layers[0]
        for block in rows.split(self._block):
            if not block.numel():
                continue
            base = self._read("base", batch.base_hidden[layer], block)
            finetuned = self._read("finetuned", batch.finetuned_hidden[layer], block)
            parts = (part.split(self.scratch.rows) for part in (block, base, finetuned))
            for few, base_part, finetuned_part in zip(*parts, strict=True):
                self.statistics.update_logits(LogitChunk(batch, few, self.scratch, (base_part, finetuned_part)))

    def _read(self, side: Side, hidden: Tensor, rows: Tensor) -> Tensor:
        """[R, V] float32 logits of the positions `rows` of hidden states [B, S, d_model]."""
        states = hidden.reshape(-1, hidden.shape[-1])[rows]
        if self.extraction == "logit_lens":
            return self.pair.logit_lens(side, states)
        return self.pair.last_token_logits(
            side, self._prompt, len(rows), [Intervention(self.layers[0], states, mode="replace")]
        )
