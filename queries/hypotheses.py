"""Putting a hypothesis to both models. Imports torch: only jobs and notebooks import this module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, stage
from diffing_mcp.model_pairs.generation import Sampling
from diffing_mcp.model_pairs.specs import SIDES
from diffing_mcp.queries.asking import completions, requests_of
from diffing_mcp.queries.hypothesis_schemas import HypothesisQuery
from diffing_mcp.queries.weighing import Collected

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.answering import AnsweringPair


def collect(pair: AnsweringPair, query: HypothesisQuery, progress: Progress) -> Collected:
    """Answers of both sides to every question with the same random numbers, or, for a candidate, its log-probability
    as the answer (minus that of all alternatives together, where there are any).

    Raises:
        InvalidInput: a prompt or a candidate that does not fit, a candidate without tokens, or chat prompts for a model
            without a chat template.
        NoLogProbs: a candidate, where a side that is reachable by URL alone scores none.
    """
    requests = requests_of(query.questions, query.raw_text, query.system_prompt)
    if query.candidate is None:
        sampling = Sampling(
            n=query.samples, temperature=query.temperature, max_new_tokens=query.max_new_tokens, seed=query.seed
        )
        found = completions(pair, requests, sampling, SIDES, progress)
        return Collected(texts={side: [[each.text for each in row] for row in rows] for side, rows in found.items()})
    options = [query.candidate, *query.alternatives]
    scores = {}
    for place, side in enumerate(SIDES):
        shown = stage(progress, place, place + 1, len(SIDES), f"{side} scores candidates")
        scored = pair.answer_scores(side, [(request, option) for request in requests for option in options], shown)
        if not all(each.tokens for each in scored) or any(each.cut for each in scored):
            raise InvalidInput("A candidate has no tokens, or does not fit into the context after its prompt.")
        rows = np.array([each.log_prob for each in scored]).reshape(len(requests), len(options))
        against = logsumexp(rows[:, 1:], axis=1) if query.alternatives else 0.0
        scores[side] = (rows[:, 0] - against).tolist()
    return Collected(scores=scores)
