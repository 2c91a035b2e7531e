"""Configurations for hosts have the shape each of them reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.mcp_server.host_config import HOSTS, host_config


@pytest.mark.parametrize("host", HOSTS)
def test_stdio_and_http_entries(data_folder: Path, host: str) -> None:
    key = "servers" if host == "vscode" else "mcpServers"
    own = host_config(host)[key]["diffing"]
    assert own["args"] == ["serve"]
    assert own["env"]["DIFFING_DATA_FOLDER"] == str(data_folder)
    remote = host_config(host, url="http://127.0.0.1:8931/mcp", token="t0ken", name="other")[key]["other"]
    if host == "claude-desktop":
        assert remote["args"] == ["connect", "http://127.0.0.1:8931/mcp"]
        assert remote["env"] == {"DIFFING_TOKEN": "t0ken"}
    else:
        assert remote == {
            "type": "http",
            "url": "http://127.0.0.1:8931/mcp",
            "headers": {"Authorization": "Bearer t0ken"},
        }


def test_tokens_of_the_environment_are_not_printed(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFING_OPERATOR_TOKEN", "sesame")
    assert "sesame" not in str([host_config(host) for host in HOSTS])


def test_bad_requests(data_folder: Path) -> None:
    with pytest.raises(InvalidInput, match="unknown host"):
        host_config("emacs")
    with pytest.raises(InvalidInput, match="goes with the url"):
        host_config("cursor", token="x")
