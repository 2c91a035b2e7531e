"""The lines a host needs to find the server: Claude Desktop, Claude Code, VS Code and Cursor."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings

Host = Literal["claude-desktop", "claude-code", "vscode", "cursor"]
HOSTS: tuple[Host, ...] = ("claude-desktop", "claude-code", "vscode", "cursor")

# Where each host reads its configuration; shown to people, never written by us.
FILES: dict[str, str] = {
    "claude-desktop": "claude_desktop_config.json (Settings > Developer > Edit Config)",
    "claude-code": ".mcp.json in the project, or `claude mcp add-json diffing '<the inner object>'`",
    "vscode": ".vscode/mcp.json",
    "cursor": ".cursor/mcp.json",
}


def host_config(
    host: str, *, url: str | None = None, token: str | None = None, name: str = "diffing"
) -> dict[str, Any]:
    """The configuration of a host, ready to be printed as JSON.

    Args:
        host: one of `HOSTS`.
        url: address of a running HTTP server; none: the host starts a server of its own over stdio (one copy of the
            models a host).
        token: bearer token of an investigation or operator, for a running server.
        name: what the server is called in the host.

    Raises:
        InvalidInput: an unknown host, or a token without url.
    """
    if host not in HOSTS:
        raise InvalidInput(f"unknown host {host!r}; known: {', '.join(HOSTS)}")
    if token and not url:
        raise InvalidInput("a token goes with the url of a running server")
    entry: dict[str, Any]
    if url is None:
        entry = {"command": _command(), "args": ["serve"], "env": _environment()}
    elif host == "claude-desktop":
        # It starts processes only, so the bridge connects it to the running server.
        entry = {"command": _command(), "args": ["connect", url], "env": {"DIFFING_TOKEN": token} if token else {}}
    else:
        entry = {"type": "http", "url": url}
        if token:
            entry["headers"] = {"Authorization": f"Bearer {token}"}
    if host == "vscode":
        return {"servers": {name: {"type": "stdio", **entry} if "command" in entry else entry}}
    if host == "claude-code" and "command" in entry:
        entry = {"type": "stdio", **entry}
    return {"mcpServers": {name: entry}}


def _command() -> str:
    """The `diffing` command by its absolute path: hosts start programs with a short PATH."""
    beside = Path(sys.executable).parent / ("diffing.exe" if os.name == "nt" else "diffing")
    return str(beside) if beside.exists() else shutil.which("diffing") or "diffing"


def _environment() -> dict[str, str]:
    """Hosts start programs with a bare environment, so what was chosen here is passed on."""
    chosen = {key: value for key, value in os.environ.items() if key.startswith("DIFFING_") and "TOKEN" not in key}
    passed = {key: os.environ[key] for key in ("HF_HOME", "CUDA_VISIBLE_DEVICES") if key in os.environ}
    return {"DIFFING_DATA_FOLDER": str(settings().data_folder), **chosen, **passed}
