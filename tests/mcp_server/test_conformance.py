"""The protocol's own conformance suite and the Inspector against our server over HTTP, behind its middleware and its
check of tokens. Both are npm packages: `make conformance`.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from diffing_mcp.mcp_server.serve import running_http
from diffing_mcp.mcp_server.server_context import ServerContext
from tests.mcp_server.conformance_server import conformance_server

pytestmark = pytest.mark.long

# Both need a newer Node than most distributions have; npm has that as well.
NODE = "node@22.23.3"
CONFORMANCE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
INSPECTOR = "@modelcontextprotocol/inspector@2.12.0"
EXPECTED_FAILURES = Path(__file__).with_name("conformance.yml")


@pytest.fixture
async def url(context: ServerContext) -> AsyncIterator[str]:
    async with running_http(context, server=conformance_server(context)) as address:
        yield address


async def run_package(package: str, *command: str, folder: Path) -> tuple[int, str]:
    """Exit code and output of a command of an npm package, which is fetched when npm does not have it yet."""
    npx = shutil.which("npx")
    assert npx, "npx is missing: install Node with npm (apt-get install npm) to run the conformance suite"
    arguments = ["--yes", "--package", NODE, "--package", package, "--", *command]
    process = await asyncio.create_subprocess_exec(
        npx, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=folder
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 500)
    except TimeoutError:
        process.kill()
        pytest.fail(f"{package} did not end: npm cannot reach its registry, or the suite hangs")
    text = output.decode(errors="replace")
    assert "npm error" not in text, f"npm could not fetch {package} and {NODE}:\n{text[-2000:]}"
    assert process.returncode is not None
    return process.returncode, text


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_the_protocol_is_kept(url: str, revision: str, tmp_path: Path) -> None:
    suite = ["conformance", "server", "--url", url, "--requirements", revision]
    code, said = await run_package(
        CONFORMANCE, *suite, "--expected-failures", str(EXPECTED_FAILURES), "-o", str(tmp_path), folder=tmp_path
    )
    # Fails as well when something listed as failing passes.
    assert code == 0, said[said.find("=== SUMMARY") :]
    assert "Baseline check passed" in said


async def test_the_inspector_s_strict_mode_has_nothing_to_say(url: str, tmp_path: Path) -> None:
    listing = ["mcp-inspector", "--cli", url, "--transport", "http", "--method", "tools/list", "--strict"]
    code, said = await run_package(INSPECTOR, *listing, folder=tmp_path)
    assert code == 0, said[-3000:]
    assert '"name": "overview"' in said
    # Warnings do not change the exit code; none are expected.
    assert re.findall(r"^(?:Warning|Error): .*", said, re.MULTILINE) == []
