"""How probable the models of a pair find given answers. Imports torch when it is called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress
from diffing_mcp.model_pairs.specs import PairSpec, Side

if TYPE_CHECKING:
    import torch

    from diffing_mcp.model_pairs.generation import GenerationRequest

_AT_ONCE = 32
"""Rows that are padded to one length."""


class TokenScores(Protocol):
    """What scoring needs to know of a loaded pair."""

    @property
    def spec(self) -> PairSpec: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def context_length(self) -> int: ...

    def side_loaded(self, side: Side) -> AbstractContextManager[None]: ...

    def token_log_probs(self, side: Side, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor: ...


class NoLogProbs(InvalidInput):
    """A model that is reachable by URL alone gives no log-probabilities of given texts."""

    code = "no_log_probs"


@dataclass(frozen=True)
class AnswerScore:
    """An answer under one model: its tokens, and their log-probability (nats) after the request, summed."""

    tokens: int
    log_prob: float
    cut: bool = False
    """It did not fit in the context: what is scored is its beginning."""

    @property
    def mean(self) -> float:
        """Nats a token; NaN for an answer without tokens."""
        return self.log_prob / self.tokens if self.tokens else math.nan


def score_answers(
    pair: TokenScores, side: Side, answers: Sequence[tuple[GenerationRequest, str]], progress: Progress
) -> list[AnswerScore]:
    """Each answer after its request under one side. The text is tokenised anew, by the tokenizer that makes the
    prompts of both sides, so that both are asked about the same tokens. An answer is cut where the context ends.
    """
    from diffing_mcp.model_pairs.generation import answer_ids, prompt_ids
    from diffing_mcp.model_pairs.padding import padded

    rows = []
    for request, text in answers:
        prompt = prompt_ids(pair.tokenizer, request, False, pair.spec.base.files.thinking_switch)
        rows.append((prompt, answer_ids(pair.tokenizer, request, prompt, text)))
    room = [max(0, pair.context_length - len(prompt)) for prompt, _ in rows]
    kept = [(prompt, text[:free]) for (prompt, text), free in zip(rows, room, strict=True)]
    scores = [0.0] * len(rows)
    lengths = [len(prompt) + len(text) for prompt, text in kept]
    order = sorted((index for index, (_, text) in enumerate(kept) if text), key=lambda index: -lengths[index])
    with pair.side_loaded(side):
        for start in range(0, len(order), _AT_ONCE):
            progress(start, len(order), "scoring texts")
            batch = order[start : start + _AT_ONCE]
            ids, mask = padded([[*kept[at][0], *kept[at][1]] for at in batch], pair.tokenizer.pad_token_id)
            log_probs = pair.token_log_probs(side, ids, mask).double()
            for row, index in enumerate(batch):
                # Column t holds the token t + 1; what nothing stands before is not predicted.
                first, last = max(1, len(kept[index][0])) - 1, lengths[index] - 1
                scores[index] = float(log_probs[row, first:last].sum())
    return [
        AnswerScore(len(text), score, len(text) < len(whole))
        for (_, text), (_, whole), score in zip(kept, rows, scores, strict=True)
    ]
