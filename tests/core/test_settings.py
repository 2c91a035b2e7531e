"""Settings from the environment and from a profile: lists as people write them, and wrong ones by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings


@pytest.fixture(autouse=True)
def read_again() -> Iterator[None]:
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.parametrize(
    ("text", "folders"),
    [("/one", ["/one"]), (f"/one{os.pathsep}/two", ["/one", "/two"]), ('["/one", "/two"]', ["/one", "/two"]), ("", [])],
)
def test_folders_are_written_as_in_path_or_as_json(
    monkeypatch: pytest.MonkeyPatch, text: str, folders: list[str]
) -> None:
    monkeypatch.setenv("DIFFING_CATALOGUE_FOLDERS", text)
    assert settings().catalogue_folders == [Path(folder) for folder in folders]


def test_folders_are_the_same_from_wherever_a_process_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DIFFING_DATA_FOLDER", "~/results")  # as hosts pass it, which have no shell
    monkeypatch.setenv("DIFFING_CACHE_FOLDER", "cache")
    assert settings().data_folder == Path("/home/me/results")
    assert settings().cache_folder == tmp_path / "cache"


def test_hosts_are_comma_separated_as_a_port_may_follow_a_colon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFING_ALLOWED_HOSTS", "gpu:8931, other")
    assert settings().allowed_hosts == ["gpu:8931", "other"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DIFFING_DTYPE", "float12", "bfloat16"),
        ("DIFFING_PORT", "many", "whole number"),
        ("DIFFING_CATALOGUE_FOLDERS", "[1", "JSON list"),
        ("DIFFING_PROFILE", "/no/such/profile.toml", "no file"),
        ("DIFFING_DATA_FOLDER", "", "must not be empty"),
        ("DIFFING_DATA_FOLDER", "~nobody-of-this-name/x", "nobody-of-this-name"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=said) as refusal:
        settings()
    assert name in refusal.value.message


def test_a_profile_that_is_no_toml_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profile = tmp_path / "profile.toml"
    monkeypatch.setenv("DIFFING_PROFILE", str(profile))
    profile.write_text("catalogue_folders = ['/one']\n")
    assert settings().catalogue_folders == [Path("/one")]
    settings.cache_clear()
    profile.write_text("port: 3")
    with pytest.raises(InvalidInput, match="no TOML"):
        settings()


def test_a_token_is_not_repeated_in_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFING_OPERATOR_TOKEN", "sesame")
    monkeypatch.setenv("DIFFING_PORT", "many")
    with pytest.raises(InvalidInput) as refusal:
        settings()
    assert "sesame" not in refusal.value.message
