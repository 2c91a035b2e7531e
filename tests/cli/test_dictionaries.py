"""Trained dictionaries as files: listed, copied, uploaded to a hub and used from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Diffing
from tests.hub_server import hub_server

TRAINING = ("max_samples=24", "max_tokens=24", "expansion=1", "k=4", "steps=20", "batch_rows=32")
SETTINGS = [part for setting in TRAINING for part in ("--set", setting)]


@pytest.fixture
def trained(diffing: Diffing, reference: str, tmp_path: Path) -> str:
    """Id of a crosscoder's run on a tiny pair."""
    corpus = tmp_path / "corpus.jsonl"
    lines = [
        json.dumps({"text": f"Number {i}: the river ran past the mill and the {word} stood by."})
        for i in range(12)
        for word in ("cat", "oak")
    ]
    corpus.write_text("\n".join(lines), encoding="utf-8")
    ran = diffing("run", "crosscoder", "--pair", reference, "--set", f"corpus={corpus}", *SETTINGS, "--json")
    assert ran.code == 0, ran.err
    listed = diffing("runs", "list", "--json")
    return str(json.loads(listed.out)[0]["id"])


def test_list_and_export(diffing: Diffing, trained: str, reference: str, tmp_path: Path) -> None:
    [listed] = json.loads(diffing("dictionaries", "list", "--json").out)
    assert (listed["kind"], listed["d_model"], listed["latents"], listed["steps"]) == ("batch_top_k", 32, 32, 20)
    assert listed["id"] in diffing("dictionaries", "list").out
    target = tmp_path / "copy"
    for source in (trained, listed["id"][:6]):
        assert diffing("dictionaries", "export", source, str(target / source)).code == 0
        assert (target / source / "model.safetensors").read_bytes() == (
            Path(listed["folder"]) / "model.safetensors"
        ).read_bytes()
    again = diffing("dictionaries", "export", trained, str(target / trained))
    assert again.code == 2
    assert "another folder" in again.err


def test_delete_and_leftovers(diffing: Diffing, trained: str, own_data_folder: Path, tmp_path: Path) -> None:
    [listed] = json.loads(diffing("dictionaries", "list", "--json").out)
    foreign = own_data_folder / "dictionaries" / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    assert [each["state"] for each in json.loads(diffing("dictionaries", "list", "--json").out)] == [
        "finished",
        "unreadable",
    ]
    table = diffing("dictionaries", "list")
    assert "unreadable" in table.out
    assert "diffing dictionaries delete foreign" in table.err
    assert diffing("dictionaries", "export", trained, str(tmp_path / "copy")).code == 0
    partly = diffing("dictionaries", "delete", "foreign", listed["id"][:6])
    assert partly.code == 2
    assert "whole id" in partly.err
    assert foreign.is_dir(), "all of them are there before one goes"
    gone = json.loads(diffing("dictionaries", "delete", "foreign", listed["id"], "--json").out)
    assert gone["deleted"] == ["foreign", listed["id"]]
    assert diffing("dictionaries", "list", "--json").out.strip() == "[]"
    missing = diffing("dictionaries", "export", trained, str(tmp_path / "another"))
    assert missing.code == 2
    assert "dictionaries" in missing.err


def test_unknown_dictionaries(diffing: Diffing, own_data_folder: Path, tmp_path: Path) -> None:
    outcome = diffing("dictionaries", "export", "nothing", str(tmp_path / "copy"))
    assert outcome.code == 2
    assert "dictionaries list" in outcome.err
    assert diffing("dictionaries", "list", "--json").out.strip() == "[]"


@pytest.mark.long
def test_a_hub_takes_and_gives_a_dictionary(
    diffing: Diffing, trained: str, own_data_folder: Path, tmp_path: Path
) -> None:
    with hub_server("right token") as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": "1",
        }

        def run(*arguments: str, token: str = "right token") -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, *arguments],
                env=environment | {"HF_TOKEN": token},
                capture_output=True,
                text=True,
                check=False,
            )

        refused = run("-m", "diffing_mcp.cli.main", "dictionaries", "push", trained, "me/crosscoder", token="another")
        assert refused.returncode == 2
        assert "HF_TOKEN" in refused.stderr
        assert hub.repositories == {}
        pushed = run("-m", "diffing_mcp.cli.main", "dictionaries", "push", trained, "me/crosscoder")
        assert pushed.returncode == 0, pushed.stderr
        assert set(hub.repositories["me/crosscoder"]) == {"model.safetensors", "config.json"}
        assert hub.private["me/crosscoder"]
        [listed] = json.loads(diffing("dictionaries", "list", "--json").out)
        script = (
            "from diffing_mcp.methods.dictionaries.files import content_hash, load_dictionary\n"
            f"there, here = (load_dictionary(name, 2, 32) for name in ('me/crosscoder', {listed['folder']!r}))\n"
            "print(bool((there.decoder == here.decoder).all()), content_hash('me/crosscoder') == content_hash("
            + repr(listed["folder"])
            + "))"
        )
        used = run("-c", script)
        assert used.stdout.split() == ["True", "True"], used.stderr
        # A repository of suites: one folder is read, the others are not fetched.
        files = hub.repositories["me/crosscoder"]
        hub.repositories["me/suite"] = {
            f"{layer}/{name}": content for layer in ("layer3", "layer8") for name, content in files.items()
        }
        script = (
            "from diffing_mcp.methods.dictionaries.files import content_hash, weights_file\n"
            f"print(content_hash('me/suite//layer8@main') == content_hash({listed['folder']!r}))\n"
            "print(sorted(path.parent.name for path in "
            "weights_file('me/suite//layer8').parents[1].rglob('*.safetensors')))"
        )
        used = run("-c", script)
        assert used.stdout.splitlines() == ["True", "['layer8']"], used.stderr
