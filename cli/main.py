"""Entry point of the `diffing` command.

Expected failures (`DiffingError`) become one line on stderr, or one JSON object there when `--json` was given, and exit
code 2.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sqlite3
import sys
from pathlib import Path
from typing import Annotated

import typer

from diffing_mcp.cli import (
    activations,
    batch,
    calibrate,
    config,
    dictionaries,
    doctor,
    evaluate,
    evaluations,
    facts,
    investigations,
    judge,
    methods,
    organisms,
    pairs,
    panel,
    questions,
    relevance,
    report,
    runs,
    server,
    suspicions,
    tokens,
    verbalizer,
)
from diffing_mcp.cli.common_options import choose_device, common_first, print_what_cannot_be_encoded, written_to
from diffing_mcp.cli.help_sections import Sections
from diffing_mcp.cli.stopping import saying_that_it_stops
from diffing_mcp.cli.tool_words import as_commands
from diffing_mcp.core.errors import Cancelled, DiffingError, InvalidInput
from diffing_mcp.core.extras import missing_extra
from diffing_mcp.core.storage import storage_error
from diffing_mcp.core.version import version

EXIT_EXPECTED_FAILURE = 2
EXIT_INTERRUPTED = 130
SECTIONS = {
    "Compare two models": (methods, batch, questions, suspicions, runs, report, panel),
    "Pairs, texts and what is trained on them": (pairs, activations, dictionaries, organisms, verbalizer),
    "Agents and hosts": (server, config, investigations, tokens),
    "Evaluate": (evaluate, evaluations, calibrate, judge, relevance, facts),
    "This installation": (doctor,),
}
SPEAKERS = ("serve", "connect")
"""Commands whose stdout belongs to a protocol."""


class Commands(Sections):
    """The commands in their sections."""

    titles = tuple(SECTIONS)


app = typer.Typer(
    name="diffing",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for title, parts in SECTIONS.items():
    commands, groups = len(app.registered_commands), len(app.registered_groups)
    for part in parts:
        part.register(app)
    for command in app.registered_commands[commands:]:
        command.rich_help_panel = title
    for group in app.registered_groups[groups:]:
        group.rich_help_panel = title


def print_version(asked: bool) -> None:
    """Print the version and end, when that is what was asked for."""
    if asked:
        print(version())
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    device: Annotated[
        str | None, typer.Option(help="Where models are loaded: auto, cpu, cuda, cuda:1, mps. Anywhere in the line.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="What they compute in: auto, float32, bfloat16, float16. Anywhere in the line.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the result into this file instead. Anywhere in the line."),
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Find out what a finetune did to a language model: by command, by an agent over MCP, or in the panel."""
    choose_device(device, dtype)
    if output is not None:
        if context.invoked_subcommand in SPEAKERS:
            raise InvalidInput(f"`diffing {context.invoked_subcommand}` speaks a protocol and has no result for -o.")
        context.obj.enter_context(written_to(output))


def main() -> None:
    """Run the command line."""
    try:
        _run()
    except SystemExit as end:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of what is left
        # The parser has a code of its own for a command whose output nobody took.
        sys.exit(0 if isinstance(end.__context__, BrokenPipeError) else end.code)


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe whose reader, such as `head`, has had enough: that is no failure."""
    try:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), select.POLLOUT)
    except (AttributeError, OSError, ValueError):  # Windows has no such call, and a stream in memory no number
        return False
    return any(event & select.POLLERR for _, event in watch.poll(0))


def _run() -> None:
    try:
        print_what_cannot_be_encoded()
        sys.argv[1:] = common_first(sys.argv[1:])
        # The outer one writes what was printed into a file, which an interrupted command shall not.
        with contextlib.ExitStack() as stack, saying_that_it_stops():
            app(obj=stack)
    except DiffingError as error:
        sys.exit(failed(error, as_json="--json" in sys.argv))
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error)) is None:
            raise
        sys.exit(failed(missing, as_json="--json" in sys.argv))
    except KeyboardInterrupt:
        sys.exit(
            failed(Cancelled("Interrupted; what was finished is kept."), as_json="--json" in sys.argv)
            and EXIT_INTERRUPTED
        )
    except (OSError, sqlite3.Error) as error:
        if (stored := storage_error(error)) is None:
            raise
        named = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        sys.exit(failed(type(stored)(f"{named}{stored.message}"), as_json="--json" in sys.argv))


def serve() -> None:
    """The command `diffing-mcp`: `diffing serve`, for registries that start a server by the name of its package."""
    sys.argv[:1] = ["diffing", "serve"]  # messages and help name the command that exists, `diffing serve`
    main()


def failed(error: DiffingError, as_json: bool) -> int:
    """Print an expected failure on stderr, in the words of the command line, and return the exit code."""
    message = error.message if error.names_tools else as_commands(error.message)
    if as_json:
        from diffing_mcp.cli.output import takes_all_characters

        said = {"error": {"code": error.code, "message": message}}
        print(json.dumps(said, ensure_ascii=not takes_all_characters(sys.stderr)), file=sys.stderr)
    else:
        print(f"diffing: {message}", file=sys.stderr)
    return EXIT_EXPECTED_FAILURE


if __name__ == "__main__":
    main()
