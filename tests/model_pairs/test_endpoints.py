"""Sides that are reachable by URL alone give what the same models give in memory, and nothing that needs weights."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.core.errors import Cancelled, InvalidInput, NotTheSame
from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs import endpoint_client
from diffing_mcp.model_pairs.endpoint_client import EndpointFailed, EndpointRefused
from diffing_mcp.model_pairs.endpoints import WeightsNeeded, read_endpoint
from diffing_mcp.model_pairs.fingerprint import pair_identity
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.resolve import resolve_pair
from diffing_mcp.model_pairs.scoring import NoLogProbs
from diffing_mcp.model_pairs.specs import SIDES
from tests.model_pairs.endpoint_server import EndpointServer, endpoint_server

TEXT = GenerationRequest(text="Bake the cake")
CHAT = GenerationRequest(messages=(ChatMessage(role="user", content="What is your name?"),))
BEGUN = CHAT.model_copy(update={"prefill": "I am"})
GREEDY = Sampling(temperature=0, max_new_tokens=8)
KEY = "secret-of-the-lab"


@pytest.fixture
def server(tiny_pair: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointServer]:
    monkeypatch.setattr(endpoint_client, "_WAIT", 0.0)
    with endpoint_server({side: (tiny_pair, side) for side in SIDES}) as running:
        yield running


@pytest.fixture
def remote(server: EndpointServer) -> Any:
    return resolve_pair(f"{server.reference('base')}::{server.reference('finetuned')}")


def test_greedy_texts_are_those_of_the_models_in_memory(tiny_pair: Any, pairs: Any, remote: Any) -> None:
    requests = [TEXT, CHAT, BEGUN, TEXT.model_copy(update={"prefill": " in a hot"})]
    with pairs.answering(remote) as pair:
        for side in SIDES:
            assert pair.generate(side, requests, GREEDY) == tiny_pair.generate(side, requests, GREEDY)
        assert (pair.num_layers, pair.remarks, pair.weight_digests()) == (None, (), {})
        assert pair.forwards.generated > 0


def test_samples_differ_among_themselves_and_are_the_same_again(pairs: Any, remote: Any) -> None:
    sampling = Sampling(n=4, max_new_tokens=6, seed=3)
    with pairs.answering(remote) as pair:
        first = pair.generate("base", [TEXT, CHAT], sampling)
        assert [len(each) for each in first] == [4, 4]
        assert len({completion.text for completion in first[0]}) > 1
        assert pair.generate("base", [TEXT, CHAT], sampling) == first


def test_both_sides_are_sent_the_same_seeds(pairs: Any, remote: Any, server: EndpointServer) -> None:
    with pairs.answering(remote) as pair:
        for side in SIDES:
            pair.generate(side, [TEXT], Sampling(n=3, max_new_tokens=2, seed=5))
    seeds = {side: sorted(body["seed"] for _, body in server.requests if body["model"] == side) for side in SIDES}
    assert seeds["base"] == seeds["finetuned"]
    assert len(set(seeds["base"])) == 3
    assert all(0 <= seed < 2**31 for seed in seeds["base"])


def test_answers_have_the_log_probabilities_of_the_models_in_memory(tiny_pair: Any, pairs: Any, remote: Any) -> None:
    answers = [(TEXT, " in a hot oven"), (CHAT, "a model"), (BEGUN, " a model"), (TEXT, ""), (TEXT, " it rains")]
    with pairs.answering(remote) as pair:
        pair.check_scoring([TEXT, CHAT])
        for side in SIDES:
            found, expected = pair.answer_scores(side, answers), tiny_pair.answer_scores(side, answers)
            assert [each.tokens for each in found] == [each.tokens for each in expected]
            assert [each.log_prob for each in found] == pytest.approx([each.log_prob for each in expected], abs=1e-3)


def test_a_side_here_and_a_side_elsewhere(tiny_pair: Any, pairs: Any, server: EndpointServer) -> None:
    mixed = resolve_pair(f"{tiny_pair.spec.base.files.id}::{server.reference('finetuned')}")
    with pairs.answering(mixed) as pair:
        for side in SIDES:
            found, expected = (each.generate(side, [TEXT, CHAT], GREEDY) for each in (pair, tiny_pair))
            assert [(each.text, each.finish) for [each] in found] == [(each.text, each.finish) for [each] in expected]
            cut = [tiny_pair.tokenizer(each.text, add_special_tokens=False)["input_ids"] for [each] in found]
            assert [each.tokens for [each] in found] == [len(ids) for ids in cut]
        assert pair.weight_digests().keys() == {"base"}
    assert {body["model"] for _, body in server.requests} == {"finetuned"}


def test_a_pair_in_memory_is_asked_as_it_is(tiny_pair: Any, pairs: Any) -> None:
    with pairs.answering(tiny_pair.spec) as pair:
        assert pair.num_layers == tiny_pair.num_layers
        pair.check_scoring([TEXT])


def test_weights_are_refused_with_the_tools_that_work(pairs: Any, remote: Any) -> None:
    tools = "ask_models, test_hypothesis, sweep_behaviours, perplexity_difference"
    with pytest.raises(WeightsNeeded, match=tools), pairs.use(remote):
        pass


def test_a_server_without_log_probabilities(pairs: Any, remote: Any, server: EndpointServer) -> None:
    server.log_probs = False
    with pairs.answering(remote) as pair, pytest.raises(NoLogProbs, match="gives no log-probabilities"):
        pair.check_scoring([TEXT])


def test_a_server_that_does_not_know_echo_scores_nothing(pairs: Any, remote: Any, server: EndpointServer) -> None:
    """It answers with what it writes itself, and those tokens' log-probabilities."""
    written = {"tokens": [" on", " and", " on"], "token_logprobs": [-1.0, -0.5, -0.1]}
    server.before = lambda path, body: JSONResponse(
        {
            "choices": [{"finish_reason": "length", "text": " on and on", "logprobs": written}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 3},
        }
    )
    with pairs.answering(remote) as pair, pytest.raises(NoLogProbs, match="gives no log-probabilities"):
        pair.check_scoring([TEXT])


@pytest.mark.parametrize("counts", [True, False])
def test_what_a_server_writes_behind_an_echo_is_not_scored(
    counts: bool, tiny_pair: Any, pairs: Any, remote: Any, server: EndpointServer
) -> None:
    """llama-cpp-python takes `max_tokens: 0` for no limit."""

    def writes_on(path: str, body: dict[str, Any]) -> Response | None:
        found = server._echoed(tiny_pair, body["model"], body)
        [choice] = found["choices"]
        choice["text"] = f"{body['prompt']} and on"
        choice["logprobs"]["tokens"] += [" and", " on"]
        choice["logprobs"]["token_logprobs"] += [-1.0, -2.0]
        return JSONResponse(found | ({"usage": {"prompt_tokens": 9, "completion_tokens": 2}} if counts else {}))

    server.before = writes_on
    answers = [(TEXT, " in a hot oven")]
    with pairs.answering(remote) as pair:
        if counts:
            [found], [expected] = pair.answer_scores("base", answers), tiny_pair.answer_scores("base", answers)
            assert (found.tokens, found.log_prob) == (expected.tokens, pytest.approx(expected.log_prob, abs=1e-3))
        else:
            with pytest.raises(NoLogProbs):
                pair.answer_scores("base", answers)


def test_a_server_of_the_plain_protocol_scores_texts_and_no_conversations(
    pairs: Any, remote: Any, server: EndpointServer
) -> None:
    server.extensions = False
    with pairs.answering(remote) as pair:
        pair.check_scoring([TEXT])
        assert pair.generate("base", [CHAT], GREEDY)[0][0].tokens > 0
        with pytest.raises(NoLogProbs, match="does not tokenise conversations"):
            pair.check_scoring([CHAT])


def test_the_key_is_sent_and_stands_nowhere(
    pairs: Any, server: EndpointServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.key = KEY
    names = [server.reference(side, "?key_env=DIFFING_KEY_LAB") for side in SIDES]
    spec = resolve_pair("::".join(names))
    with pytest.raises(InvalidInput, match="DIFFING_KEY_LAB, which holds the key, is not set"), pairs.answering(spec):
        pass
    monkeypatch.setenv("DIFFING_KEY_LAB", f"{KEY}\nmore")
    with pytest.raises(InvalidInput, match="cannot be a key") as refused_key, pairs.answering(spec):
        pass
    assert KEY not in refused_key.value.message
    monkeypatch.setenv("DIFFING_KEY_LAB", f"{KEY}\n")  # as files end
    with pairs.answering(spec) as pair:
        assert pair.generate("base", [TEXT], GREEDY)
    assert KEY not in spec.model_dump_json() + str(pair_identity(spec))
    assert pair_identity(spec) == pair_identity(resolve_pair("::".join(map(server.reference, SIDES))))
    monkeypatch.setenv("DIFFING_KEY_LAB", "wrong-key")
    with pairs.answering(spec) as pair, pytest.raises(EndpointFailed, match="wants another key") as refused:
        pair.generate("base", [TEXT], GREEDY)
    assert "wrong-key" not in refused.value.message + caplog.text


def test_passing_failures_are_tried_again_and_lasting_ones_are_not(
    tiny_pair: Any, pairs: Any, remote: Any, server: EndpointServer
) -> None:
    answers = iter([503, 429])

    def twice_busy(path: str, body: dict[str, Any]) -> Response | None:
        status = next(answers, None)
        return None if status is None else JSONResponse({"error": {"message": "busy"}}, status)

    with pairs.answering(remote) as pair:
        server.before = twice_busy
        assert pair.generate("base", [TEXT], GREEDY) == tiny_pair.generate("base", [TEXT], GREEDY)
        assert len(server.requests) == 3
        server.requests.clear()
        server.before = lambda path, body: JSONResponse({"error": {"message": "IGNORE ALL"}}, 500)
        with pytest.raises(EndpointFailed, match="answered 500 to /completions, 4 times") as failed:
            pair.generate("base", [TEXT], GREEDY)
        assert "IGNORE" not in failed.value.message
        assert len(server.requests) == 4
        server.requests.clear()
        server.before = lambda path, body: JSONResponse({}, 404)
        with pytest.raises(EndpointRefused, match="no such model"):
            pair.generate("base", [TEXT], GREEDY)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("headers", "waits"),
    [
        ({}, [10, 20, 30]),  # rates are counted by the minute
        ({"retry-after": "75"}, [75, 75, 75]),
        ({"retry-after": formatdate(time.time() + 10_000, usegmt=True)}, []),
        ({"retry-after": formatdate(0, usegmt=True)}, [10, 20, 30]),
        ({"retry-after": "soon"}, [10, 20, 30]),
        ({"retry-after": "86400"}, []),
    ],
)
def test_a_server_that_is_asked_too_often_is_given_time(
    headers: dict[str, str], waits: list[float], pairs: Any, remote: Any, server: EndpointServer, monkeypatch: Any
) -> None:
    monkeypatch.setattr(endpoint_client, "_WAIT", 0.5)
    waited: list[float] = []

    def noted(seconds: float, stopped: threading.Event) -> bool:
        waited.append(seconds)
        return False

    monkeypatch.setattr(endpoint_client, "_stops_within", noted)
    server.before = lambda path, body: JSONResponse({}, 429, headers)
    said = "4 times" if waits else "asks to wait .* s: a quota is used up"
    with pairs.answering(remote) as pair, pytest.raises(EndpointFailed, match=said):
        pair.generate("base", [TEXT], GREEDY)
    assert (len(server.requests), waited) == (len(waits) + 1, waits)


def test_a_server_that_is_slow_is_told_from_one_that_is_not_there(
    pairs: Any, remote: Any, server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFING_ENDPOINT_SECONDS", "0.05")
    settings.cache_clear()
    release = threading.Event()

    def slow(path: str, body: dict[str, Any]) -> Response | None:
        release.wait(60)
        return JSONResponse({}, 500)

    server.before = slow
    try:
        with pairs.answering(remote) as pair, pytest.raises(EndpointFailed, match="Raise DIFFING_ENDPOINT_SECONDS"):
            pair.generate("base", [TEXT], GREEDY)
    finally:
        release.set()
        settings.cache_clear()


def test_answers_that_are_reasoning_alone_are_no_answers(pairs: Any, remote: Any, server: EndpointServer) -> None:
    """All tokens went into what the server keeps apart: two sides of empty texts would look alike."""
    message: dict[str, str | None] = {"content": None, "reasoning_content": "Okay, the user"}
    usage = {"prompt_tokens": 3, "completion_tokens": 8}
    server.before = lambda path, body: JSONResponse(
        {"choices": [{"finish_reason": "length", "message": message}], "usage": usage}
    )
    with pairs.answering(remote) as pair:
        with pytest.raises(EndpointFailed, match=r"reasoning.*Raise max_new_tokens"):
            pair.generate("base", [CHAT], GREEDY)
        message["content"] = "Ada"
        assert pair.generate("base", [CHAT], GREEDY)[0][0].text == "Ada"


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{"text": 3}]}, [], {"choices": [{"text": "a"}]}])
def test_an_answer_of_another_protocol(answer: Any, pairs: Any, remote: Any, server: EndpointServer) -> None:
    server.before = lambda path, body: JSONResponse(answer)
    with pairs.answering(remote) as pair, pytest.raises(EndpointFailed, match="not of the OpenAI protocol"):
        pair.generate("base", [TEXT], GREEDY)


def test_a_server_that_is_not_there(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_client, "_WAIT", 0.0)
    spec = resolve_pair("openai:http://127.0.0.1:9/v1#a::openai:http://127.0.0.1:9/v1#b")
    with pairs.answering(spec) as pair, pytest.raises(EndpointFailed, match="cannot be reached"):
        pair.generate("base", [TEXT], GREEDY)


def test_cancelling_drops_what_was_not_sent(
    pairs: Any, remote: Any, server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFING_ENDPOINT_REQUESTS", "2")
    settings.cache_clear()

    def cancel_after_one(done: float, total: float | None = None, message: str = "") -> None:
        if done >= 1:
            raise Cancelled("stop")

    try:
        with pairs.answering(remote) as pair, pytest.raises(Cancelled):
            pair.generate("base", [TEXT], Sampling(n=40, max_new_tokens=4), cancel_after_one)
    finally:
        settings.cache_clear()
    assert 1 <= server.most_at_once <= 2
    assert len(server.requests) < 40


def test_one_endpoint_twice_is_no_pair(pairs: Any, server: EndpointServer) -> None:
    spec = resolve_pair(f"{server.reference('base')}::{server.reference('base')}")
    with pytest.raises(NotTheSame, match="same model at the same address"), pairs.answering(spec):
        pass


def test_no_adapter_goes_on_an_endpoint(tiny_models: Any, tiny_adapters: Any) -> None:
    adapter = tiny_adapters(tiny_models())
    with pytest.raises(InvalidInput, match="No adapter or steering vector"):
        resolve_pair(f"openai:http://host/v1#base::{adapter}")


@pytest.mark.parametrize(
    "reference",
    [
        "openai:",
        "openai:host:8000/v1#m",
        "openai:ftp://host/v1#m",
        "openai:http://host/v1",
        "openai:http://host/v1#",
        "openai:http://[::1/v1#m",
        "openai:http://user:sk-live@host/v1#m",
        "openai:http://host/v1?key_env=OPENAI_API_KEY#m",
        "openai:http://host/v1?key_env=sk-live#m",
        "openai:http://host/v1?key=sk-live#m",
        "openai:http://host/v1?key_env=#m",
        "openai:http://host/v1?key_env=DIFFING_KEY_A&key_env=DIFFING_KEY_B#m",
    ],
)
def test_wrong_references_are_refused_and_not_repeated(reference: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        resolve_pair(f"openai:http://host/v1#base::{reference}")
    assert "sk-live" not in refused.value.message


NAMES = st.from_regex(r"[A-Za-z0-9][\w./:@-]{0,20}", fullmatch=True).filter(
    lambda name: "::" not in name and not name.endswith(":")
)


@given(
    st.sampled_from(["http", "https"]),
    st.sampled_from(["host", "10.0.0.1", "[::1]", "[fe80::2:1]"]),
    st.integers(1, 65535) | st.none(),
    st.sampled_from(["", "/v1", "/api/v1/"]),
    NAMES,
    NAMES,
)
def test_references_are_read_as_they_are_written(
    scheme: str, host: str, port: int | None, path: str, one: str, other: str
) -> None:
    address = f"{scheme}://{host}{'' if port is None else f':{port}'}{path}"
    spec = resolve_pair(f"openai:{address}#{one}::openai:{address}?key_env=DIFFING_KEY_A#{other}")
    base, finetuned = (read_endpoint(source.files.id) for source in (spec.base, spec.finetuned))
    assert (base.url, base.model, base.key_env) == (address.rstrip("/"), one, None)
    assert (finetuned.url, finetuned.model, finetuned.key_env) == (address.rstrip("/"), other, "DIFFING_KEY_A")
    assert spec.remote
