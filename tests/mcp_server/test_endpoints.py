"""Through the server, a pair that is reachable by URL alone answers questions and refuses everything else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from mcp import Client

from diffing_mcp.model_pairs.specs import SIDES
from tests.mcp_server.answers import good, refused
from tests.model_pairs.endpoint_server import EndpointServer, endpoint_server

KEY = "secret-of-the-lab"


@pytest.fixture
def server(tiny_pair: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointServer]:
    monkeypatch.setenv("DIFFING_KEY_LAB", KEY)
    with endpoint_server({side: (tiny_pair, side) for side in SIDES}, key=KEY) as running:
        yield running


@pytest.fixture
def name(server: EndpointServer) -> str:
    return "::".join(server.reference(side, "?key_env=DIFFING_KEY_LAB") for side in SIDES)


async def test_questions_are_answered(modern: Client, name: str) -> None:
    asked = {"pair": name, "prompts": ["What is your name?"], "max_new_tokens": 6, "wait_seconds": 60}
    assert KEY not in str(await good(modern, "ask_models", asked))
    tested = {**asked, "prompts": [f"What is {number}?" for number in range(6)], "words": ["model"]}
    assert "difference" in str(await good(modern, "test_hypothesis", tested))


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("kl", {}),
        ("pca", {}),
        ("weight_difference", {}),
        ("compare_text", {"text": "Rivers run"}),
        ("complete_slots", {"beginnings": ["Rivers"]}),
        ("overview", {}),
        ("load_pair", {}),
    ],
)
async def test_the_rest_refuses_in_one_sentence(
    tool: str, arguments: dict[str, Any], modern: Client, name: str, server: EndpointServer
) -> None:
    said = await refused(modern, tool, {"pair": name, "wait_seconds": 60, **arguments})
    assert "reachable by URL alone" in str(said)
    assert "ask_models, test_hypothesis, sweep_behaviours, perplexity_difference." in str(said)
    assert server.requests == []
