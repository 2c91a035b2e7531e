"""The converters of other vendors take our schemas: OpenAI's strict mode as its agents SDK makes it, and Gemini's.

They run in a process of their own, away from the repository: the SDK's import name is `agents`, like a folder of ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffing_mcp.mcp_server.toolset import toolset

CONVERT = """
import copy, json, sys
from agents.strict_schema import ensure_strict_json_schema
from google.genai._mcp_utils import mcp_to_gemini_tool
from mcp.types import Tool

said = {"openai": {}, "gemini": {}}
for name, schema in json.load(sys.stdin).items():
    try:
        if schema["properties"]:  # the SDK does not ask strictness of a tool without arguments
            ensure_strict_json_schema(copy.deepcopy(schema), _reject_open_objects=True)
    except Exception as error:
        said["openai"][name] = repr(error)
    try:
        made = mcp_to_gemini_tool(Tool(name=name, description="x", input_schema=schema)).function_declarations[0]
        assert set(made.parameters.properties or {}) == set(schema["properties"]), made.parameters
    except Exception as error:
        said["gemini"][name] = repr(error)
json.dump(said, sys.stdout)
"""


def converted(schemas: dict[str, object], folder: Path) -> dict[str, dict[str, str]]:
    """What each vendor's converter objects to, by tool."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", CONVERT],
        input=json.dumps(schemas),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, dict[str, str]] = json.loads(done.stdout)
    return said


AVOIDED = {
    "closed": {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": False},
    "free": {"type": "object", "properties": {"x": {"type": "object"}}},
}
"""What our schemas have nothing of: named like no tool of ours."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Of all our schemas, and of those that we avoid."""
    ours: dict[str, object] = {name: tool.input_schema for name, tool in toolset().items()}
    assert not ours.keys() & AVOIDED.keys()
    return converted(ours | AVOIDED, tmp_path_factory.mktemp("elsewhere"))


def test_other_vendors_take_every_schema(said: dict[str, dict[str, str]]) -> None:
    assert {vendor: objections.keys() - AVOIDED.keys() for vendor, objections in said.items()} == {
        "openai": set(),
        "gemini": set(),
    }


def test_their_converters_object_to_what_we_avoid(said: dict[str, dict[str, str]]) -> None:
    assert said["openai"].keys() & AVOIDED.keys() == {"free"}
    assert said["gemini"].keys() & AVOIDED.keys() == {"closed"}
