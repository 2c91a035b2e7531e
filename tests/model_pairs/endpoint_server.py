"""An OpenAI-compatible server for tests: tiny models behind the real protocol, checked as strictly as the services do.

`/v1/chat/completions`, `/v1/completions` with `echo` and `logprobs`, and vLLM's `/tokenize`. It can play a plainer
server (`extensions=False`), one without log-probabilities, and one that fails.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling, prompt_ids
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.specs import Side
from tests.agents.llm_server import OPENAI_FIELDS, BadRequest, require, serve

EXTENSIONS = {"add_generation_prompt", "continue_final_message", "chat_template_kwargs"}
COMPLETION_FIELDS = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "echo", "logprobs"}
TOKENIZE_FIELDS = EXTENSIONS | {"model", "messages", "prompt", "add_special_tokens"}

Answer = dict[str, Any]
Before = Callable[[str, Answer], Response | None]


@dataclass
class EndpointServer:
    """A running server. `before` may answer in the place of the models; what it was asked is in `requests`."""

    models: Mapping[str, tuple[LoadedPair, Side]]
    url: str = ""
    key: str | None = None
    extensions: bool = True
    log_probs: bool = True
    before: Before = lambda path, body: None
    requests: list[tuple[str, Answer]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reference(self, model: str, options: str = "") -> str:
        """A side of a pair."""
        return f"openai:{self.url}/v1{options}#{model}"

    async def answer(self, request: Request) -> Response:
        path, body = request.url.path, json.loads(await request.body())
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            self.requests.append((path, body))
        try:
            return await run_in_threadpool(self._answered, path, body, request.headers.get("authorization"))
        except BadRequest as problem:
            self.violations.append(f"{path}: {problem}")
            return _error(400, str(problem))
        finally:
            with self._lock:
                self._now -= 1

    def _answered(self, path: str, body: Answer, sent: str | None) -> Response:
        if (early := self.before(path, body)) is not None:
            return early
        if self.key is not None and sent != f"Bearer {self.key}":
            return _error(401, f"wrong key: {sent}")
        if body.get("model") not in self.models:
            return _error(404, f"no model {body.get('model')!r}")
        pair, side = self.models[body["model"]]
        if path == "/tokenize":
            if not self.extensions:
                return _error(404, "no such path")
            require(set(body) <= TOKENIZE_FIELDS, f"unknown fields {sorted(set(body) - TOKENIZE_FIELDS)}")
            return JSONResponse({"tokens": self._tokens(pair, body)})
        if path.endswith("chat/completions"):
            allowed = OPENAI_FIELDS | (EXTENSIONS if self.extensions else set())
            require(set(body) <= allowed, f"unknown fields {sorted(set(body) - allowed)}")
            asked = GenerationRequest(messages=_messages(body))
            return JSONResponse(self._written(pair, side, asked, body, lambda text: {"message": {"content": text}}))
        require(set(body) <= COMPLETION_FIELDS, f"unknown fields {sorted(set(body) - COMPLETION_FIELDS)}")
        require(body.get("prompt"), "prompt must not be empty")
        if body.get("echo"):
            return JSONResponse(self._echoed(pair, side, body))
        asked = GenerationRequest(text=body["prompt"])
        return JSONResponse(self._written(pair, side, asked, body, lambda text: {"text": text}))

    def _tokens(self, pair: LoadedPair, body: Answer) -> list[int]:
        if "messages" in body:
            return prompt_ids(pair.tokenizer, GenerationRequest(messages=_messages(body)), False, False)
        special = body.get("add_special_tokens", True)
        return list(pair.tokenizer(body["prompt"], add_special_tokens=special)["input_ids"])

    def _written(
        self, pair: LoadedPair, side: Side, asked: GenerationRequest, body: Answer, form: Callable[[str], Answer]
    ) -> Answer:
        sampling = Sampling(
            temperature=body["temperature"], top_p=body["top_p"], max_new_tokens=body["max_tokens"], seed=body["seed"]
        )
        with self._lock:  # which sample is drawn must not depend on what else is asked
            [[completion]] = pair.generate(side, [asked], sampling)
        finish = "length" if completion.finish == "length" else "stop"
        prompt = len(prompt_ids(pair.tokenizer, asked, False, False))
        written = completion.tokens + (finish == "stop")  # vLLM counts the stop token
        return {
            "choices": [{"index": 0, "finish_reason": finish, **form(completion.text)}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": written},
        }

    def _echoed(self, pair: LoadedPair, side: Side, body: Answer) -> Answer:
        if not self.log_probs:
            return {"choices": [{"index": 0, "finish_reason": "length", "text": "", "logprobs": None}]}
        prompt = body["prompt"]
        ids = prompt if isinstance(prompt, list) else list(pair.tokenizer(prompt)["input_ids"])
        found = pair.token_log_probs(side, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
        tokens = [str(pair.tokenizer.decode([each])) for each in ids]
        logprobs = {"tokens": tokens, "token_logprobs": [None, *found[0].tolist()]}
        return {"choices": [{"index": 0, "finish_reason": "length", "text": "", "logprobs": logprobs}]}


def _messages(body: Answer) -> tuple[ChatMessage, ...]:
    require(body.get("messages"), "messages is required")
    messages = tuple(ChatMessage.model_validate(each) for each in body["messages"])
    begun = messages[-1].role == "assistant"
    require(begun == body.get("continue_final_message", False), "a begun answer goes with continue_final_message")
    require(begun != body.get("add_generation_prompt", True), "either the prompt of an answer or a begun one")
    return messages


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)


@contextmanager
def endpoint_server(models: Mapping[str, tuple[LoadedPair, Side]], **settings: Any) -> Iterator[EndpointServer]:
    """Serve these models on a free port of the loopback address in a thread."""
    server = EndpointServer(models, **settings)
    paths = ("/v1/chat/completions", "/v1/completions", "/tokenize")
    with serve(Starlette(routes=[Route(path, server.answer, methods=["POST"]) for path in paths])) as server.url:
        yield server
    assert server.violations == []
