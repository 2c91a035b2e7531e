"""A small LLM server for tests that speaks the real wire protocols: OpenAI chat completions and Anthropic messages,
plain and streamed, with tool calls.

What it "thinks" is a policy: a function from the conversation so far to the next turn, so that it can react to what
tools answered. Requests are checked as strictly as the real services check them (unknown fields, roles, tool results
that answer exactly the calls of the turn before, schemas of tools, keys); a request that breaks a rule is answered with
400 and kept in `violations`.
"""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "test-key-123"


class _Started(uvicorn.Server):
    """A server that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@dataclass
class Call:
    """A tool call of the model."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


@dataclass
class Turn:
    """One turn of the conversation in neutral form."""

    role: str
    text: str = ""
    calls: list[Call] = field(default_factory=list)
    call_id: str | None = None
    is_error: bool = False


@dataclass
class Conversation:
    """What the policy sees."""

    system: str
    turns: list[Turn]
    tools: list[str]

    def answers(self) -> list[tuple[Call, Turn]]:
        """Tool calls with their results, in order."""
        by_id = {call.id: call for turn in self.turns for call in turn.calls}
        return [(by_id[turn.call_id], turn) for turn in self.turns if turn.role == "tool" and turn.call_id]


Policy = Callable[[Conversation], Turn]


class BadRequest(Exception):
    """The request breaks the protocol. `code` is OpenAI's word for it, if it has one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


def require(condition: object, message: str) -> None:
    """Raise BadRequest unless the condition holds."""
    if not condition:
        raise BadRequest(message)


@dataclass
class LLMServer:
    """A running server. `url` is the base without the protocol's path; every valid request is kept in `requests`."""

    url: str
    policy: Policy
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def openai_url(self) -> str:
        """base_url for OpenAI clients."""
        return f"{self.url}/v1"


@contextmanager
def serve(app: Starlette) -> Iterator[str]:
    """The address of an app that is served in a thread."""
    process = _Started(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    assert process.listening.wait(30)
    try:
        yield f"http://127.0.0.1:{process.servers[0].sockets[0].getsockname()[1]}"
    finally:
        process.should_exit = True
        thread.join(10)


@contextmanager
def llm_server(policy: Policy) -> Iterator[LLMServer]:
    """Serve on a free port of the loopback address in a thread."""
    server = LLMServer("", policy)
    ids = itertools.count(1)

    async def openai_chat(request: Request) -> Response:
        return await _answer(server, request, "openai", ids)

    async def anthropic_messages(request: Request) -> Response:
        return await _answer(server, request, "anthropic", ids)

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", openai_chat, methods=["POST"]),
            Route("/v1/messages", anthropic_messages, methods=["POST"]),
        ]
    )
    with serve(app) as server.url:
        yield server


async def _answer(server: LLMServer, request: Request, protocol: str, ids: Iterator[int]) -> Response:
    try:
        body = json.loads(await request.body())
        if protocol == "openai":
            require(request.headers.get("authorization") == f"Bearer {KEY}", "missing or wrong bearer key")
            conversation = read_openai(body)
        else:
            # Current SDKs send the key as a bearer token, older ones as x-api-key; the service takes both.
            sent = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
            require(sent == KEY, "missing or wrong key")
            require(request.headers.get("anthropic-version"), "missing anthropic-version")
            conversation = read_anthropic(body)
        # A policy may refuse as well, to play a service that rejects a request.
        turn = server.policy(conversation)
    except BadRequest as problem:
        server.violations.append(f"{protocol}: {problem}")
        kind: dict[str, Any] = {"type": "error", "error": {"type": "invalid_request_error", "message": str(problem)}}
        if protocol == "openai":
            kind = {"error": {"message": str(problem), "type": "invalid_request_error", "code": problem.code}}
        return JSONResponse(kind, 400)
    server.requests.append((protocol, body))
    number = next(ids)
    for place, call in enumerate(turn.calls):
        call.id = f"{'toolu' if protocol == 'anthropic' else 'call'}_{number}_{place}"
    if protocol == "openai":
        return (
            openai_stream(body, turn, number)
            if body.get("stream")
            else JSONResponse(openai_response(body, turn, number))
        )
    return (
        anthropic_stream(body, turn, number)
        if body.get("stream")
        else JSONResponse(anthropic_response(body, turn, number))
    )


# --- OpenAI chat completions ---

OPENAI_FIELDS = {
    "model", "messages", "tools", "tool_choice", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "n", "stream", "stream_options",  # noqa: E501
    "parallel_tool_calls", "response_format", "user", "logprobs", "top_logprobs", "frequency_penalty", "presence_penalty", "reasoning_effort", "service_tier",  # noqa: E501
    "store", "metadata", "prompt_cache_key", "safety_identifier", "extra_body",
}  # fmt: skip


def read_openai(body: dict[str, Any]) -> Conversation:
    """Check a chat completions request and return its conversation."""
    require(set(body) <= OPENAI_FIELDS, f"unknown fields {sorted(set(body) - OPENAI_FIELDS)}")
    require(isinstance(body.get("model"), str), "model is required")
    require(isinstance(body.get("messages"), list) and body["messages"], "messages is required")
    tools = []
    for tool in body.get("tools") or []:
        require(tool.get("type") == "function", "tools are functions")
        tools.append(check_tool(tool["function"]["name"], tool["function"].get("parameters", {"type": "object"})))
    system: list[str] = []
    turns: list[Turn] = []
    open_calls: list[str] = []
    for message in body["messages"]:
        role = message.get("role")
        require(role in ("system", "developer", "user", "assistant", "tool"), f"unknown role {role!r}")
        require(
            not open_calls or role == "tool", f"calls {open_calls} were not answered before a message of role {role}"
        )
        text = openai_text(message.get("content"))
        if role in ("system", "developer"):
            system.append(text)
        elif role == "tool":
            require(
                message.get("tool_call_id") in open_calls,
                f"tool result for unknown call {message.get('tool_call_id')!r}",
            )
            open_calls.remove(message["tool_call_id"])
            turns.append(Turn("tool", text, call_id=message["tool_call_id"]))
        elif role == "assistant":
            calls = []
            for call in message.get("tool_calls") or []:
                require(
                    call.get("type") == "function" and isinstance(call.get("id"), str),
                    "a tool call has an id and the type function",
                )
                require(isinstance(call["function"]["arguments"], str), "arguments are a JSON string")
                calls.append(Call(call["function"]["name"], json.loads(call["function"]["arguments"]), call["id"]))
            require(calls or text, "an assistant message needs content or tool calls")
            open_calls = [call.id for call in calls]
            turns.append(Turn("assistant", text, calls))
        else:
            turns.append(Turn("user", text))
    require(not open_calls, f"calls {open_calls} were not answered")
    return Conversation("\n".join(system), turns, tools)


def openai_text(content: Any) -> str:
    """Content as a string or a list of text parts."""
    if content is None or isinstance(content, str):
        return content or ""
    require(isinstance(content, list), "content is a string or a list of parts")
    require(
        all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in content),
        "only text parts are supported",
    )
    return "\n".join(part["text"] for part in content)


def openai_message(turn: Turn) -> dict[str, Any]:
    """An assistant message."""
    message: dict[str, Any] = {"role": "assistant", "content": turn.text or None, "refusal": None}
    if turn.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in turn.calls
        ]
    return message


def openai_response(body: dict[str, Any], turn: Turn, number: int) -> dict[str, Any]:
    """A whole chat completion."""
    finish = "tool_calls" if turn.calls else "stop"
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": body["model"],
        "choices": [{"index": 0, "message": openai_message(turn), "finish_reason": finish, "logprobs": None}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def openai_stream(body: dict[str, Any], turn: Turn, number: int) -> Response:
    """The same as server-sent chunks."""
    base = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": body["model"],
    }
    delta = openai_message(turn)
    for place, call in enumerate(delta.get("tool_calls", [])):
        call["index"] = place
    finish = "tool_calls" if turn.calls else "stop"
    chunks: list[dict[str, Any]] = [
        {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
    ]
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks.append(
            {**base, "choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}}
        )
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")


# --- Anthropic messages ---

ANTHROPIC_FIELDS = {
    "model", "messages", "max_tokens", "system", "tools", "tool_choice", "temperature", "top_p", "top_k", "stop_sequences", "stream", "metadata", "thinking",  # noqa: E501
    "service_tier", "cache_control", "output_config",
}  # fmt: skip


def read_anthropic(body: dict[str, Any]) -> Conversation:
    """Check a messages request and return its conversation."""
    require(set(body) <= ANTHROPIC_FIELDS, f"unknown fields {sorted(set(body) - ANTHROPIC_FIELDS)}")
    require(isinstance(body.get("model"), str), "model is required")
    require(isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 0, "max_tokens is required")
    require(isinstance(body.get("messages"), list) and body["messages"], "messages is required")
    require(body["messages"][0].get("role") == "user", "the first message is the user's")
    tools = [check_tool(tool["name"], tool["input_schema"]) for tool in body.get("tools") or []]
    turns: list[Turn] = []
    open_calls: list[str] = []
    for message in body["messages"]:
        role, blocks = message.get("role"), anthropic_blocks(message.get("content"))
        require(role in ("user", "assistant"), f"unknown role {role!r}")
        kinds = [block["type"] for block in blocks]
        if role == "assistant":
            require(not open_calls, f"calls {open_calls} were not answered in the next message")
            require(set(kinds) <= {"text", "tool_use", "thinking"}, f"blocks {kinds} in an assistant message")
            calls = [
                Call(block["name"], block["input"], block["id"]) for block in blocks if block["type"] == "tool_use"
            ]
            open_calls = [call.id for call in calls]
            turns.append(
                Turn("assistant", "\n".join(block["text"] for block in blocks if block["type"] == "text"), calls)
            )
            continue
        require(set(kinds) <= {"text", "tool_result"}, f"blocks {kinds} in a user message")
        results = [block for block in blocks if block["type"] == "tool_result"]
        require(
            sorted(block["tool_use_id"] for block in results) == sorted(open_calls),
            f"results for {[block['tool_use_id'] for block in results]}, calls {open_calls}",
        )
        require(kinds[: len(results)] == ["tool_result"] * len(results), "tool results come first")
        open_calls = []
        for block in results:
            text = "\n".join(part["text"] for part in anthropic_blocks(block.get("content", "")))
            turns.append(Turn("tool", text, call_id=block["tool_use_id"], is_error=bool(block.get("is_error"))))
        if said := [block["text"] for block in blocks if block["type"] == "text"]:
            turns.append(Turn("user", "\n".join(said)))
    require(not open_calls, f"calls {open_calls} were not answered")
    system = "\n".join(block["text"] for block in anthropic_blocks(body.get("system") or []))
    return Conversation(system, turns, tools)


def anthropic_blocks(content: Any) -> list[dict[str, Any]]:
    """Content as a list of blocks; empty text blocks are refused, as the service does."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) and content else content or []
    require(isinstance(blocks, list), "content is a string or a list of blocks")
    require(all(block.get("type") != "text" or block.get("text") for block in blocks), "text blocks must not be empty")
    return blocks


def anthropic_content(turn: Turn) -> list[dict[str, Any]]:
    """The blocks of an assistant message."""
    text = [{"type": "text", "text": turn.text}] if turn.text else []
    return [
        *text,
        *({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in turn.calls),
    ]


def anthropic_response(body: dict[str, Any], turn: Turn, number: int) -> dict[str, Any]:
    """A whole message."""
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": anthropic_content(turn),
        "stop_reason": "tool_use" if turn.calls else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 60,
            "cache_read_input_tokens": 30,
            "cache_creation_input_tokens": 10,
            "output_tokens": 20,
        },
    }


def anthropic_stream(body: dict[str, Any], turn: Turn, number: int) -> Response:
    """The same as server-sent events."""
    whole = anthropic_response(body, turn, number)
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}}]
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            events.append(
                {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}}
            )
            events.append(
                {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": block["text"]}}
            )
        else:
            events.append({"type": "content_block_start", "index": index, "content_block": {**block, "input": {}}})
            events.append(
                {
                    "type": "content_block_delta",
                    "index": index,
                    "delta": {"type": "input_json_delta", "partial_json": json.dumps(block["input"])},
                }
            )
        events.append({"type": "content_block_stop", "index": index})
    events.append(
        {
            "type": "message_delta",
            "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
            "usage": {"output_tokens": 20},
        }
    )
    events.append({"type": "message_stop"})
    return StreamingResponse(
        (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events), media_type="text/event-stream"
    )


def check_tool(name: str, schema: dict[str, Any]) -> str:
    """A tool's name and JSON schema."""
    require(
        isinstance(name, str)
        and 1 <= len(name) <= 64
        and all(character.isalnum() or character in "_-" for character in name),
        f"tool name {name!r}",
    )
    require(schema.get("type") == "object", f"the schema of {name} is an object")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise BadRequest(f"the schema of {name} is not valid: {error.message}") from error
    return name
