"""`diffing relevance`: how many of the tokens that finished runs show are on the topic that the organism was taught."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from diffing_mcp.cli.options import JsonOption
from diffing_mcp.graders.runs.relevance import TOKENS, ModelReader, judge, read_by_model, topical_organisms


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("relevance")(relevance)


def relevance(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of runs, or their beginnings.")],
    organism: Annotated[
        str | None, typer.Option(help="What the lists are judged for; default: the organism of the run's pair.")
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option(help="Organisms for the chance level, comma-separated; default: the other bundled ones."),
    ] = None,
    k: Annotated[int, typer.Option(min=1, max=100, help="First tokens of each list.")] = TOKENS,
    grader: Annotated[
        str, typer.Option(help="`none` (keywords only), or an Inspect model that reads the tokens as well.")
    ] = "none",
    grader_url: Annotated[str | None, typer.Option(help="Base URL of the grader's API.")] = None,
    rotations: Annotated[
        int, typer.Option(min=1, max=10, help="Readings by the language model of each list, each in another order.")
    ] = 3,
    agreement: Annotated[
        Literal["all", "majority"],
        typer.Option(
            help="A token counts when `all` readings call it relevant, or more than half of them (`majority`)."
        ),
    ] = "all",
    grader_baselines: Annotated[
        int,
        typer.Option(
            min=0,
            max=20,
            help=(
                "Baseline organisms that the language model judges too, for its chance level; each costs as many "
                "readings."
            ),
        ),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Judge the token lists of finished runs against ground truth: by keywords, and by a language model when one is
    named.
    """
    from diffing_mcp.cli.output import note, print_json, print_rows
    from diffing_mcp.methods.runs.store import default_store

    store = default_store()
    others = None if baselines is None else [name.strip() for name in baselines.split(",") if name.strip()]
    rows = [row for run in runs for row in judge(store.get(run), organism, others, k)]
    if grader != "none":
        from diffing_mcp.agents.llm import ask_with

        reader = ModelReader(
            ask=ask_with(grader, grader_url),
            rotations=rotations,
            agreement=agreement,
            baselines=topical_organisms() if others is None else others,
            count=grader_baselines,
        )
        rows = read_by_model(rows, [store.get(run) for run in runs], organism, k, reader, note)
    if as_json:
        print_json(rows)
        return
    print_rows(
        (
            "run",
            "list",
            "on topic",
            "chance",
            "frequent",
            "by probability",
            *(("by model", "its chance", "by probability") if grader != "none" else ()),
            "tokens on topic",
        ),
        [
            (
                row.run,
                row.name + (" (control)" if row.control else ""),
                f"{100 * row.share:.0f} % of {row.judged}",
                f"{100 * row.chance:.1f} %",
                _percent(row.frequent),
                _percent(row.weighted),
                *(
                    (_percent(row.by_model), _percent(row.by_model_chance), _percent(row.by_model_weighted))
                    if grader != "none"
                    else ()
                ),
                " ".join(token.strip() for token in row.relevant[:8]) or "-",
            )
            for row in rows
        ],
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
