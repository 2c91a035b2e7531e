"""`diffing runs`: the stored results."""

from __future__ import annotations

from typing import Annotated

import typer

from diffing_mcp.cli.completing import method_names, pair_names, run_ids
from diffing_mcp.cli.help_sections import Sections
from diffing_mcp.cli.options import CsvOption, JsonOption

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Id of a run, or its beginning.", autocompletion=run_ids)
]

runs = typer.Typer(cls=Sections, help="List, show and delete stored runs.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(runs, name="runs")


@runs.command("list")
def list_runs(
    method: Annotated[str | None, typer.Option(help="Of this method only.", autocompletion=method_names)] = None,
    pair: Annotated[str | None, typer.Option(help="Of this pair only.", autocompletion=pair_names)] = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """List the runs, newest first."""
    from diffing_mcp.api import runs as stored
    from diffing_mcp.cli.output import check_one_form, print_csv, print_json, print_rows

    check_one_form(as_json, as_csv)
    if as_csv:
        print_csv(stored.list_runs(method, pair))
        return
    manifests = stored.matching(method, pair)
    if as_json:
        print_json(manifests)
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
    table: Annotated[
        str | None, typer.Option(help="A stored table, as CSV; its name ends the output of `diffing runs show RUN`.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run: its result, one of its views, or one of its tables."""
    from diffing_mcp.api.runs import open_run
    from diffing_mcp.cli.output import note, parse_settings, print_csv, print_json, print_plain
    from diffing_mcp.core.errors import InvalidInput

    opened = open_run(run)
    if table is not None:
        if view is not None or settings or as_json:
            raise InvalidInput("--table gives the whole table as CSV, without --view, --set and --json.")
        print_csv(opened.table(table))
        return
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
        print_plain(opened.as_text())


@runs.command("delete")
def delete_runs(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Ids of runs, or their beginnings.", autocompletion=run_ids)
    ],
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
