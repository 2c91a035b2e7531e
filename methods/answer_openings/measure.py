"""Mean next-token probabilities of both models where an answer begins and where a sentence of it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffing_mcp.methods.answer_openings.schema import (
    END,
    LEAST_PROBABILITY,
    PLACES,
    SMOOTHING,
    STANDING_OUT,
    AnswerOpeningsParams,
    AnswerOpeningsResult,
    OpeningRow,
    Place,
)
from diffing_mcp.methods.texts.words import vocabulary
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.preprocessing.batches import Accumulator, LogitChunk

if TYPE_CHECKING:
    from torch import Tensor

    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus

_CLOSING = " \"'”’)]*"
_ENDS = (".", "!", "?", "。", "！", "？")


class OpeningsAccumulator(Accumulator):
    """Sums over places of the probabilities of each token, of each place; memory a few vectors of the vocabulary.

    Attributes:
        sums: place -> [3, V] float64: base, finetuned, squared difference.
        best: place -> [V] float32, largest probability of the finetuned model; where: the sample and position of it.
    """

    needs_logits = True

    def __init__(self, pair: LoadedPair, corpus: TokenizedCorpus) -> None:
        self.corpus = corpus
        self._first = corpus.before_answer - 1
        texts = vocabulary(pair.tokenizer, pair.vocab_size).texts
        ends = [text.rstrip(_CLOSING).endswith(_ENDS) or "\n" in text for text in texts]
        self._ends = torch.tensor(ends, device=pair.device)
        self.counts = dict.fromkeys(PLACES, 0)
        self.sums: dict[Place, Tensor] = {}
        self.best: dict[Place, Tensor] = {}
        self.where: dict[Place, Tensor] = {}

    def update_logits(self, chunk: LogitChunk) -> None:
        """Take in a chunk of positions."""
        inside = chunk.positions > self._first
        chosen = {"answer": chunk.positions == self._first, "sentence": inside & self._ends[chunk.token_ids]}
        for place in PLACES:
            rows = chosen[place].nonzero()[:, 0]
            if len(rows):
                self._add(place, rows, chunk)

    def _add(self, place: Place, rows: Tensor, chunk: LogitChunk) -> None:
        base, finetuned = chunk.base_probs[rows], chunk.finetuned_probs[rows]
        sums = torch.stack(
            [each.sum(0, dtype=torch.float64) for each in (base, finetuned, (finetuned - base).square_())]
        )
        best, row = finetuned.max(0)
        where = torch.stack([chunk.sample_indices[rows], chunk.positions[rows]])[:, row]
        if place in self.sums:
            self.sums[place] += sums
            larger = best > self.best[place]
            self.best[place] = torch.where(larger, best, self.best[place])
            self.where[place] = torch.where(larger, where, self.where[place])
        else:
            self.sums[place], self.best[place], self.where[place] = sums, best, where
        self.counts[place] += len(rows)


def summarise(
    accumulator: OpeningsAccumulator, pair: LoadedPair, params: AnswerOpeningsParams, run: RunWriter
) -> AnswerOpeningsResult:
    """Rows of every place, the continuations of those that rose most, and the verdict."""
    risen: list[OpeningRow] = []
    fallen: list[OpeningRow] = []
    identical = True
    for place, sums in accumulator.sums.items():
        base, finetuned, squared = sums.cpu().numpy() / accumulator.counts[place]
        identical = identical and not np.any(squared)
        error = np.sqrt(np.maximum(squared - (finetuned - base) ** 2, 0) / accumulator.counts[place])
        rise = (finetuned + SMOOTHING) / (base + SMOOTHING)
        tokens = np.flatnonzero((np.maximum(base, finetuned) >= LEAST_PROBABILITY) & (finetuned != base))
        tokens = tokens[np.argsort(-np.abs(np.log(rise[tokens])), kind="stable")]
        names = _names(pair, tokens)
        rows = [
            OpeningRow(
                place=place,
                token=name,
                base=float(f"{base[token]:.4g}"),
                finetuned=float(f"{finetuned[token]:.4g}"),
                error=float(f"{error[token]:.2g}"),
                rise=float(f"{rise[token]:.4g}"),
            )
            for token, name in zip(tokens, names, strict=True)
        ]
        up = [place_in for place_in, row in enumerate(rows) if row.rise > 1]
        _continue(accumulator, pair, place, [(int(tokens[index]), rows[index]) for index in up], params)
        risen += [rows[index] for index in up]
        fallen += [row for row in rows if row.rise < 1]
    run.add_rows("openings", [*risen, *fallen], OpeningRow)
    found, headline = _judge(risen, identical)
    return AnswerOpeningsResult(
        stands_out=found,
        headline=headline,
        identical=identical,
        answers=accumulator.counts["answer"],
        sentences=accumulator.counts["sentence"],
        risen=_first(risen, params.list_length),
        fallen=_first(fallen, max(1, params.list_length // 2)),
    )


def _first(rows: Sequence[OpeningRow], limit: int) -> list[OpeningRow]:
    return [row for place in PLACES for row in [row for row in rows if row.place == place][:limit]]


def _names(pair: LoadedPair, tokens: np.ndarray) -> list[str]:
    stops, texts = pair.stop_ids("finetuned"), vocabulary(pair.tokenizer, pair.vocab_size).texts
    return [END if int(token) in stops else texts[token] for token in tokens]


def _continue(
    accumulator: OpeningsAccumulator,
    pair: LoadedPair,
    place: Place,
    rows: Sequence[tuple[int, OpeningRow]],
    params: AnswerOpeningsParams,
) -> None:
    """Fill in what the finetuned model writes after the tokens that rose most, where it finds each most probable."""
    chosen = [(token, row) for token, row in rows if row.token != END][: params.continued]
    if not chosen:
        return
    corpus, where = accumulator.corpus, accumulator.where[place].cpu()
    requests = []
    for token, _ in chosen:
        sample, position = (int(each) for each in where[:, token])
        ids = corpus.ids[sample][1 if corpus.has_bos else 0 : corpus.content_start[sample] + position + 1]
        requests.append(GenerationRequest(text=str(pair.tokenizer.decode([*ids, token]))))
    sampling = Sampling(temperature=0, max_new_tokens=params.new_tokens)
    with pair.side_loaded("finetuned"):
        written = pair.generate("finetuned", requests, sampling)
    for (_, row), several in zip(chosen, written, strict=True):
        row.continuation = row.token + several[0].text


def _judge(risen: Sequence[OpeningRow], identical: bool) -> tuple[bool, str]:
    if identical:
        return False, "Both models begin answers and sentences exactly alike: no difference."
    strong = sorted((row for row in risen if row.rise >= STANDING_OUT), key=lambda row: -row.rise)
    if not strong:
        return False, "Nothing stands out: answers and their sentences begin and end much as the base model's."
    names = "; ".join(row.as_text() for row in strong[:3])
    return True, f"Of the finetuned model {names}."
