"""Putting a hypothesis to both models. Imports torch: only jobs and notebooks import this module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffing_mcp.core.progress import Progress
from diffing_mcp.model_pairs.generation import Sampling
from diffing_mcp.model_pairs.specs import SIDES
from diffing_mcp.queries.asking import completions, requests_of
from diffing_mcp.queries.beyond_tokens import answer_log_probs
from diffing_mcp.queries.hypothesis_schemas import HypothesisQuery
from diffing_mcp.queries.weighing import Collected

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair


def collect(pair: LoadedPair, query: HypothesisQuery, progress: Progress) -> Collected:
    """Answers of both sides to every question with the same random numbers, or, for a candidate, its log-probability
    as the answer (minus that of all alternatives together, where there are any).

    Raises:
        InvalidInput: a prompt that does not fit, or chat prompts for a model without a chat template.
    """
    requests = requests_of(query.questions, query.raw_text, query.system_prompt)
    if query.candidate is None:
        sampling = Sampling(
            n=query.samples, temperature=query.temperature, max_new_tokens=query.max_new_tokens, seed=query.seed
        )
        found = completions(pair, requests, sampling, SIDES, progress)
        return Collected(texts={side: [[each.text for each in row] for row in rows] for side, rows in found.items()})
    options = [query.candidate, *query.alternatives]
    progress(0, 1, "scoring candidates")
    totals = answer_log_probs(pair, [(request, option) for request in requests for option in options])
    scores = {}
    for side in SIDES:
        rows = totals[side].view(len(requests), len(options))
        against = rows[:, 1:].logsumexp(1) if query.alternatives else 0.0
        scores[side] = (rows[:, 0] - against).tolist()
    return Collected(scores=scores)
