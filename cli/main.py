"""Entry point of the `diffing` command.

Expected failures (`DiffingError`) become one line on stderr, or one JSON object there when `--json` was given, and exit
code 2.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from diffing_mcp.cli import (
    activations,
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
    relevance,
    runs,
    server,
    verbalizer,
)
from diffing_mcp.core.errors import Cancelled, DiffingError
from diffing_mcp.core.extras import missing_extra
from diffing_mcp.core.version import version

EXIT_EXPECTED_FAILURE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="diffing",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
for part in (
    methods,
    runs,
    activations,
    dictionaries,
    pairs,
    organisms,
    verbalizer,
    server,
    config,
    investigations,
    judge,
    evaluate,
    evaluations,
    relevance,
    facts,
    panel,
    doctor,
):
    part.register(app)


def print_version(asked: bool) -> None:
    """Print the version and end, when that is what was asked for."""
    if asked:
        print(version())
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Find out what a finetune did to a language model: by command, by an agent over MCP, or in the panel."""


def main() -> None:
    """Run the command line."""
    try:
        app()
    except DiffingError as error:
        sys.exit(report(error, as_json="--json" in sys.argv))
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error)) is None:
            raise
        sys.exit(report(missing, as_json="--json" in sys.argv))
    except KeyboardInterrupt:
        sys.exit(
            report(Cancelled("Interrupted; what was finished is kept."), as_json="--json" in sys.argv)
            and EXIT_INTERRUPTED
        )
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        sys.stderr.close()
        sys.exit(0)


def serve() -> None:
    """The command `diffing-mcp`: `diffing serve`, for registries that start a server by the name of its package."""
    sys.argv[:1] = ["diffing", "serve"]  # messages and help name the command that exists, `diffing serve`
    main()


def report(error: DiffingError, as_json: bool) -> int:
    """Print an expected failure on stderr and return the exit code."""
    if as_json:
        print(
            json.dumps({"error": {"code": error.code, "message": error.message}}, ensure_ascii=False), file=sys.stderr
        )
    else:
        print(f"diffing: {error.message}", file=sys.stderr)
    return EXIT_EXPECTED_FAILURE


if __name__ == "__main__":
    main()
