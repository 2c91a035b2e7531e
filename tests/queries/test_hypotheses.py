"""A test of a hypothesis on a planted pair: what it counts and scores is what was planted."""

from __future__ import annotations

from math import exp, log

import pytest

from diffing_mcp.core.progress import silent
from diffing_mcp.queries.hypotheses import collect
from diffing_mcp.queries.hypothesis_schemas import HypothesisQuery
from diffing_mcp.queries.prompt_statistics import RateDifference
from diffing_mcp.queries.weighing import weigh
from tests.bigram_models import STRENGTH
from tests.conftest import VOCABULARY
from tests.queries.conftest import Planted

CERTAIN = -log(1 + (VOCABULARY - 1) * exp(-STRENGTH))
"""Log-probability of the word that a bigram model expects."""


def prompts(last: str, count: int) -> list[str]:
    return [f"{number} rivers{last}" for number in range(count)]


def test_a_planted_word_is_raised_where_it_was_planted_and_nowhere_else(planted: Planted) -> None:
    query = HypothesisQuery(
        prompts=prompts(planted.asked, 8),
        control_prompts=prompts(planted.plain, 6),
        words=[planted.after],
        raw_text=True,
        max_new_tokens=2,
        temperature=1,
    )
    result = weigh(query, collect(planted.pair, query, silent))
    assert result.differs
    assert result.verdict.startswith("raised: 3")
    assert isinstance(result.tested.difference, RateDifference)
    assert result.tested.difference.finetuned >= 30  # of 32, each with probability 0.998
    assert result.tested.difference.base <= 1
    assert result.control is not None
    assert isinstance(result.control.difference, RateDifference)
    assert (result.control.difference.difference, result.control.difference.p) == (0.0, 1.0)
    again = weigh(query, collect(planted.pair, query, silent))
    assert again == result


def test_a_candidate_has_its_exact_log_probability_and_log_odds(planted: Planted) -> None:
    query = HypothesisQuery(prompts=prompts(planted.asked, 6), candidate=planted.after, raw_text=True)
    scores = collect(planted.pair, query, silent).scores
    assert scores["finetuned"] == pytest.approx([CERTAIN] * 6, abs=1e-3)
    assert scores["base"] == pytest.approx([CERTAIN - STRENGTH] * 6, abs=1e-3)
    against = query.model_copy(update={"alternatives": [planted.before, planted.same]})
    scores = collect(planted.pair, against, silent).scores
    # Both alternatives are as unlikely under finetuned; one of them is what base expects.
    assert scores["finetuned"] == pytest.approx([STRENGTH - log(2)] * 6, abs=1e-3)
    assert scores["base"] == pytest.approx([-log(exp(STRENGTH) + 1)] * 6, abs=1e-3)
    assert weigh(against, collect(planted.pair, against, silent)).differs
    assert not weigh(query, collect(planted.pair, query, silent)).differs, "any training moves a probability"
    special = query.model_copy(update={"control_prompts": prompts(planted.plain, 6)})
    assert weigh(special, collect(planted.pair, special, silent)).differs


def test_equal_models_show_no_difference(identical_pair) -> None:
    query = HypothesisQuery(prompts=prompts("", 6), pattern="[a-m]", samples=3, max_new_tokens=6, temperature=1)
    result = weigh(query, collect(identical_pair, query, silent))
    assert isinstance(result.tested.difference, RateDifference)
    assert (result.tested.difference.difference, result.tested.difference.p, result.differs) == (0.0, 1.0, False)
