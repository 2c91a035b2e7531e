"""The page that hosts show beside answers: listed for those that say that they render it, and for no others; what it
draws; pictures of figures elsewhere.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.client.extension import ClientExtension, advertise
from mcp.server.apps import APP_MIME_TYPE, EXTENSION_ID
from mcp.types import CallToolResult

from diffing_mcp.core.wire import APP, IMAGES
from diffing_mcp.mcp_server import investigations
from diffing_mcp.mcp_server.apps import PAGE
from diffing_mcp.mcp_server.auth import Caller
from diffing_mcp.mcp_server.bridge import bridge_server
from diffing_mcp.mcp_server.serve import build_server, running_http
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.toolset import DEFAULT_TOOLS
from tests.mcp_server.answers import text_of

MODES = pytest.mark.parametrize("mode", ["auto", "legacy"])
SMALL = {"max_samples": 6, "max_tokens": 8, "wait_seconds": 50}


def rendering() -> list[ClientExtension]:
    return [advertise(EXTENSION_ID, {"mimeTypes": [APP_MIME_TYPE]})]


def drawn(result: CallToolResult) -> Any:
    assert not result.is_error, text_of(result)
    return (result.meta or {}).get(APP)


@MODES
async def test_the_page_is_listed_for_hosts_that_render_it(context: ServerContext, mode: str) -> None:
    server = build_server(context)
    async with Client(server, mode=mode, extensions=rendering()) as client:
        listed = (await client.list_tools()).tools
        with_page = {tool.name for tool in listed if tool.meta == {"ui": {"resourceUri": PAGE}}}
        assert with_page == {"overview", "sweep_behaviours", "view_run", "get_job"}
        [content] = (await client.read_resource(PAGE)).contents
        assert content.mime_type == APP_MIME_TYPE
        assert (content.meta or {})["ui"] == {"prefersBorder": True}
        assert PAGE not in [resource.uri for resource in (await client.list_resources()).resources]
    async with Client(server, mode=mode) as client:
        plain = (await client.list_tools()).tools
    assert [tool.name for tool in plain] == [tool.name for tool in listed]
    assert len(plain) == len(DEFAULT_TOOLS)
    # Nothing of it for anybody else, so the list costs an agent's context as much as before.
    assert all(tool.meta is None for tool in plain)
    assert [tool.model_copy(update={"meta": None}) for tool in listed] == plain


@MODES
async def test_an_answer_brings_what_the_page_draws_and_the_same_text(
    context: ServerContext, pair_name: str, mode: str
) -> None:
    server = build_server(context)
    asked = {"pair": pair_name, "text": "a <b>text</b>", "wait_seconds": 50}
    async with Client(server, mode=mode) as client:
        plain = await client.call_tool("compare_text", asked)
        assert drawn(plain) is None
    async with Client(server, mode=mode, extensions=rendering()) as client:
        result = await client.call_tool("compare_text", asked)
        heat = drawn(result)
        assert heat["kind"] == "heat_map"
        assert len(heat["result"]["tokens"]) == len(heat["result"]["kl"])
        # The fence is drawn anew for every answer; all else is the same.
        assert text_of(result).split("<untrusted")[0] == text_of(plain).split("<untrusted")[0]
        assert result.structured_content is None
        made = await client.call_tool("kl", {"pair": pair_name, **SMALL})
        of_run = drawn(made)
        assert of_run["kind"] == "run"
        assert of_run["run_id"].startswith("kl-")
        assert [base64.b64decode(each["png"])[:4] for each in of_run["figures"]] == [b"\x89PNG"] * 2
        again = drawn(await client.call_tool("view_run", {"run_id": of_run["run_id"]}))
        assert again == of_run
        found = await client.call_tool("overview", {"pair": pair_name, "methods": ["kl"], **SMALL})
        assert drawn(found)["kind"] == "pair"
        assert drawn(found)["result"]["runs"][0]["method"] == "kl"
        assert drawn(await client.call_tool("list_pairs", {})) is None


async def test_a_blinded_caller_s_page_holds_no_name(context: ServerContext, rare_pair: str) -> None:
    new = investigations.create(rare_pair, interactions=9)
    server = build_server(context, Caller(investigations.get(new.id)))
    async with Client(server, extensions=rendering()) as client:
        for tool, arguments in (("kl", SMALL), ("overview", {"methods": ["kl"], **SMALL})):
            result = await client.call_tool(tool, {"pair": new.label, **arguments})
            assert drawn(result)
            assert "quetzalfidget" not in json.dumps(drawn(result))


async def test_the_bridge_forwards_the_page_for_a_host_that_renders_it(context: ServerContext, pair_name: str) -> None:
    async with running_http(context) as url:
        async with Client(bridge_server(url), extensions=rendering()) as client:
            assert any(tool.meta for tool in (await client.list_tools()).tools)
            assert (await client.read_resource(PAGE)).contents[0].mime_type == APP_MIME_TYPE
            asked = {"pair": pair_name, "text": "words", "wait_seconds": 50}
            assert drawn(await client.call_tool("compare_text", asked))["kind"] == "heat_map"
        async with Client(bridge_server(url)) as client:
            assert not any(tool.meta for tool in (await client.list_tools()).tools)


@MODES
async def test_pictures_come_to_whoever_asks_for_them(context: ServerContext, pair_name: str, mode: str) -> None:
    async with Client(build_server(context), mode=mode) as client:
        asked: Any = {IMAGES: True}
        result = await client.call_tool("kl", {"pair": pair_name, **SMALL}, meta=asked)
        assert [block.type for block in result.content] == ["text", "image", "image"]
        sizes = [len(base64.b64decode(block.data)) for block in result.content if block.type == "image"]
        assert max(sizes) < 60_000
        run = next(line.removeprefix("run: ") for line in text_of(result).splitlines() if line.startswith("run: "))
        [picture] = (await client.read_resource(f"diffing://runs/{run}/figures/histogram.png")).contents
        assert picture.mime_type == "image/png"
        for wrong in (f"diffing://runs/{run}/figures/no.png", "diffing://runs/kl-none/figures/histogram.png"):
            with pytest.raises(MCPError):
                await client.read_resource(wrong)
