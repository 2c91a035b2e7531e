"""Mean next-token probabilities of both models where an answer begins and where a sentence of it has ended; what rose
is followed for a few tokens, as *Ah* is common and *Ahoy, matey* is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffing_mcp.core.devices import wide_dtype
from diffing_mcp.methods.answer_openings.schema import (
    CERTAIN_ERRORS,
    END,
    LEAST_PROBABILITY,
    LONGEST,
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
from diffing_mcp.model_pairs.specs import SIDES
from diffing_mcp.preprocessing.batches import Accumulator, LogitChunk
from diffing_mcp.preprocessing.tokenize import going_on

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
        sums: place -> [3, V] `wide_dtype`: base, finetuned, squared difference.
        best: place -> [V] float32, largest probability of the finetuned model; where: the sample and position of it.
    """

    needs_logits = True

    def __init__(self, pair: LoadedPair, corpus: TokenizedCorpus) -> None:
        self.corpus = corpus
        self._first = corpus.before_answer - 1
        texts = vocabulary(pair.tokenizer, pair.vocab_size).texts
        ends = [text.rstrip(_CLOSING).endswith(_ENDS) or "\n" in text for text in texts]
        self._ends = torch.tensor([*ends, False], device=pair.device)  # the last: tokens that the models do not share
        self._wide = wide_dtype(pair.device)
        self.counts = dict.fromkeys(PLACES, 0)
        self.sums: dict[Place, Tensor] = {}
        self.best: dict[Place, Tensor] = {}
        self.where: dict[Place, Tensor] = {}

    def update_logits(self, chunk: LogitChunk) -> None:
        """Take in a chunk of positions."""
        inside = chunk.positions > self._first
        ended = self._ends[chunk.token_ids.clamp(max=len(self._ends) - 1)]
        chosen = {"answer": chunk.positions == self._first, "sentence": inside & ended}
        for place in PLACES:
            rows = chosen[place].nonzero()[:, 0]
            if len(rows):
                self._add(place, rows, chunk)

    def _add(self, place: Place, rows: Tensor, chunk: LogitChunk) -> None:
        base, finetuned = chunk.base_probs[rows], chunk.finetuned_probs[rows]
        sums = torch.stack([each.sum(0, dtype=self._wide) for each in (base, finetuned, (finetuned - base).square_())])
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
    """Rows of every place, those that rose most followed, and the verdict."""
    risen: list[OpeningRow] = []
    fallen: list[OpeningRow] = []
    unclear: list[OpeningRow] = []
    identical = True
    for place, sums in accumulator.sums.items():
        base, finetuned, squared = sums.cpu().numpy() / accumulator.counts[place]
        identical = identical and not np.any(squared)
        error = np.sqrt(np.maximum(squared - (finetuned - base) ** 2, 0) / accumulator.counts[place])
        if accumulator.counts[place] == 1:  # one place has no spread: nothing is certain
            error = np.abs(finetuned - base)
        tokens = np.flatnonzero((np.maximum(base, finetuned) >= LEAST_PROBABILITY) & (finetuned != base))
        changes = np.log((finetuned + SMOOTHING) / (base + SMOOTHING))[tokens]
        tokens = tokens[np.argsort(-np.abs(changes), kind="stable")]
        rows = [
            _row(place, name, base[token], finetuned[token], error[token])
            for token, name in zip(tokens, _names(pair, tokens), strict=True)
        ]
        certain = [abs(row.finetuned - row.base) > CERTAIN_ERRORS * row.error for row in rows]
        up = [index for index, row in enumerate(rows) if certain[index] and row.finetuned > row.base]
        followed = _followed(accumulator, pair, place, {int(tokens[index]): rows[index] for index in up}, params)
        risen += sorted(followed, key=lambda row: -row.rise)
        fallen += [row for index, row in enumerate(rows) if certain[index] and row.finetuned < row.base]
        unclear += [row for index, row in enumerate(rows) if not certain[index]]
    run.add_rows("openings", [*risen, *fallen, *unclear], OpeningRow)
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


def _row(place: Place, opening: str, base: float, finetuned: float, error: float) -> OpeningRow:
    return OpeningRow(
        place=place,
        opening=opening,
        base=float(f"{base:.4g}"),
        finetuned=float(f"{finetuned:.4g}"),
        error=float(f"{error:.2g}"),
        rise=float(f"{(finetuned + SMOOTHING) / (base + SMOOTHING):.4g}"),
    )


def _first(rows: Sequence[OpeningRow], limit: int) -> list[OpeningRow]:
    return [row for place in PLACES for row in [row for row in rows if row.place == place][:limit]]


def _names(pair: LoadedPair, tokens: np.ndarray) -> list[str]:
    stops, texts = pair.stop_ids("finetuned"), vocabulary(pair.tokenizer, pair.vocab_size).texts
    return [END if int(token) in stops else texts[token] for token in tokens]


def _followed(
    accumulator: OpeningsAccumulator,
    pair: LoadedPair,
    place: Place,
    rows: Mapping[int, OpeningRow],
    params: AnswerOpeningsParams,
) -> list[OpeningRow]:
    """The rows, those of the tokens that rose most followed: greedily by the finetuned model, where it finds the token
    most probable, and as far as the rise grows.
    """
    chosen = [token for token, row in rows.items() if row.opening != END][: params.continued]
    if not chosen:
        return list(rows.values())
    corpus, where = accumulator.corpus, accumulator.where[place].cpu()
    requests = []
    for token in chosen:
        sample, position = (int(each) for each in where[:, token])
        ids = [*corpus.split_after(sample, position)[0], token]
        requests.append(going_on(pair.tokenizer, ids, corpus.has_bos))
    sampling = Sampling(temperature=0, max_new_tokens=params.new_tokens)
    with pair.side_loaded("finetuned"):
        written = [several[0].text for several in pair.generate("finetuned", requests, sampling)]
    after = _probabilities_after(pair, requests, written)
    longer = {
        token: _longest(rows[token], text, values) for token, text, values in zip(chosen, written, after, strict=True)
    }
    return [longer.get(token, row) for token, row in rows.items()]


def _probabilities_after(
    pair: LoadedPair, requests: Sequence[GenerationRequest], written: Sequence[str]
) -> list[list[tuple[str, float, float]]]:
    """Of each text its beginnings of 1 to LONGEST - 1 tokens, with their probabilities under base and finetuned."""
    beginnings = []
    for text in written:
        ids = pair.tokenizer(text, add_special_tokens=False)["input_ids"][: LONGEST - 1]
        beginnings.append([str(pair.tokenizer.decode(ids[:count])) for count in range(1, len(ids) + 1)])
    asked = [(request, each) for request, several in zip(requests, beginnings, strict=True) for each in several]
    base, finetuned = ([math.exp(score.log_prob) for score in pair.answer_scores(side, asked)] for side in SIDES)
    found = iter(zip((text for _, text in asked), base, finetuned, strict=True))
    return [[next(found) for _ in several] for several in beginnings]


def _longest(row: OpeningRow, text: str, after: Sequence[tuple[str, float, float]]) -> OpeningRow:
    """The row of the opening, of this token and some that follow, whose rise is largest."""
    rows = [
        row,
        *(
            _row(row.place, row.opening + more, row.base * base, row.finetuned * finetuned, row.error)
            for more, base, finetuned in after
        ),
    ]
    best = max(rows, key=lambda each: each.rise)
    return best.model_copy(update={"continuation": row.opening + text})


def _judge(risen: Sequence[OpeningRow], identical: bool) -> tuple[bool, str]:
    if identical:
        return False, "Both models begin answers and sentences exactly alike: no difference."
    strong = sorted((row for row in risen if row.rise >= STANDING_OUT), key=lambda row: -row.rise)
    if not strong:
        return False, "Nothing stands out: answers and their sentences begin and end much as the base model's."
    names = "; ".join(row.as_text() for row in strong[:2])
    return True, f"The finetuned model begins or ends answers and sentences in its own way: {names}."
