"""What hosts and registries install: the desktop bundle, the registry entry, the container image."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from diffing_mcp.cli.desktop_bundle.__main__ import FORM, build
from diffing_mcp.cli.desktop_bundle.server import arguments, filled_in
from diffing_mcp.core.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
READ_BY_THE_ENTRY_POINT = {"url", "token"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle around an empty wheel, unpacked."""
    wheel = tmp_path / f"diffing_mcp-{PROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("diffing_mcp/__init__.py", "")
    build(wheel, tmp_path / "diffing-mcp.mcpb")
    with zipfile.ZipFile(tmp_path / "diffing-mcp.mcpb") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked"


def test_the_manifest_describes_what_the_bundle_holds(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["manifest_version"], manifest["version"]) == ("0.4", PROJECT["version"])
    assert {"name", "description", "author", "server"} <= manifest.keys()
    server = manifest["server"]
    assert server["type"] == "uv"
    assert (bundle / server["entry_point"]).is_file()
    assert server["mcp_config"]["command"] == "uv"
    assert server["mcp_config"]["args"][-1] == server["entry_point"]
    asked = set(re.findall(r"\$\{user_config\.(\w+)\}", json.dumps(server)))
    assert asked == set(manifest["user_config"]) == set(FORM)
    assert set(FORM) - READ_BY_THE_ENTRY_POINT <= set(Settings.model_fields), "each other field is a setting"
    assert manifest["user_config"]["token"]["sensitive"]
    for field in manifest["user_config"].values():
        assert {"type", "title", "description", "required"} <= field.keys()


def test_the_environment_of_the_bundle_installs_the_wheel_in_it(bundle: Path) -> None:
    made = tomllib.loads((bundle / "pyproject.toml").read_text(encoding="utf-8"))
    assert made["project"]["dependencies"][0] == "diffing-mcp[server]"
    assert (bundle / made["tool"]["uv"]["sources"]["diffing-mcp"]["path"]).is_file()
    [without] = re.findall(
        r"^WITHOUT_DEPENDENCIES := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert made["project"]["dependencies"][1:] == without.split(), "what `make install` installs"
    listed = made["tool"]["uv"]["dependency-metadata"]
    assert [f"{each['name']}=={each['version']}" for each in listed] == without.split()
    assert not any(each["requires-dist"] for each in listed)


@given(
    st.dictionaries(
        st.sampled_from(["DIFFING_URL", "DIFFING_DEVICE", "HOME"]), st.sampled_from(["", "${user_config.x}", "v"])
    )
)
def test_fields_left_empty_are_no_settings(form: dict[str, str]) -> None:
    assert filled_in(form) == {name: value for name, value in form.items() if name == "HOME" or value == "v"}
    assert arguments(filled_in(form)) == (["connect", "v"] if form.get("DIFFING_URL") == "v" else ["serve"])


async def test_the_entry_point_of_the_bundle_serves(bundle: Path, data_folder: Path) -> None:
    empty = {f"DIFFING_{name.upper()}": f"${{user_config.{name}}}" for name in FORM}
    chosen = {**os.environ, **empty, "PYTHONPATH": str(ROOT), "DIFFING_DATA_FOLDER": str(data_folder)}
    parameters = StdioServerParameters(command=sys.executable, args=["server.py"], env=chosen, cwd=bundle)
    async with Client(stdio_client(parameters)) as client:
        assert "list_pairs" in {tool.name for tool in (await client.list_tools()).tools}


@pytest.mark.long
def test_the_bundle_built_from_this_clone_is_valid_to_its_own_tool(tmp_path: Path) -> None:
    file = tmp_path / "diffing-mcp.mcpb"
    subprocess.run([sys.executable, "-m", "diffing_mcp.cli.desktop_bundle", str(file)], cwd=ROOT, check=True)
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "unpacked")
    [wheel] = (tmp_path / "unpacked").glob("*.whl")
    assert "diffing_mcp/cli/desktop_bundle/server.py" in zipfile.ZipFile(wheel).namelist()
    if shutil.which("npx"):
        command = ["npx", "--yes", "@anthropic-ai/mcpb@2.1.2", "validate", str(tmp_path / "unpacked" / "manifest.json")]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stdout + finished.stderr


def test_the_registry_entry_keeps_the_registry_s_rules() -> None:
    entry = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", entry["name"])
    assert 1 <= len(entry["description"]) <= 100
    assert 1 <= len(entry["title"]) <= 100
    assert entry["repository"] == {"url": PROJECT["urls"]["Repository"], "source": "github"}
    assert entry["name"].removeprefix("io.github.") == urlsplit(entry["repository"]["url"]).path[1:]
    [package] = entry["packages"]
    assert package["transport"] == {"type": "stdio"}
    assert package["identifier"] in PROJECT["scripts"], "uvx runs the script that has the package's name"
    # The base install has no server: the runtime is told to bring the extra.
    assert package["runtimeHint"] == "uvx"
    [extra] = package["runtimeArguments"]
    assert (extra["type"], extra["name"], extra["value"]) == ("named", "--with", f"{PROJECT['name']}[server]")
    for variable in package["environmentVariables"]:
        assert set(variable) <= {"name", "description", "format", "default", "choices", "isSecret", "isRequired"}
        assert variable.get("format", "string") in ("string", "number", "boolean", "filepath")
        assert variable.get("default", "") in (*variable.get("choices", ()), variable.get("default", ""))
        ours = variable["name"].removeprefix("DIFFING_").lower()
        assert ours in Settings.model_fields or variable == {**variable, "name": "HF_TOKEN", "isSecret": True}


def test_the_container_image_is_well_formed() -> None:
    finished = subprocess.run(
        [Path(sys.executable).parent / "hadolint", str(ROOT / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_the_container_image_installs_what_make_install_does() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [without] = re.findall(r"^WITHOUT_DEPENDENCIES := (.*)$", makefile, flags=re.MULTILINE)
    assert f"pip install --no-deps {without} " in dockerfile
    assert dockerfile.count("-c requirements.lock") == 2, "the tested versions"
    copied = [name for line in re.findall(r"^COPY (.*)$", dockerfile, flags=re.MULTILINE) for name in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv"} <= set(ignored)
    needed = {"pyproject.toml", "README.md", "LICENSE", "requirements.lock", "diffing_mcp", "cli", "mcp_server"}
    assert not needed & set(ignored)
    assert "USER 1000" in dockerfile, "not as root"
