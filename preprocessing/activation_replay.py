"""Stored activations read again as the batches of a corpus pass, for accumulators that need hidden states alone. No
model runs.

A collection holds the compared tokens after the first `skip_first` of each sample, never a BOS nor the prompt of an
answer. Positions are those of the corpus pass all the same, so they may begin above 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.core.settings import settings
from diffing_mcp.core.undivided import working_time
from diffing_mcp.preprocessing.activation_mixture import open_collections
from diffing_mcp.preprocessing.activation_store import CollectionIndex, default_activation_store
from diffing_mcp.preprocessing.batches import Accumulator, PairedBatch
from diffing_mcp.preprocessing.corpus_pass import PassStatistics
from diffing_mcp.preprocessing.corpus_rows import Dropped
from diffing_mcp.preprocessing.tokenize import ANSWER_ORIGIN, BOS_ORIGIN, PRE_ASSISTANT, TokenIds, TokenizedCorpus

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.activation_rows import ActivationRows


@dataclass(frozen=True)
class Replay:
    """Collections of a pair: `diffing_mcp.preprocessing.text_sources.TextReading`. All of a batch's hidden states are
    float32, whatever is stored.
    """

    pair: LoadedPair
    collections: Sequence[str]
    corpus: TokenizedCorpus

    def feed(self, accumulators: Sequence[Accumulator], progress: Progress = silent) -> PassStatistics:
        """See `TextReading`. Batches hold samples that follow one another."""
        if any(accumulator.needs_logits for accumulator in accumulators):
            raise RuntimeError("Stored activations hold no logits: methods that read them take no collections.")
        started = working_time()
        layers = sorted({layer for accumulator in accumulators for layer in accumulator.layers})
        readers = open_collections(default_activation_store(), self.collections, self.pair.spec, layers)
        statistics = PassStatistics(
            tokens=self.corpus.tokens,
            samples=len(self.corpus.ids),
            batches=0,
            read_tokens=0,
            seconds=0.0,
            forward_seconds=0.0,
        )
        progress(0, self.corpus.tokens, "reading stored activations")
        with torch.inference_mode():
            for first, last in self._spans():
                batch = self._batch(readers, first, last)
                for accumulator in accumulators:
                    accumulator.update(batch)
                statistics.batches += 1
                progress(int(self.corpus.ids.starts[last]), self.corpus.tokens, "reading stored activations")
        statistics.seconds = working_time() - started
        return statistics

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Samples [first, last) of each batch; padded to the longest it holds at most `settings().batch_tokens` tokens,
        or one sample.
        """
        budget, lengths = settings().batch_tokens, self.corpus.ids.lengths.tolist()
        first, width = 0, 0
        for sample, length in enumerate(lengths):
            width = max(width, length)
            if sample > first and (sample - first + 1) * width > budget:
                yield first, sample
                first, width = sample, length
        yield first, len(lengths)

    def _batch(self, readers: dict[int, ActivationRows], first: int, last: int) -> PairedBatch:
        device, ids = self.pair.device, self.corpus.ids.part(first, last)
        lengths = torch.from_numpy(ids.lengths)
        columns = torch.arange(int(lengths.max())).unsqueeze(0)
        mask = columns < lengths.unsqueeze(1)
        input_ids = torch.zeros(mask.shape, dtype=torch.long)
        input_ids[mask] = torch.tensor(ids.flat, dtype=torch.long)
        batch = PairedBatch(
            input_ids=input_ids.to(device),
            attention_mask=mask.long().to(device),
            positions=torch.where(mask, columns + self.corpus.first_position, -1).to(device),
            sample_indices=torch.arange(first, last, device=device),
        )
        start, stop = int(self.corpus.ids.starts[first]), int(self.corpus.ids.starts[last])
        for layer, reader in readers.items():
            [block] = reader.blocks(stop - start, start=start, stop=stop)
            for hidden, rows in ((batch.base_hidden, block.base), (batch.finetuned_hidden, block.finetuned)):
                padded = rows.new_zeros(*mask.shape, rows.shape[1])
                padded[mask] = rows
                hidden[layer] = padded.to(device)
        return batch


def open_replay(pair: LoadedPair, collections: Sequence[str]) -> Replay:
    """Finished collections of this pair, ready to be read.

    Raises:
        UnknownName: no collection of an id, or several.
        InvalidInput: one is named twice, unfinished or of another pair; they have no layer or dtype in common, or their
            positions mean different things.
    """
    store = default_activation_store()
    found = [store.finished(identifier) for identifier in collections]
    common = sorted(set.intersection(*(set(index.layers) for index in found)))
    if not common:
        held = "; ".join(f"{index.id} {', '.join(map(str, index.layers))}" for index in found)
        raise InvalidInput(
            f"These collections have no layer in common: {held}. Name each in a call of its own, or collect the same "
            "layers again."
        )
    if len({(index.text["position_origin"], index.skip_first) for index in found}) > 1:
        held = "; ".join(
            f"{index.id} from position {index.skip_first}, 0 = {index.text['position_origin']}" for index in found
        )
        raise InvalidInput(
            f"Position by position these collections cannot be read together: {held}. Name each in a call of its own."
        )
    # Every layer has the same tokens.
    [rows] = open_collections(store, collections, pair.spec, common[:1]).values()
    return Replay(pair, collections, _corpus(found, rows))


def _corpus(found: Sequence[CollectionIndex], rows: ActivationRows) -> TokenizedCorpus:
    samples, origin, first = rows.num_samples, found[0].text["position_origin"], rows.first_position
    answers, has_bos = origin == ANSWER_ORIGIN, origin == BOS_ORIGIN
    left_out = (
        "answers with the tokens just before them, without the prompts"
        if answers
        else f"tokens from position {first} on"
    )
    dropped = Dropped()
    for index in found:
        if index.text["dropped"]:
            dropped.add("left out when the activations were collected", count=int(index.text["dropped"]))
    held = ", ".join(f"{index.id} ({index.dtype})" for index in found)
    return TokenizedCorpus(
        corpus_id=", ".join(index.id for index in found),
        kind="chat" if answers else "text",  # of a whole chat every token is compared, as of a text
        ids=TokenIds(rows.token_ids.numpy(), rows.starts.numpy()),
        content_start=[0] * samples,
        assistant_start=[PRE_ASSISTANT if answers else None] * samples,
        has_bos=has_bos,
        dropped=dropped,
        sha=rows.content_hash,
        first_position=first,
        stored=f"{held}: {left_out}{', without the BOS' if has_bos else ''}",
    )
