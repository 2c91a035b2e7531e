"""`diffing judge`: the choices of finished runs that a method makes by numbers, made again by a language model that
reads.

For a patchscope: the scale. For steering, weight amplification and contrastive decoding: which strengths leave texts
coherent.
"""

from __future__ import annotations

from typing import Annotated

import typer

from diffing_mcp.cli.options import JsonOption
from diffing_mcp.graders.runs.choices import COHERENT_SHARE, JudgedRun, JudgedScale, check_can_be_judged, judge_run


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("judge")(judge)


def judge(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Ids of runs: patchscope, steering, weight_amplification, contrastive_decoding."
        ),
    ],
    grader: Annotated[
        str,
        typer.Option(help="`none` (what the runs themselves chose), or an Inspect model that reads tokens and texts."),
    ] = "none",
    grader_url: Annotated[str | None, typer.Option(help="Base URL of the grader's API.")] = None,
    rotations: Annotated[
        int,
        typer.Option(min=1, max=10, help="Readings by the language model, each in another order; the majority counts."),
    ] = 3,
    share: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of texts that must be coherent for a strength to be taken.")
    ] = COHERENT_SHARE,
    as_json: JsonOption = False,
) -> None:
    """Choose patchscope scales and coherent strengths of finished runs by a language model, beside what the runs chose
    by numbers.
    """
    import asyncio

    from diffing_mcp.cli.output import note, print_json
    from diffing_mcp.methods.runs.store import default_store

    store = default_store()
    records = [store.get(run) for run in runs]
    for record in records:
        check_can_be_judged(record)

    async def read() -> list[JudgedRun]:
        ask = None
        if grader != "none":
            from diffing_mcp.agents.llm import ask_with

            ask = ask_with(grader, grader_url)
        return [await judge_run(record, ask, grader=grader, rotations=rotations, share=share) for record in records]

    judged = asyncio.run(read())
    if as_json:
        print_json(judged)
    else:
        for each in judged:
            _print(each)
    failures = [each for each in judged if each.failure is not None]
    for each in failures:
        note(f"diffing: {each.run}: {each.failure}")
    if failures:
        raise typer.Exit(2)


def _print(judged: JudgedRun) -> None:
    from diffing_mcp.cli.output import note, print_rows

    asked = judged.grader is not None
    if judged.scales:
        print_rows(
            ("run", "sign", "scale", *(("by model", "votes", "agree") if asked else ())),
            [
                (
                    judged.run,
                    row.sign,
                    _number(row.chosen),
                    *(
                        (
                            _number(row.by_model) if row.outcome == "chosen" else row.outcome,
                            _votes(row),
                            _yes(row.agree),
                        )
                        if asked
                        else ()
                    ),
                )
                for row in judged.scales
            ],
        )
    if judged.strengths:
        print_rows(
            ("run", "series", "strength", "texts", "coherent", *(("by model", "unknown") if asked else ())),
            [
                (
                    judged.run,
                    row.series,
                    _number(row.strength),
                    row.texts,
                    _percent(row.coherent),
                    *((_percent(row.by_model), row.unknown) if asked else ()),
                )
                for row in judged.strengths
            ],
        )
        print_rows(
            ("run", "series", "largest coherent strength", *(("by model", "agree") if asked else ())),
            [
                (
                    judged.run,
                    row.series,
                    _number(row.largest),
                    *((_number(row.largest_by_model), _yes(row.agree)) if asked else ()),
                )
                for row in judged.series
            ],
        )
    if not asked and judged.failure is None:
        views = " or ".join(f"`diffing runs show {judged.run} --view {name}`" for name in judged.raw_views)
        note(f"No model was asked (--grader). Read for yourself: {views}.")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def _votes(row: JudgedScale) -> str:
    return ", ".join("none" if vote is None else f"{vote:g}" for vote in row.votes)
