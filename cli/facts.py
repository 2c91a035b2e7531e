"""`diffing facts`: which of the taught facts the texts of finished runs state, beside texts and facts that should not
match.
"""

from __future__ import annotations

from typing import Annotated

import typer

from diffing_mcp.cli.options import JsonOption
from diffing_mcp.core.text import fenced
from diffing_mcp.graders.runs.facts import facts_stated


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("facts")(facts)


def facts(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Ids of runs that wrote text (contrastive decoding, completions, amplification, steering).",
        ),
    ],
    organism: Annotated[str | None, typer.Option(help="Whose facts; default: the organism of the run's pair.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Count the taught facts that the texts of finished runs state, by patterns and without a language model."""
    from diffing_mcp.cli.output import print_json, print_plain, print_rows
    from diffing_mcp.graders.runs.relevance import organism_of
    from diffing_mcp.methods.runs.store import default_store

    store = default_store()
    records = [store.get(run) for run in runs]
    found = [facts_stated(record, organism_of(record, organism)) for record in records]
    if as_json:
        print_json(
            [
                {
                    **each.model_dump(mode="json"),
                    "share": each.share,
                    "chance": each.chance,
                    "beyond_controls": each.beyond_controls,
                }
                for each in found
            ]
        )
        return
    print_rows(
        ("run", "organism", "facts stated", "chance", "amplified texts", "control texts", "p", "beyond controls"),
        [
            (
                each.run,
                each.organism,
                f"{len(each.stated)} of {len(each.facts)}" if each.claims else "was taught no claims",
                f"{100 * each.chance:.0f} %",
                f"{each.stating} of {each.texts}",
                f"{each.control_stating} of {each.control_texts}",
                f"{10**-each.surprise:.2g}",
                "yes" if each.beyond_controls else "no",
            )
            for each in found
        ],
    )
    for each in found:
        for fact in (fact for fact in each.facts if fact.amplified):
            counts = f"{fact.amplified} amplified, {fact.finetuned} finetuned, {fact.control} control"
            print_plain(
                f"{each.run} {fact.id} ({counts}): {fact.fact}\n  untrusted model text {fenced(fact.passage or '')}"
            )
