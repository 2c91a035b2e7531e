"""`diffing runs`: the stored results."""

from __future__ import annotations

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or its beginning.")]

runs = typer.Typer(help="List, show and delete stored runs.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(runs, name="runs")


@runs.command("list")
def list_runs(
    method: Annotated[str | None, typer.Option(help="Of this method only.")] = None,
    pair: Annotated[str | None, typer.Option(help="Of the pair with this name only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs, newest first."""
    from diffing_mcp.cli.output import print_json, print_rows
    from diffing_mcp.methods.runs.store import default_store

    manifests = default_store().list(method=method, pair=pair)
    if as_json:
        print_json(list(manifests))
        return
    rows = [
        (
            *(m.id, m.pair_name, m.method, m.created.astimezone().strftime("%Y-%m-%d %H:%M"), f"{m.seconds:.1f} s"),
            *(
                f"{count:,}" if count is not None else "-"
                for count in (m.forward_passes, m.forward_tokens, m.generated_tokens)
            ),
            f"{m.bytes / 1e6:.1f} MB",
        )
        for m in manifests
    ]
    print_rows(("run", "pair", "method", "made", "took", "passes", "tokens read", "generated", "size"), rows)


@runs.command("show")
def show_run(
    run: RunArgument,
    view: Annotated[str | None, typer.Option(help="A drill-down view of the method instead of the result.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A parameter of the view as key=value (YAML), repeatable.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run: its result, or one of its views."""
    from diffing_mcp.api.runs import open_run
    from diffing_mcp.cli.output import note, parse_settings, print_json, print_plain
    from diffing_mcp.core.errors import InvalidInput

    opened = open_run(run)
    if view is not None:
        answer = opened.view(view, **parse_settings(settings or [], opened.declared_view(view).Params.model_fields))
        if as_json:
            print_json(answer.result)
        else:
            print_plain(answer.as_text())
        return
    if settings:
        raise InvalidInput(f"--set goes with --view. Views of {opened.method}: {', '.join(opened.views) or 'none'}.")
    note(opened.heading())
    if as_json:
        print_json(opened.result)
    else:
        print_plain(opened.record.report(opened.result))


@runs.command("delete")
def delete_runs(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of runs, or their beginnings.")],
    as_json: JsonOption = False,
) -> None:
    """Delete runs. They are made again when asked for again."""
    from diffing_mcp.cli.output import print_json, print_plain
    from diffing_mcp.methods.runs.store import default_store

    store = default_store()
    deleted = [store.delete(run) for run in runs]
    if as_json:
        print_json({"deleted": deleted})
    else:
        print_plain(f"deleted {', '.join(deleted)}")
