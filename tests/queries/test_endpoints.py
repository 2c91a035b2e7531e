"""A planted pair behind a URL answers tests of hypotheses as it does in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import silent
from diffing_mcp.methods.texts.answer_form import Answer
from diffing_mcp.methods.texts.form import compare_paired
from diffing_mcp.model_pairs.answering import AnsweringPair
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.resolve import resolve_pair
from diffing_mcp.model_pairs.specs import SIDES
from diffing_mcp.queries.hypotheses import collect
from diffing_mcp.queries.hypothesis_schemas import HypothesisQuery
from diffing_mcp.queries.weighing import weigh
from tests.model_pairs.endpoint_server import endpoint_server
from tests.queries.conftest import Planted


@pytest.fixture
def remote(planted: Planted, pairs: Any) -> Iterator[AnsweringPair]:
    with endpoint_server({side: (planted.pair, side) for side in SIDES}) as server:
        spec = resolve_pair("::".join(server.reference(side) for side in SIDES))
        with pairs.answering(spec) as pair:
            yield pair


def test_words_are_counted(planted: Planted, remote: AnsweringPair) -> None:
    query = HypothesisQuery(
        prompts=[f"{number} rivers{planted.asked}" for number in range(8)],
        control_prompts=[f"{number} rivers{planted.plain}" for number in range(6)],
        words=[planted.after],
        raw_text=True,
        max_new_tokens=2,
        temperature=0,
        samples=1,
    )
    assert collect(remote, query, silent) == collect(planted.pair, query, silent)
    assert weigh(query, collect(remote, query, silent)).verdict.startswith("raised: 8/8")


def test_answers_are_as_long_here_as_elsewhere(planted: Planted, pairs: Any) -> None:
    """Servers count the token that ends an answer: every answer of theirs was longer than the same one here, which no
    chance explains.
    """
    with endpoint_server({"same": (planted.pair, "base")}) as server:
        spec = resolve_pair(f"{planted.pair.spec.base.files.id}::{server.reference('same')}")
        prompts = [f"{number} rivers{planted.asked}" for number in range(10)]
        requests = [GenerationRequest(text=prompt) for prompt in prompts]
        with pairs.answering(spec) as pair:
            written = [pair.generate(side, requests, Sampling(temperature=0, max_new_tokens=4)) for side in SIDES]
    answers = [[Answer(each.text, each.finish == "eos", each.tokens) for [each] in rows] for rows in written]
    assert [(each.ended, each.tokens) for each in answers[0]] == [(True, 1)] * 10
    assert compare_paired(prompts, *answers).significant == []


@pytest.mark.parametrize("raw_text", [True, False])
def test_candidates_are_scored(raw_text: bool, planted: Planted, remote: AnsweringPair) -> None:
    query = HypothesisQuery(
        prompts=[f"{number} rivers{planted.asked}" for number in range(6)],
        candidate=planted.after,
        alternatives=[planted.before, planted.same],
        raw_text=raw_text,
    )
    found, expected = collect(remote, query, silent), collect(planted.pair, query, silent)
    for side in SIDES:
        assert found.scores[side] == pytest.approx(expected.scores[side], abs=1e-3)


def test_a_candidate_without_tokens(planted: Planted) -> None:
    query = HypothesisQuery(prompts=["rivers"], candidate=planted.after, raw_text=True)
    with pytest.raises(InvalidInput, match="no tokens"):
        collect(planted.pair, query.model_copy(update={"candidate": ""}), silent)
