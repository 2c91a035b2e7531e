"""Methods that need texts alone, on models that are reachable by URL alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.methods.registry import all_methods
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.model_pairs.endpoints import TEXT_TOOLS, WeightsNeeded
from diffing_mcp.model_pairs.generation import GenerationRequest
from diffing_mcp.model_pairs.resolve import resolve_pair
from diffing_mcp.model_pairs.scoring import NoLogProbs
from diffing_mcp.model_pairs.specs import SIDES
from tests.model_pairs.endpoint_server import EndpointServer, endpoint_server

PERPLEXITY = {"samples_per_prefill": 1, "max_new_tokens": 6, "min_tokens": 2, "prefills": ("Bake the cake", "Rivers")}
SWEEP = {"limit": 4, "max_new_tokens": 6}


@pytest.fixture
def server(tiny_pair: Any) -> Iterator[EndpointServer]:
    with endpoint_server({side: (tiny_pair, side) for side in SIDES}) as running:
        yield running


@pytest.fixture
def remote(server: EndpointServer) -> Any:
    return resolve_pair(f"{server.reference('base')}::{server.reference('finetuned')}")


def test_the_refusal_names_the_methods_that_work() -> None:
    assert {name for name, method in all_methods().items() if method.texts_only} == {
        name for name in TEXT_TOOLS if name not in ("ask_models", "test_hypothesis")
    }


def test_perplexities_are_those_of_the_models_in_memory(
    tiny_pair: Any, pairs: Any, remote: Any, store: RunStore
) -> None:
    record = run_methods(pairs, remote, [("perplexity_difference", PERPLEXITY)], store)[0]
    rows = record.table("completions").to_pylist()
    assert {row["chat"] for row in rows} == {False, True}
    requests = [
        GenerationRequest(messages=(ChatMessage(role="user", content=row["prefill"]),))
        if row["chat"]
        else GenerationRequest(text=row["prefill"])
        for row in rows
    ]
    answers = list(zip(requests, [row["text"] for row in rows], strict=True))
    texts = [place for place, row in enumerate(rows) if row["chat"]]
    for side in SIDES:
        expected = tiny_pair.answer_scores(side, answers)
        for place in texts:
            assert rows[place][f"log_prob_{side}"] == pytest.approx(expected[place].mean, abs=1e-3)
    assert record.manifest.notes["weights"] == {}
    assert run_methods(pairs, remote, [("perplexity_difference", PERPLEXITY)], store)[0].id == record.id


def test_perplexity_is_refused_before_anything_is_sampled(
    pairs: Any, remote: Any, server: EndpointServer, store: RunStore
) -> None:
    server.log_probs = False
    with pytest.raises(NoLogProbs):
        run_methods(pairs, remote, [("perplexity_difference", PERPLEXITY)], store)
    assert all(body.get("echo") for _, body in server.requests)


def test_a_sweep_judges_words_and_form_alone_without_log_probabilities(
    pairs: Any, remote: Any, server: EndpointServer, store: RunStore
) -> None:
    scored: Any = run_methods(pairs, remote, [("sweep_behaviours", SWEEP)], store)[0].result()
    assert scored.scored
    assert scored.unexpected != 0
    server.log_probs = False
    plain: Any = run_methods(pairs, remote, [("sweep_behaviours", {**SWEEP, "seed": 1})], store)[0].result()
    assert (plain.scored, plain.unexpected, plain.excess_p_value) == (False, 0.0, 1.0)
    assert "surprise was not measured" in plain.as_text()


def test_what_reads_weights_is_refused_and_nothing_is_asked(
    pairs: Any, remote: Any, server: EndpointServer, store: RunStore
) -> None:
    with pytest.raises(WeightsNeeded):
        run_methods(pairs, remote, [("sweep_behaviours", SWEEP), ("kl", {"max_samples": 4})], store)
    assert server.requests == []
