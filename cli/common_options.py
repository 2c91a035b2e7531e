"""Options that every command takes, wherever they stand in the line."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffing_mcp.core.errors import InvalidInput

OUTPUT = ("--output", "-o")
COMMON = ("--device", "--dtype", *OUTPUT)
OWN_OUTPUT = (("evaluate",), ("organisms", "train"), ("verbalizer", "train"))
"""Commands that write a folder or a table themselves: to them the output is an option of their own."""


def common_first(arguments: Sequence[str]) -> list[str]:
    """The command line with the common options before the command, where the parser expects them, and the output right
    behind a command that has such an option of its own."""
    first: list[str] = []
    output: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            rest += [argument, *left]
        elif argument.partition("=")[0] not in COMMON:
            rest.append(argument)
        else:
            found = [argument] if "=" in argument else [argument, *_one(left)]
            (output if argument.partition("=")[0] in OUTPUT else first).extend(found)
    own = next((len(command) for command in OWN_OUTPUT if tuple(rest[: len(command)]) == command), 0)
    return [*first, *rest[:own], *output, *rest[own:]]


def _one(arguments: Iterator[str]) -> Iterator[str]:
    """The next argument, if there is one."""
    with contextlib.suppress(StopIteration):
        yield next(arguments)


def choose_device(device: str | None, dtype: str | None) -> None:
    """Put what was chosen into the environment, where the settings of this process and of those it starts are read.

    Raises:
        InvalidInput: there is no such floating-point type.
    """
    chosen = {"DIFFING_DEVICE": device, "DIFFING_DTYPE": dtype}
    given = {name: value for name, value in chosen.items() if value is not None}
    if given:
        from diffing_mcp.core.settings import settings

        os.environ.update(given)
        settings.cache_clear()
        settings()


def print_what_cannot_be_encoded() -> None:
    """From now on characters that the terminal or the pipe has no code for (models write any; Windows pipes and some
    locales take few) are printed as escapes instead of ending the command after its work is done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def written_to(path: Path) -> Iterator[None]:
    """What is printed meanwhile goes into a file, whole; nothing is written when the command fails or prints nothing.
    A link stays one, and what is no file (a pipe, /dev/null) is written to instead of replaced.

    Raises:
        InvalidInput: its folder is not there, or it is a folder itself: before the command starts.
    """
    from diffing_mcp.core.atomic_files import replace_synced

    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InvalidInput(f"-o {path}: {'that is a folder' if path.is_dir() else 'its folder is not there'}.")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except SystemExit:  # the ordinary end; expected failures are exceptions of another kind
        if printed.getvalue():
            content = printed.getvalue().encode("utf-8", "backslashreplace")
            if path.exists() and not path.is_file():
                path.write_bytes(content)
            else:
                replace_synced(path.resolve(), content)
        raise
