"""Configurations for hosts have the shape each of them reads; links decode to a command; files keep what they hold."""

from __future__ import annotations

import base64
import json
import os
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import json5
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server.host_config import HOSTS, PUBLISHED, host_config, install_links, secrets_left_out
from diffing_mcp.mcp_server.host_files import BACKUP, with_json_entry, with_toml_entry, write_entry

URL = "http://127.0.0.1:8931/mcp"
BEARER = {"Authorization": "Bearer t0ken"}
# As the hosts' own documentation shows a server at an address.
REMOTE: dict[str, dict[str, Any]] = {
    "claude-code": {"type": "http", "url": URL, "headers": BEARER},
    "vscode": {"type": "http", "url": URL, "headers": BEARER},
    "cursor": {"url": URL, "headers": BEARER},
    "codex": {"url": URL, "http_headers": BEARER, "startup_timeout_sec": 60, "tool_timeout_sec": 120},
    "gemini-cli": {"httpUrl": URL, "headers": BEARER, "timeout": 120_000},
    "opencode": {"type": "remote", "url": URL, "headers": BEARER, "enabled": True, "timeout": 60_000},
    "zed": {"url": URL, "headers": BEARER},
    "windsurf": {"serverUrl": URL, "headers": BEARER},
}
ZED = """// Zed settings
{
  "theme": "One Dark", // dark
  /* servers */
  "context_servers": {
    // mine
    "other": {"command": "x", "args": []},
  },
}
"""
ENTRY = {"command": "/bin/diffing", "args": ["serve"], "env": {"A": "ü"}}
WINDOWS = {"command": "C:\\Users\\xu\\diffing.exe", "args": ["serve"], "env": {"A": "c:\\users\\\\new"}}


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_starts_the_command_of_this_environment(data_folder: Path, host: str) -> None:
    [(key, servers)] = host_config(host).items()
    entry = servers["diffing"]
    keys = {"vscode": "servers", "zed": "context_servers", "codex": "mcp_servers", "opencode": "mcp"}
    assert key == keys.get(host, "mcpServers")
    if host == "opencode":  # the command with its arguments in one list
        command, arguments, environment = entry["command"][0], entry["command"][1:], entry["environment"]
    else:
        command, arguments, environment = entry["command"], entry["args"], entry["env"]
    assert arguments == ["serve"]
    assert Path(command).name.startswith("diffing")
    assert environment["DIFFING_DATA_FOLDER"] == str(data_folder)
    types = {"claude-code": "stdio", "vscode": "stdio", "opencode": "local"}
    assert entry.get("type") == types.get(host)


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_connects_to_a_running_server(data_folder: Path, host: str) -> None:
    [servers] = host_config(host, url=URL, token="t0ken", server="other").values()
    if host == "claude-desktop":  # it starts commands only
        assert servers["other"]["args"] == ["connect", URL]
        assert servers["other"]["env"] == {"DIFFING_TOKEN": "t0ken"}
    else:
        assert servers["other"] == REMOTE[host]


@pytest.mark.parametrize("name", ["DIFFING_OPERATOR_TOKEN", "DIFFING_KEY_LAB"])
def test_secrets_of_the_environment_are_not_printed(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "sesame")
    assert "sesame" not in str([host_config(host) for host in HOSTS])
    assert secrets_left_out() == [name]


def test_a_host_gets_all_settings_and_finds_the_folders_from_wherever_it_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    profile = tmp_path / "profile.toml"
    profile.write_text("port = 9000\n")
    for name, value in {
        "BATCH_TOKENS": "4096",
        "DATA_FOLDER": "data",
        "CATALOGUE_FOLDERS": f"mine{os.pathsep}~/theirs",
        "PROFILE": "profile.toml",
    }.items():
        monkeypatch.setenv(f"DIFFING_{name}", value)
    settings.cache_clear()
    env = host_config("cursor")["mcpServers"]["diffing"]["env"]
    settings.cache_clear()
    assert env["DIFFING_BATCH_TOKENS"] == "4096"
    assert env["DIFFING_DATA_FOLDER"] == str(tmp_path / "data")
    assert env["DIFFING_CATALOGUE_FOLDERS"] == f"{tmp_path / 'mine'}{os.pathsep}{tmp_path / 'home' / 'theirs'}"
    assert env["DIFFING_PROFILE"] == str(profile)
    assert env["HF_HUB_OFFLINE"] == "1"


def test_bad_requests(data_folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no host 'emacs'.*claude-desktop"):
        host_config("emacs")
    with pytest.raises(InvalidInput, match="goes with the address"):
        host_config("cursor", token="x")


def test_install_links_hold_the_published_command_and_are_those_of_the_readme() -> None:
    links = install_links()
    vscode, cursor = (parse_qs(urlsplit(links[host]).query) for host in ("vscode", "cursor"))
    assert vscode["name"] == cursor["name"] == ["diffing"]
    assert json.loads(vscode["config"][0]) == json.loads(base64.b64decode(cursor["config"][0])) == PUBLISHED
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert all(f"({link})" in readme for link in links.values())


def test_comments_order_and_layout_of_a_file_are_kept() -> None:
    written = with_json_entry(ZED, "context_servers", "diffing", ENTRY)
    assert json5.loads(written) == {
        "theme": "One Dark",
        "context_servers": {"diffing": ENTRY, "other": {"command": "x", "args": []}},
    }
    kept = [line for line in written.splitlines() if line in ZED.splitlines()]
    assert kept == ZED.splitlines()
    assert with_json_entry(written, "context_servers", "diffing", ENTRY) == written
    changed = with_json_entry(written, "context_servers", "diffing", {"command": "new"})
    assert changed == with_json_entry(ZED, "context_servers", "diffing", {"command": "new"})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('axuü"\\{}/*,:', max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


# On a busy machine the first examples, which import what they need, take longer than its check allows.
@given(
    st.dictionaries(st.sampled_from(["a", "mcpServers2", "β"]), JSON_VALUES, max_size=3),
    st.none() | st.dictionaries(st.sampled_from(["diffing", "other"]), JSON_VALUES, max_size=2),
    st.sampled_from([None, 0, 4]),
)
def test_any_json_gets_the_entry_and_nothing_else(others: dict, servers: dict | None, indent: int | None) -> None:
    content = others if servers is None else {**others, "mcpServers": servers}
    written = with_json_entry(json.dumps(content, indent=indent), "mcpServers", "diffing", ENTRY)
    assert json.loads(written) == {**others, "mcpServers": {**(servers or {}), "diffing": ENTRY}}


def test_paths_of_windows_are_written_and_read() -> None:
    before = json.dumps({"mcpServers": {"other": {"command": "D:\\x\\other.exe"}}, "file": "\\"})
    written = with_json_entry(before, "mcpServers", "diffing", WINDOWS)
    assert json.loads(written)["mcpServers"] == {"other": {"command": "D:\\x\\other.exe"}, "diffing": WINDOWS}
    assert with_json_entry(written, "mcpServers", "diffing", WINDOWS) == written


def test_toml_keeps_its_comments_too() -> None:
    before = '# mine\nmodel = "o"\n\n[mcp_servers.other]\ncommand = "x" # c\n'
    written = with_toml_entry(before, "mcp_servers", "diffing", ENTRY)
    assert written.startswith(before)
    assert tomllib.loads(written)["mcp_servers"] == {"other": {"command": "x"}, "diffing": ENTRY}
    assert with_toml_entry(written, "mcp_servers", "diffing", ENTRY) == written
    assert tomllib.loads(with_toml_entry("", "mcp_servers", "diffing", ENTRY)) == {"mcp_servers": {"diffing": ENTRY}}


def test_a_file_is_replaced_whole_with_a_copy_of_what_it_was(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "settings.json"
    real.parent.mkdir()
    real.write_text(ZED)
    real.chmod(0o640)
    link = tmp_path / "settings.json"
    link.symlink_to(real)
    assert write_entry(link, "json", "context_servers", "diffing", ENTRY)
    assert link.is_symlink()
    assert "diffing" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o640
    assert real.with_name(real.name + BACKUP).read_text() == ZED
    assert not write_entry(link, "json", "context_servers", "diffing", ENTRY), "the second time changes nothing"
    assert real.with_name(real.name + BACKUP).read_text() == ZED
    assert {path.name for path in real.parent.iterdir()} == {real.name, real.name + BACKUP}


def test_a_new_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    file = tmp_path / ".cursor" / "mcp.json"
    assert write_entry(file, "json", "mcpServers", "diffing", ENTRY)
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text()) == {"mcpServers": {"diffing": ENTRY}}


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("json", "{"),
        ("json", "[1]"),
        ("json", '{"servers": 3}'),
        ("json", "nul"),
        ("toml", "a ="),
        ("toml", "servers = 3"),
    ],
)
def test_a_file_that_cannot_be_read_is_left_as_it_is(tmp_path: Path, form: Any, text: str) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(InvalidInput, match="left as it is"):
        write_entry(file, form, "servers", "diffing", ENTRY)
    assert [path.read_text() for path in tmp_path.iterdir()] == [text]
