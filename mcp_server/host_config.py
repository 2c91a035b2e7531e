"""The lines a host needs to find the server, in the form that each host reads."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import platformdirs

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings

NAME = "diffing"
START_SECONDS = 60
"""How long a host shall wait for the first answer: an environment that was just installed compiles its modules."""
CALL_SECONDS = 120
"""How long it shall wait for a call; every answer comes within about 50 seconds."""


Program = Callable[[str, Sequence[str], Mapping[str, str]], dict[str, Any]]
"""How a host writes a command, its arguments and its environment."""


def _program(command: str, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    return {"command": command, "args": list(arguments), "env": dict(environment)}


def _one_list(command: str, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    return {"command": [command, *arguments], "environment": dict(environment)}


@dataclass(frozen=True)
class Host:
    """An MCP host: where its configuration lies and how it writes a server."""

    title: str
    file: Callable[[], Path]
    key: str = "mcpServers"
    """The table of servers in that file."""
    form: Literal["json", "toml"] = "json"
    local: Mapping[str, Any] = field(default_factory=dict)
    """What an entry of a command has besides it."""
    program: Program = _program
    remote: Mapping[str, Any] = field(default_factory=dict)
    """What an entry of an address has besides it and its headers."""
    address: str | None = "url"
    """The field for a server's address; None: the host starts commands only, so a bridge connects it."""
    headers: str = "headers"


def _project(*parts: str) -> Callable[[], Path]:
    return lambda: Path(*parts)


def _home(*parts: str) -> Callable[[], Path]:
    return lambda: Path.home().joinpath(*parts)


def _application(name: str, *parts: str) -> Callable[[], Path]:
    """The folder of a desktop application's own settings: ~/Library/Application Support, %APPDATA% or ~/.config."""
    return lambda: Path(platformdirs.user_config_dir(name, appauthor=False, roaming=True)).joinpath(*parts)


def _zed() -> Path:
    windows = _application("Zed", "settings.json")
    return windows() if os.name == "nt" else Path.home() / ".config" / "zed" / "settings.json"


def _codex() -> Path:
    return Path(os.environ.get("CODEX_HOME") or Path.home() / ".codex") / "config.toml"


STDIO, HTTP = {"type": "stdio"}, {"type": "http"}
CODEX = {"startup_timeout_sec": START_SECONDS, "tool_timeout_sec": CALL_SECONDS}
GEMINI = {"timeout": 1000 * CALL_SECONDS}
OPENCODE = {"enabled": True, "timeout": 1000 * START_SECONDS}

HOSTS: Mapping[str, Host] = {
    "claude-desktop": Host("Claude Desktop", _application("Claude", "claude_desktop_config.json"), address=None),
    "claude-code": Host("Claude Code", _project(".mcp.json"), local=STDIO, remote=HTTP),
    "vscode": Host("VS Code", _project(".vscode", "mcp.json"), "servers", local=STDIO, remote=HTTP),
    "cursor": Host("Cursor", _project(".cursor", "mcp.json")),
    "codex": Host("Codex", _codex, "mcp_servers", "toml", local=CODEX, remote=CODEX, headers="http_headers"),
    "gemini-cli": Host("Gemini CLI", _home(".gemini", "settings.json"), local=GEMINI, remote=GEMINI, address="httpUrl"),
    "opencode": Host(
        "opencode",
        _project("opencode.json"),
        "mcp",
        local={"type": "local", **OPENCODE},
        remote={"type": "remote", **OPENCODE},
        program=_one_list,
    ),
    "zed": Host("Zed", _zed, "context_servers"),
    "windsurf": Host("Windsurf", _home(".codeium", "windsurf", "mcp_config.json"), address="serverUrl"),
}
"""By the name that `diffing config --host` takes."""


def known_host(name: str) -> Host:
    """The host of that name.

    Raises:
        InvalidInput: there is none, with those that there are.
    """
    if name not in HOSTS:
        raise InvalidInput(f"There is no host {name!r} here. Hosts: {', '.join(HOSTS)}.")
    return HOSTS[name]


def server_entry(host: Host, *, url: str | None = None, token: str | None = None) -> dict[str, Any]:
    """The entry of this server for a host: what stands under the server's name.

    Args:
        url: address of a running HTTP server; none: the host starts a server of its own over stdio, with a copy of the
            models of its own.
        token: bearer token of an investigation or an operator, for a running server.

    Raises:
        InvalidInput: a token without an address.
    """
    if token and not url:
        raise InvalidInput("A token goes with the address of a running server: give --url too.")
    if url is None:
        return {**host.local, **host.program(_command(), ["serve"], _environment())}
    if host.address is None:
        env = {"DIFFING_TOKEN": token} if token else {}
        return {**host.local, **host.program(_command(), ["connect", url], env)}
    headers = {host.headers: {"Authorization": f"Bearer {token}"}} if token else {}
    return {**host.remote, host.address: url, **headers}


def host_config(
    name: str, *, url: str | None = None, token: str | None = None, server: str = NAME
) -> dict[str, dict[str, Any]]:
    """What a host's file must hold: its table of servers, with this one. See `server_entry`.

    Raises:
        InvalidInput: an unknown host, or a token without an address.
    """
    host = known_host(name)
    return {host.key: {server: server_entry(host, url=url, token=token)}}


PUBLISHED = {"command": "uvx", "args": ["--from", "diffing-mcp[server]", "diffing-mcp"]}
"""How any machine with uv starts the published package."""


def install_links() -> dict[str, str]:
    """Links by host that ask a person whether to add the published server, with one click."""
    compact = json.dumps(PUBLISHED, separators=(",", ":"))
    encoded = quote(base64.b64encode(compact.encode()).decode(), safe="")
    return {
        "vscode": f"https://vscode.dev/redirect/mcp/install?name={NAME}&config={quote(compact, safe='')}",
        "cursor": f"https://cursor.com/en/install-mcp?name={NAME}&config={encoded}",
    }


def _command() -> str:
    """The `diffing` command by its absolute path: hosts start programs with a short PATH."""
    beside = Path(sys.executable).parent / ("diffing.exe" if os.name == "nt" else "diffing")
    return str(beside) if beside.exists() else shutil.which("diffing") or "diffing"


PASSED_ON = ("HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "CUDA_VISIBLE_DEVICES")
"""Variables of others that decide which models are found, and where they run."""


def _is_secret(variable: str) -> bool:
    """Whether a variable of ours holds a token, or the key of a model that is reachable by URL alone."""
    return variable.startswith("DIFFING_") and (variable.endswith("_TOKEN") or variable.startswith("DIFFING_KEY_"))


def secrets_left_out() -> list[str]:
    """Variables of ours that are set and stand in no entry, as files of hosts are copied and put under version
    control.
    """
    return sorted(filter(_is_secret, os.environ))


def _environment() -> dict[str, str]:
    """Hosts start programs with a bare environment, in a folder of their own: what was chosen here is passed on, its
    paths whole, without secrets.
    """
    chosen = {
        key: value
        for key, value in os.environ.items()
        if key in PASSED_ON or (key.startswith("DIFFING_") and not _is_secret(key))
    }
    here = settings()
    whole = {
        "DIFFING_DATA_FOLDER": str(here.data_folder),
        "DIFFING_CACHE_FOLDER": str(here.cache_folder),
        "DIFFING_CATALOGUE_FOLDERS": os.pathsep.join(map(str, here.catalogue_folders)),
    }
    for key in ("DIFFING_PROFILE", "HF_HOME"):
        if chosen.get(key):
            whole[key] = str(Path(chosen[key]).expanduser().absolute())
    return chosen | {key: value for key, value in whole.items() if key in chosen or key == "DIFFING_DATA_FOLDER"}
