"""Our server with the tools, prompts and resources that the conformance suite calls by name. The tools are
declarations like all of ours, so every answer passes through the same validation, jobs and envelope.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.types import EmbeddedResource, ImageContent, TextResourceContents
from pydantic import BaseModel

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import Arguments, Reply, ToolDeclaration
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.mcp_server.offer import Offer, Selection
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server import DiffingServer
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.toolset import toolset

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
STEPS = 3


class Nothing(BaseModel):
    """The result of a fixture."""


async def simple_text(call: Call, arguments: Arguments) -> Reply:
    return Reply(text="This is a simple text response for testing.")


async def failing(call: Call, arguments: Arguments) -> Reply:
    raise InvalidInput("This tool intentionally returns an error for testing")


async def changes_the_list(call: Call, arguments: Arguments) -> Reply:
    call.list_changed = True
    return Reply(text="The list of tools has changed.")


async def with_progress(call: Call, arguments: Arguments) -> Reply:
    """A job whose steps go on once the one before has been reported."""
    told, report = threading.Semaphore(0), call.report

    async def reported(job: Job) -> None:
        if report is not None:
            await report(job)
        told.release()

    def work(job: Job) -> Nothing:
        for step in range(STEPS):
            job(step, STEPS)
            told.acquire(timeout=10)
        return Nothing()

    call.report = reported
    job = call.context.jobs.submit("test_tool_with_progress", call.caller.scope, id(call), work, device="fixture")
    await call.context.jobs.wait(job, 30, call.report)
    return call.reply_of(job, lambda call, result: Reply(result, "All steps were reported."))


FIXTURES: dict[str, Callable[[Call, Arguments], Awaitable[Reply]]] = {
    "test_simple_text": simple_text,
    "test_error_handling": failing,
    "test_tool_with_progress": with_progress,
    "test_trigger_tool_change": changes_the_list,
}


def conformance_server(context: ServerContext) -> DiffingServer:
    """The server as it is, all its tools listed, and the fixtures beside them."""
    server = build_server(context, None)
    tools = {
        name: ToolDeclaration(name, name, f"Fixture: {name}.", Arguments, Nothing, handler)
        for name, handler in FIXTURES.items()
    }
    server.offer = Offer({**toolset(), **tools}, {}, Selection(("all",)))
    _add_prompts(server)
    _add_resources(server)
    return server


def _add_prompts(server: DiffingServer) -> None:
    @server.prompt(name="test_simple_prompt", description="Fixture.")
    def simple() -> str:
        return "This is a simple prompt for testing."

    @server.prompt(name="test_prompt_with_arguments", description="Fixture.")
    def with_arguments(arg1: str, arg2: str) -> str:
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt(name="test_prompt_with_embedded_resource", description="Fixture.")
    def with_resource(resourceUri: str) -> list[UserMessage]:
        text = TextResourceContents(uri=resourceUri, mime_type="text/plain", text="Embedded resource content.")
        return [UserMessage(EmbeddedResource(type="resource", resource=text)), UserMessage("Please process it.")]

    @server.prompt(name="test_prompt_with_image", description="Fixture.")
    def with_image() -> list[UserMessage]:
        return [UserMessage(ImageContent(type="image", data=PIXEL, mime_type="image/png")), UserMessage("Analyze it.")]


def _add_resources(server: DiffingServer) -> None:
    @server.resource("test://static-text", mime_type="text/plain")
    def text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png")
    def binary() -> bytes:
        return b"\x89PNG"

    @server.resource("test://template/{id}/data", mime_type="application/json")
    def templated(id: str) -> str:
        return f'{{"id": "{id}"}}'
