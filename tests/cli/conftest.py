"""The command line as a function, with a data folder of its own for every test."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

built = functools.cache(typer.main.get_command)
"""Typer builds the tree of all commands for every call, and a process makes one call outside of tests."""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Diffing = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def fresh_data_folder(own_data_folder: Path) -> None:
    """Every command has a data folder of its own."""


@pytest.fixture
def diffing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Diffing:
    """`diffing("runs", "list")` runs the command in this process, through the same entry point as the
    installed script.
    """
    from diffing_mcp.cli.main import main

    monkeypatch.setattr(typer.main, "get_command", built)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["diffing", *arguments])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        printed = capfd.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def reference(tiny_models: Callable[..., Path], tiny_adapters: Callable[..., Path]) -> str:
    """`BASE::FINETUNED` of a tiny random model and a random adapter on it, in local folders."""
    model = tiny_models()
    return f"{model}::{tiny_adapters(model)}"
