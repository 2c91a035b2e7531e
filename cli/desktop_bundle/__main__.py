"""`python -m diffing_mcp.cli.desktop_bundle FILE` builds the bundle from this clone: the wheel, how to install it, and
an entry point. The host's own uv installs torch and the rest when the bundle is first started.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from diffing_mcp.core.extras import EMBEDDED_MODEL, SAE_TRAINING
from diffing_mcp.core.paths import IMPORT_FOLDER

ENTRY_POINT = "server.py"
FORM: dict[str, dict[str, Any]] = {
    "data_folder": {
        "type": "directory",
        "title": "Folder for results",
        "description": "Where finished runs are kept. Empty: a folder of this user's applications.",
    },
    "device": {
        "type": "string",
        "title": "Device",
        "description": "auto, cpu, cuda, cuda:1 or mps.",
        "default": "auto",
    },
    "catalogue_folders": {
        "type": "directory",
        "title": "Catalogue of your own pairs",
        "description": "A folder with catalogues (*.yaml). Empty: the bundled pairs, and any two models.",
    },
    "url": {
        "type": "string",
        "title": "Running server",
        "description": (
            "Address of a server on another machine or process, such as http://127.0.0.1:8931/mcp. Empty: the models "
            "are loaded here."
        ),
    },
    "token": {
        "type": "string",
        "title": "Token for that server",
        "description": "An operator's or an investigation's.",
        "sensitive": True,
    },
}
"""What the host asks the person; each becomes the variable DIFFING_NAME."""


def manifest(project: dict[str, Any]) -> dict[str, Any]:
    """The bundle's manifest, from the `project` table of pyproject.toml."""
    return {
        "manifest_version": "0.4",
        "name": project["name"],
        "display_name": "Diffing MCP",
        "version": project["version"],
        "description": project["description"],
        "author": {"name": project["authors"][0]["name"]},
        "repository": {"type": "git", "url": project["urls"]["Repository"]},
        "license": project["license"],
        "keywords": project["keywords"],
        "server": {
            "type": "uv",
            "entry_point": ENTRY_POINT,
            "mcp_config": {
                "command": "uv",
                "args": ["run", "--directory", "${__dirname}", ENTRY_POINT],
                "env": {f"DIFFING_{name.upper()}": f"${{user_config.{name}}}" for name in FORM},
            },
        },
        "tools_generated": True,
        "prompts_generated": True,
        "user_config": {name: {"required": False, **asked} for name, asked in FORM.items()},
        "compatibility": {
            "platforms": ["darwin", "linux", "win32"],
            "runtimes": {"python": project["requires-python"]},
        },
    }


def environment(project: dict[str, Any], wheel: str) -> str:
    """The bundle's pyproject.toml: what uv installs beside the entry point."""
    alone = [package.partition("==") for package in (*EMBEDDED_MODEL, *SAE_TRAINING)]
    needed = [f"{project['name']}[server]", *map("".join, alone)]
    return "\n".join(
        [
            "[project]",
            f'name = "{project["name"]}-bundle"',
            f'version = "{project["version"]}"',
            f'requires-python = "{project["requires-python"]}"',
            f"dependencies = {json.dumps(needed)}",
            "",
            "[tool.uv]",
            "package = false",
            "# Dependencies of their own would compile llama.cpp, or pin an old nnsight.",
            "dependency-metadata = [",
            *(f'    {{ name = "{name}", version = "{version}", requires-dist = [] }},' for name, _, version in alone),
            "]",
            "",
            "[tool.uv.sources]",
            f'{project["name"]} = {{ path = "{wheel}" }}',
            "",
        ]
    )


def build(wheel: Path, bundle: Path) -> None:
    """Write the bundle around a wheel of this version."""
    project = tomllib.loads((IMPORT_FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest(project), indent=2, ensure_ascii=False))
        archive.writestr("pyproject.toml", environment(project, wheel.name))
        archive.write(Path(__file__).with_name(ENTRY_POINT), ENTRY_POINT)
        archive.write(IMPORT_FOLDER / "LICENSE", "LICENSE")
        archive.write(wheel, wheel.name)


def main() -> None:
    """Build the wheel, then the bundle."""
    parser = argparse.ArgumentParser(prog="python -m diffing_mcp.cli.desktop_bundle", description=__doc__)
    parser.add_argument("file", type=Path, help="where the bundle is written, such as build/diffing-mcp.mcpb")
    file = parser.parse_args().file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, str(IMPORT_FOLDER)]
        subprocess.run(command, check=True)
        [wheel] = Path(folder).glob("*.whl")
        build(wheel, file)
    print(file)


if __name__ == "__main__":
    main()
