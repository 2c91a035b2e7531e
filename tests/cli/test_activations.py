"""Stored activations from the command line."""

from __future__ import annotations

import json

import pytest

from diffing_mcp.preprocessing import activation_collection
from diffing_mcp.preprocessing.activation_store import default_activation_store
from tests.cli.conftest import Diffing

SMALL = ("--set", "max_samples=12", "--set", "max_tokens=10", "--set", "layers=[0, 1.0]")


def test_activations_are_collected_once_listed_described_and_deleted(diffing: Diffing, reference: str) -> None:
    assert json.loads(diffing("activations", "list", "--json").out) == []
    estimate = json.loads(diffing("activations", "collect", "--pair", reference, *SMALL, "--estimate", "--json").out)
    assert json.loads(diffing("activations", "list", "--json").out) == [], "an estimate collects nothing"
    first = diffing("activations", "collect", "--pair", reference, *SMALL, "--json")
    assert first.code == 0, first.err
    row = json.loads(first.out)
    assert (row["finished"], row["layers"], row["pair"]) == (True, [0, 2], reference)
    rows_bytes = 2 * 2 * row["tokens"] * estimate["d_model"] * 4
    assert rows_bytes <= estimate["bytes"] <= 1.3 * rows_bytes
    assert json.loads(diffing("activations", "collect", "--pair", reference, *SMALL, "--json").out) == row
    assert [entry["id"] for entry in json.loads(diffing("activations", "list", "--pair", reference, "--json").out)] == [
        row["id"]
    ]
    assert row["id"] in diffing("activations", "list").out
    described = json.loads(diffing("activations", "describe", row["id"], "--check", "--json").out)
    assert described["damaged"] == []
    assert [size["layer"] for size in described["sizes"]] == [0, 2]
    assert all(size["difference"] > 0 for size in described["sizes"])
    short = diffing("activations", "delete", row["id"][:16])
    assert (short.code, "whole id" in short.err) == (2, True)
    assert json.loads(diffing("activations", "delete", row["id"], "--json").out) == {"deleted": [row["id"]]}
    assert diffing("activations", "describe", row["id"]).code == 2


def test_without_room_nothing_is_collected(diffing: Diffing, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_collection, "SPARE_BYTES", 2**60)
    outcome = diffing("activations", "collect", "--pair", reference, *SMALL)
    assert outcome.code == 2
    assert "MiB of disk" in outcome.err
    assert json.loads(diffing("activations", "list", "--json").out) == []


def test_a_wrong_parameter_is_refused_before_models_load(diffing: Diffing, reference: str) -> None:
    for wrong in ("layers=[1.5]", "layers=[99]", "nonsense=1", "max_tokens=0"):
        outcome = diffing("activations", "collect", "--pair", reference, "--set", wrong, "--estimate")
        assert (outcome.code, bool(outcome.err)) == (2, True), wrong


def test_a_collection_whose_index_is_broken_is_listed_and_deleted(diffing: Diffing) -> None:
    folder = default_activation_store().folder / ("ab" * 32)
    folder.mkdir(parents=True)
    (folder / "index.json").write_text("{")
    name = f"activations-{'ab' * 6}"
    assert [(row["id"], row["broken"]) for row in json.loads(diffing("activations", "list", "--json").out)] == [
        (name, True)
    ]
    assert "broken" in diffing("activations", "list").out
    described = diffing("activations", "describe", name)
    assert described.code != 0
    assert "Delete it" in " ".join(described.err.split())
    assert diffing("activations", "delete", name).code == 0
    assert not folder.exists()
