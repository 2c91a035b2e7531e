"""What people expect of a command line: sections of help, options anywhere, output into files, whole ids, completion,
an answer to ctrl-C, commands instead of tools in messages.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.cli import main as command_line
from diffing_mcp.cli.common_options import COMMON, OWN_OUTPUT, common_first, print_what_cannot_be_encoded
from diffing_mcp.cli.completing import method_names, pair_names, run_ids
from diffing_mcp.cli.main import failed
from diffing_mcp.cli.output import print_json, print_plain, print_rows
from diffing_mcp.cli.stopping import STOPPING, saying_that_it_stops
from diffing_mcp.cli.tool_words import COMMANDS, as_commands
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs import resolve
from tests.cli.conftest import Diffing
from tests.cli.planted_runs import contrastive_run

LONG_ID = "activation_difference_lens-0123456789abcdef"


def test_help_lists_every_command_once_under_a_title_and_whole_sentences(diffing: Diffing) -> None:
    printed = diffing("--help").out
    for title in command_line.SECTIONS:
        assert f"{title}:" in printed
    names = [line.split()[0] for line in printed.splitlines() if line.startswith("  ") and line[2:3].islower()]
    for name in ("run", "ask", "compare", "runs", "pairs", "config", "evaluate", "doctor"):
        assert names.count(name) == 1
    assert "..." not in printed.split("Compare two models:")[1]
    assert "whether its" in diffing("activations", "--help").out


@given(
    st.lists(st.sampled_from(["run", "kl", "--pair", "x", "-s", "a=1", "--json"])),
    st.lists(st.tuples(st.sampled_from(COMMON), st.sampled_from(["cpu", "f.csv"]), st.booleans())),
    st.randoms(use_true_random=False),
)
def test_common_options_come_first_and_the_rest_keeps_its_order(words, common, random) -> None:
    pieces = [[word] for word in words]
    for name, value, joined in common:
        pieces.insert(random.randint(0, len(pieces)), [f"{name}={value}"] if joined else [name, value])
    sorted_line = common_first([word for piece in pieces for word in piece])
    assert sorted_line[len(sorted_line) - len(words) :] == words
    assert len(sorted_line) == sum(map(len, pieces))


def test_a_command_with_an_output_of_its_own_gets_it() -> None:
    found = []

    def walk(command: Any, names: tuple[str, ...]) -> None:
        for name, below in getattr(command, "commands", {}).items():
            walk(below, (*names, name))
        if names and any(set(COMMON) & set(option.opts) for option in command.params):
            found.append(names)

    walk(typer.main.get_command(command_line.app), ())
    assert sorted(found) == sorted(OWN_OUTPUT)
    line = ["organisms", "--dtype=float32", "train", "x", "--output", "folder"]
    assert common_first(line) == ["--dtype=float32", "organisms", "train", "--output", "folder", "x"]
    assert common_first(["-o", "t.parquet", "evaluate", "s"]) == ["evaluate", "-o", "t.parquet", "s"]
    assert common_first(["evaluations", "list", "-o", "f"]) == ["-o", "f", "evaluations", "list"]


def test_what_follows_two_dashes_is_no_option() -> None:
    assert common_first(["ask", "--", "-o", "x"]) == ["ask", "--", "-o", "x"]


def test_device_and_dtype_are_settings_wherever_they_stand(diffing: Diffing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFING_DEVICE", "auto")
    monkeypatch.setenv("DIFFING_DTYPE", "auto")
    assert diffing("pairs", "--device", "cpu", "list", "--offline", "--dtype=float32").code == 0
    assert (settings().device, settings().dtype) == ("cpu", "float32")
    assert os.environ["DIFFING_DTYPE"] == "float32", "a server that is started takes it over"
    refused = diffing("pairs", "list", "--dtype", "float12")
    assert refused.code == 2
    assert "bfloat16" in refused.err


def test_output_goes_into_a_file_whole_or_not_at_all(diffing: Diffing, tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    outcome = diffing("pairs", "list", "--offline", "--json", "-o", str(file))
    assert (outcome.code, outcome.out) == (0, "")
    assert json.loads(file.read_text())
    before = file.read_text()
    assert diffing("pairs", "show", "no_such_pair", "-o", str(file)).code == 2
    assert file.read_text() == before
    nowhere = diffing("pairs", "list", "-o", str(tmp_path / "no" / "such.txt"))
    assert nowhere.code == 2
    assert "folder" in nowhere.err
    assert "protocol" in diffing("serve", "-o", str(file)).err


def test_output_follows_a_link_and_goes_into_a_pipe(diffing: Diffing, tmp_path: Path) -> None:
    file, link, pipe = tmp_path / "pairs.json", tmp_path / "latest.json", tmp_path / "pipe"
    file.write_text("{}")
    link.symlink_to(file)
    os.mkfifo(pipe)
    listed = ("pairs", "list", "--offline", "--json", "-o")
    assert diffing(*listed, str(link)).code == 0
    assert link.is_symlink()
    assert json.loads(file.read_text())
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert diffing(*listed, str(pipe)).code == 0
        assert json.loads(os.read(reader, 1 << 16)) == json.loads(file.read_text())
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_what_a_model_wrote_moves_no_cursor(diffing: Diffing) -> None:
    record = contrastive_run({1.0: ["\x1b[2J\x9b1mgone", "\x1b]0;title\x07"]})
    for shown in (("--view", "texts"), ()):
        outcome = diffing("runs", "show", record.id, *shown)
        assert outcome.code == 0, outcome.err
        assert not {"\x1b", "\x9b", "\x07"} & {*outcome.out}
    assert "gone" in diffing("runs", "show", record.id, "--view", "texts").out


def test_characters_that_cannot_be_printed_end_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    print_what_cannot_be_encoded()
    print_json({"said": "日本 ü 🙂"})
    print_plain("日本 ü")
    sys.stdout.flush()
    *values, plain = written.getvalue().decode("latin-1").splitlines()
    assert json.loads("".join(values)) == {"said": "日本 ü 🙂"}
    assert plain == r"\u65e5\u672c ü"


def test_an_error_in_json_is_json_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, encoding="ascii"))
    print_what_cannot_be_encoded()
    assert failed(InvalidInput("no pair `cäke`"), as_json=True) == 2
    sys.stderr.flush()
    assert json.loads(written.getvalue())["error"]["message"] == "no pair `cäke`"


@pytest.mark.parametrize("lines", [1, 20_000])
def test_a_reader_that_has_had_enough_is_no_failure(lines: int) -> None:
    printing = (
        "import sys\nfrom diffing_mcp.cli import main, pairs\n"
        f"pairs.show_pair = pairs.pairs.command('much')(lambda: print('line\\n' * {lines}))\n"
        "sys.argv = ['diffing', 'pairs', 'much']\nmain.main()\n"
    )
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, "-c", printing], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["pairs", "runs"])
def test_a_list_has_one_form(diffing: Diffing, command: str) -> None:
    refused = diffing(command, "list", "--json", "--csv")
    assert (refused.code, refused.out) == (2, "")
    assert "not both" in refused.err


@pytest.mark.parametrize(("content", "said"), [(None, "may not be read"), (b"no database" * 100, "damaged")])
def test_what_cannot_be_stored_is_one_line(
    diffing: Diffing, own_data_folder: Path, content: bytes | None, said: str
) -> None:
    database = own_data_folder / "investigations.sqlite"
    own_data_folder.mkdir(exist_ok=True)
    if content is None:
        database.mkdir()
    else:
        database.write_bytes(content)
    outcome = diffing("tokens", "new", "ci")
    assert outcome.code == command_line.EXIT_EXPECTED_FAILURE
    [line] = outcome.err.splitlines()
    assert said in line


def test_a_full_disk_is_one_line(diffing: Diffing, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/runs")

    monkeypatch.setattr(resolve, "list_pairs", full)
    outcome = diffing("pairs", "list")
    assert outcome.code == command_line.EXIT_EXPECTED_FAILURE
    assert outcome.err.startswith("diffing: /data/runs: The disk is full.")


def test_lists_are_csv_too(diffing: Diffing) -> None:
    rows = list(csv.DictReader(io.StringIO(diffing("pairs", "list", "--offline", "--csv").out)))
    assert any(row["name"].startswith("cake_bake/") for row in rows)


@pytest.mark.parametrize("columns", ["20", "100"])
def test_ids_are_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    print_rows(("run", "pair", "headline"), [(LONG_ID, "cake_bake/default@smollm2-135m", "many words " * 20)])
    printed = capsys.readouterr().out
    assert LONG_ID in printed
    assert "cake_bake/default@smollm2-135m" in printed
    assert "…" not in printed
    assert printed.count("many") == 20


def test_messages_speak_of_commands_that_exist(diffing: Diffing) -> None:
    for command in COMMANDS.values():
        words = command.split()[1:]
        assert diffing(*[word for word in words if word.islower() and not word.startswith("-")], "--help").code == 0
    assert "`diffing pairs list`" in diffing("pairs", "show", "???").err
    assert as_commands("`list_runs` or list_runs() lists; ask_models.") == (
        "`diffing runs list` or `diffing runs list` lists; `diffing ask`."
    )


@pytest.mark.parametrize(
    "command", [("investigations", "new", "--pair", "identical"), ("tokens", "new", "me"), ("serve",)]
)
def test_options_that_take_names_of_tools_are_told_their_names(diffing: Diffing, command: tuple[str, ...]) -> None:
    """The lists of names to choose from had commands in them."""
    said = diffing(*command, "--tools", "kl,nonsense").err
    assert "nonsense" in said
    assert ", ask_models, " in said
    assert "`diffing ask`" not in said


@pytest.mark.parametrize("kept", ["my_list_runs", "list_runs(pair='x')", "/data/list_runs", "list_runs_2"])
def test_what_only_looks_like_a_tool_is_left_alone(kept: str) -> None:
    assert as_commands(kept) == kept


def test_names_are_completed(own_data_folder: Path) -> None:
    assert pair_names("cake_b")[0] == "cake_bake"
    assert "diff_mining" in method_names("diff")
    run = contrastive_run({1.0: ["a text"]}).id
    assert run_ids(run[:4]) == [run]


def test_the_shell_gets_a_script_and_its_completions(diffing: Diffing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_DIFFING_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "diffing overview --pair cake_b")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert "cake_bake" in diffing().out.splitlines()


def test_ctrl_c_is_answered_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), saying_that_it_stops():
        signal.raise_signal(signal.SIGINT)
    assert STOPPING in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupted_command_says_what_is_kept(diffing: Diffing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "list_pairs", lambda: signal.raise_signal(signal.SIGINT))
    outcome = diffing("pairs", "list")
    assert outcome.code == command_line.EXIT_INTERRUPTED
    assert outcome.err.startswith(STOPPING)
    assert "kept" in outcome.err.splitlines()[-1]


def test_an_interrupted_command_leaves_the_file_of_its_output_alone(
    diffing: Diffing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def begin() -> None:
        print_plain("the first half")
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(resolve, "list_pairs", begin)
    written = tmp_path / "pairs.txt"
    written.write_text("whole")
    assert diffing("pairs", "list", "-o", str(written)).code == command_line.EXIT_INTERRUPTED
    assert written.read_text() == "whole"
