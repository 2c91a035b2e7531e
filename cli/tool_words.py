"""Messages are written for agents, who have tools; a person at the command line has commands."""

from __future__ import annotations

import re

COMMANDS = {
    "list_pairs": "diffing pairs list",
    "describe_pair": "diffing pairs show PAIR",
    "list_runs": "diffing runs list",
    "view_run": "diffing runs show RUN --view NAME",
    "ask_models": "diffing ask",
    "compare_text": "diffing compare",
    "test_hypothesis": "diffing test",
    "complete_slots": "diffing complete",
    "collect_activations": "diffing activations collect",
    "list_activations": "diffing activations list",
    "describe_activations": "diffing activations describe",
    "delete_activations": "diffing activations delete",
    "list_dictionaries": "diffing dictionaries list",
    "delete_dictionary": "diffing dictionaries delete",
    "open_investigation": "diffing investigations new",
    "close_investigation": "diffing investigations close",
}
_TOOL = re.compile(rf"(?<![\w/])(`?)({'|'.join(COMMANDS)})(?:\(\))?\1(?![\w(])")


def as_commands(message: str) -> str:
    """A message with the names of tools replaced by the commands that do the same."""
    return _TOOL.sub(lambda found: f"`{COMMANDS[found[2]]}`", message)
