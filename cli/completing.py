"""What the shell offers for the next word: names of methods and pairs, ids of runs. Without models, so it is quick."""

from __future__ import annotations


def pair_names(incomplete: str) -> list[str]:
    """Pairs of the catalogue, those whose files are on this machine first."""
    from diffing_mcp.model_pairs import resolve

    return [name for name in resolve.pair_names() if name.startswith(incomplete)]


def method_names(incomplete: str) -> list[str]:
    """Methods, with their aliases."""
    from diffing_mcp.methods.registry import all_methods

    names = (name for own, method in all_methods().items() for name in (own, *method.aliases))
    return [name for name in names if name.startswith(incomplete)]


def run_ids(incomplete: str) -> list[str]:
    """Stored runs, newest first."""
    from diffing_mcp.methods.runs.store import default_store

    return [run.id for run in default_store().list() if run.id.startswith(incomplete)]
