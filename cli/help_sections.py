"""The list of commands in `--help`, in sections, with each first sentence whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from typer.core import TyperGroup

from diffing_mcp.core.text import first_sentence

GAP = 2


class Sections(TyperGroup):
    """A group that lists its commands under the titles in their `rich_help_panel`."""

    titles: ClassVar[Sequence[str]] = ()
    """The order of the sections."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the sections."""
        listed: dict[str, list[tuple[str, str]]] = {title: [] for title in self.titles}
        for name, command in self._shown(ctx):
            title = getattr(command, "rich_help_panel", None) or "Commands"
            listed.setdefault(str(title), []).append((name, first_sentence((command.help or "").split("\n\n")[0])))
        width = max((len(name) for rows in listed.values() for name, _ in rows), default=0)
        for title, rows in ((title, rows) for title, rows in listed.items() if rows):
            with formatter.section(title):
                # One width for all sections, so that the sentences stand below each other.
                formatter.write_dl([(name.ljust(width), sentence) for name, sentence in rows], col_spacing=GAP)

    def _shown(self, ctx: Any) -> Iterator[tuple[str, Any]]:
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                yield name, command

    def list_commands(self, ctx: Any) -> list[str]:
        """Commands in the order of their registration, groups of commands among them."""
        return list(self.commands)
