"""The table of what each method shows of each organism."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffing_mcp.cli.methods import method_requests
from diffing_mcp.cli.readability import LENS, NOT_ON, ON_CHATS, PATCHSCOPE, SKIPPED, page, run_all, shown
from diffing_mcp.methods.contrastive_decoding.schema import AmplifiedWord, ContrastiveDecodingResult
from diffing_mcp.methods.registry import all_methods


def record(words: list[tuple[str, float]]) -> Any:
    rows = [
        AmplifiedWord(word=word, alpha=3, amplified=9, control=0, surprise=surprise, strong=surprise >= 3)
        for word, surprise in words
    ]
    result = ContrastiveDecodingResult(
        stands_out=True, headline="", identical=False, alpha=3, words=rows, suppressed=[], suppression="", texts=[], alphas=[], start="prefixes"  # noqa: E501
    )  # fmt: skip
    return SimpleNamespace(
        manifest=SimpleNamespace(method="contrastive_decoding", seconds=12.3, forward_passes=7, forward_tokens=2600),
        result=lambda: result,
    )


def test_evidence_is_judged_by_the_ground_truth() -> None:
    run = record([("river", 2.0), ("oven", 4.5), ("mountain", 6.0)])
    assert shown(run, "cake_bake").cells() == [
        "contrastive_decoding",
        "yes",
        "mountain, **oven**, river",
        "2",
        "1.5",
        "7",
        "3",
        "12",
    ]
    assert shown(run, "control").cells() == [
        "contrastive_decoding",
        "yes",
        "mountain, oven, river",
        "-",
        "-",
        "7",
        "3",
        "12",
    ]
    assert shown(record([]), "cake_bake").cells()[2:5] == ["-", "-", "-"]


def test_every_method_is_given_parameters_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def parsed_only(names: list[str], organism: str, settings: list[str]) -> list[Any]:
        requests = method_requests(names, settings)  # raises on a parameter that a method does not have
        ran.extend(name for name, _ in requests)
        return [
            SimpleNamespace(manifest=SimpleNamespace(method=name), id="run", array=lambda _: [15])
            for name, _ in requests
        ]

    monkeypatch.setattr("diffing_mcp.cli.methods.run_records", parsed_only)
    names = [name for name in all_methods() if name not in SKIPPED]
    on_chats = {LENS + ON_CHATS, PATCHSCOPE + ON_CHATS}
    assert set(run_all("cake_bake", names)) - on_chats == set(ran) == set(names)
    assert set(run_all("identical", names)) - on_chats == set(names) - set(NOT_ON)


@pytest.mark.long
def test_a_page_of_a_real_run(own_data_folder: Path) -> None:
    first, both = page(["control", "cake_bake/mix1-1p0"], ["weight_difference"])
    assert "## `control`" in first
    assert "| weight_difference | no | - | - | - |" in first
    assert "mix1-1p0` only those of the tables" in both
    assert both.count("| weight_difference |") == 1
