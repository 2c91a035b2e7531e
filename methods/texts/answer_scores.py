"""How probable models find given answers. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.core.progress import Progress
from diffing_mcp.model_pairs.generation import prompt_ids
from diffing_mcp.model_pairs.specs import Side
from diffing_mcp.preprocessing.corpus_pass import logit_batch_tokens, plan_batches
from diffing_mcp.preprocessing.padding import padded

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.generation import GenerationRequest
    from diffing_mcp.model_pairs.pair import LoadedPair


def mean_log_probs(
    pair: LoadedPair, texts: Sequence[tuple[GenerationRequest, str]], sides: Sequence[Side], progress: Progress
) -> dict[Side, np.ndarray]:
    """Mean log-probability (nats a token) [N] of each answer after its request under each side; NaN for one without
    tokens. What does not fit in the context is left out of the mean.

    Answers are tokenised anew, so that all sides are asked about the same tokens.
    """
    rows = []
    for request, text in texts:
        prompt = prompt_ids(pair.tokenizer, request, False, pair.spec.base.files.thinking_switch)
        answer = list(pair.tokenizer(text, add_special_tokens=False)["input_ids"])
        rows.append(([*prompt, *answer][: pair.context_length], len(prompt)))
    scored = [index for index, (ids, start) in enumerate(rows) if len(ids) > start]
    budget = logit_batch_tokens(pair)
    means: dict[Side, np.ndarray] = {}
    for side in sides:
        means[side] = np.full(len(rows), np.nan)
        with pair.side_loaded(side):
            for batch in plan_batches([len(rows[index][0]) for index in scored], budget):
                progress(0, None, "scoring texts")
                chosen = [scored[place] for place in batch]
                ids, mask = padded([rows[index][0] for index in chosen], pair.tokenizer.pad_token_id)
                log_probs = pair.token_log_probs(side, ids, mask).double().numpy()
                for row, index in enumerate(chosen):
                    first, last = max(1, rows[index][1]) - 1, len(rows[index][0]) - 1
                    if last > first:
                        means[side][index] = log_probs[row, first:last].mean()
    return means
