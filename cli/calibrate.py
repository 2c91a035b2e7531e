"""`diffing calibrate`, `diffing calibrations`, `diffing levels`: what verdicts are worth on a base model."""

from __future__ import annotations

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("calibrate")(calibrate)
    app.command("calibrations")(list_calibrations)
    app.command("levels")(levels)


def calibrate(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Base model: of the catalogue, a hub id or a folder.")],
    methods: Annotated[str | None, typer.Option(help="Methods, comma-separated; `kl` must be among them.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="A parameter as key=value (YAML), repeatable; METHOD.key=value for one."),
    ] = None,
    taught: Annotated[
        bool, typer.Option(help="Also the zoo of taught finetunes: gives probabilities and powers, takes longer.")
    ] = False,
    most: Annotated[int | None, typer.Option(min=1, help="Finetunes measured by this call at most.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what methods show of finetunes of BASE that taught nothing, so that verdicts on its finetunes have a
    level. What was done before is kept.
    """
    from diffing_mcp.api.calibrating import calibrate as run
    from diffing_mcp.cli.methods import method_requests
    from diffing_mcp.cli.output import print_json, print_plain, progress_bar

    requests = None
    if methods is not None or settings:
        from diffing_mcp.methods.calibration.calibrate import default_requests

        usual = list(dict.fromkeys(name for name, _ in default_requests()))
        names = [name.strip() for name in methods.split(",")] if methods is not None else usual
        requests = dict(method_requests(names, settings or []))
    with progress_bar(f"calibrating {base}") as progress:
        answer = run(base, methods=requests, taught=taught, most=most, progress=progress)
    if as_json:
        print_json(answer.result)
    else:
        print_plain(answer.as_text())


def list_calibrations(
    base: Annotated[str | None, typer.Argument(metavar="[BASE]", help="Show what methods can tell on it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the base models that verdicts are calibrated for, or show the figures of one: how well each method tells
    taught finetunes from nulls.
    """
    from diffing_mcp.cli.output import print_json, print_plain, print_rows
    from diffing_mcp.methods.calibration.detection import detection
    from diffing_mcp.methods.calibration.store import calibration_named, stored_calibrations
    from diffing_mcp.methods.calibration.summary import summary

    if base is not None:
        figures = detection(calibration_named(base))
        if as_json:
            print_json(figures)
        else:
            print_plain(figures.as_text())
        return
    found = [summary(each) for each in stored_calibrations()]
    if as_json:
        print_json(found)
        return
    print_rows(
        ("base", "nulls", "taught", "size of change", "methods", "made"),
        [
            (
                each.base,
                each.nulls,
                each.taught,
                f"{each.smallest:.2g} to {each.largest:.2g}",
                ", ".join(each.methods),
                f"{each.made:%Y-%m-%d}",
            )
            for each in found
        ],
    )


def levels(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Finished runs on one pair, one of `kl` too.")],
    as_json: JsonOption = False,
) -> None:
    """How sure the findings of finished runs are: probabilities and p-values against finetunes that taught nothing."""
    from diffing_mcp.api.calibrating import levels as find
    from diffing_mcp.cli.output import print_json, print_plain

    answer = find(*runs)
    if as_json:
        print_json(answer.result)
    else:
        print_plain(answer.as_text())
