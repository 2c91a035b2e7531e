"""The shape of the command line: fast help, one line for expected failures, JSON where it was asked for."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from tests.cli.conftest import Diffing

COMMANDS = (
    "run",
    "pipeline",
    "overview",
    "methods",
    "runs",
    "pairs",
    "organisms",
    "serve",
    "connect",
    "config",
    "investigations",
    "evaluate",
    "panel",
)


def test_help_names_every_command(diffing: Diffing) -> None:
    outcome = diffing("--help")
    assert outcome.code == 0
    assert all(command in outcome.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(diffing: Diffing, command: str) -> None:
    outcome = diffing(command, "--help")
    assert outcome.code == 0
    assert "Usage" in outcome.out


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "sys.argv = ['diffing', '--help']\n"
        "from diffing_mcp.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'mcp', 'gradio', 'inspect_ai', 'rich.progress'} & "
        "set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "heavy: []"


def test_an_expected_failure_is_one_line_on_stderr_and_code_2(diffing: Diffing) -> None:
    outcome = diffing("run", "kl", "--pair", "cake_bak")
    assert outcome.code == 2
    assert outcome.out == ""
    assert len(outcome.err.strip().splitlines()) == 1
    assert "cake_bake" in outcome.err, "a mistyped name gets close matches"
    assert "Traceback" not in outcome.err


def test_an_expected_failure_is_json_on_stderr_when_json_was_asked_for(diffing: Diffing) -> None:
    outcome = diffing("run", "no_such_method", "--pair", "cake_bake", "--json")
    assert outcome.code == 2
    assert outcome.out == ""
    error = json.loads(outcome.err)["error"]
    assert error["code"] == "unknown_name"
    assert "kl" in error["message"]


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("max_samples", "key=value"),
        ("max_samples=0", "max_samples"),
        ("max_samples=many", "max_samples"),
        ("no_such=1", "no_such"),
        ("max_samples=[1", "YAML"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_model_is_loaded(diffing: Diffing, setting: str, complaint: str) -> None:
    outcome = diffing("run", "kl", "--pair", "cake_bake", "--set", setting)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert "max_tokens" in outcome.err or complaint == "YAML", "says which parameters there are"


def test_a_setting_given_twice_is_refused(diffing: Diffing) -> None:
    outcome = diffing("run", "kl", "--pair", "cake_bake", "--set", "seed=1", "--set", "seed=2")
    assert outcome.code == 2
    assert "twice" in outcome.err


def test_with_several_methods_a_setting_that_none_takes_is_refused(diffing: Diffing) -> None:
    outcome = diffing("run", "kl", "activation_difference_lens", "--pair", "cake_bake", "--set", "no_such=1")
    assert outcome.code == 2
    assert "no_such" in outcome.err


def test_http_options_without_http_are_refused(diffing: Diffing) -> None:
    outcome = diffing("serve", "--port", "9000")
    assert outcome.code == 2
    assert "--http" in outcome.err


def test_connecting_to_nothing_says_how_to_start_the_server_and_waits_for_it() -> None:
    command = [sys.executable, "-m", "diffing_mcp.cli.main", "connect", "http://127.0.0.1:9/mcp"]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0  # its host closed stdin
    assert "diffing serve --http" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_wrong_setting_of_the_environment_is_one_line(diffing: Diffing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFING_DTYPE", "float12")
    outcome = diffing("pairs", "list")
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert "DIFFING_DTYPE" in outcome.err


def test_a_port_that_is_taken_is_one_line(diffing: Diffing) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        outcome = diffing("serve", "--http", "--port", port)
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert port in outcome.err
    assert "--port" in outcome.err
