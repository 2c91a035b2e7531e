"""`diffing verbalizer`: train the adapter that answers questions on activations, and measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffing_mcp.cli.help_sections import Sections
from diffing_mcp.cli.options import JsonOption

RecipeOption = Annotated[Path | None, typer.Option(help="YAML file. Default: the recipe of the bundled verbalizer.")]

verbalizer = typer.Typer(
    cls=Sections,
    help="Train and measure verbalizers for the activation oracle.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(verbalizer, name="verbalizer")


@verbalizer.command("train")
def train(
    recipe: RecipeOption = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the adapter. Default: beside the recipe.")] = None,
    base: Annotated[str | None, typer.Option(help="Another base model: hub id or local folder.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Another number of steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Another number of questions a step.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Another seed.")] = None,
) -> None:
    """Train a verbalizer from a recipe. A run that was cut off goes on where it was."""
    from diffing_mcp.cli.output import print_plain, progress_bar
    from diffing_mcp.methods.activation_oracle.training import read_recipe, train_verbalizer
    from diffing_mcp.methods.activation_oracle.verbalizers import BUNDLED_RECIPE

    path = recipe or BUNDLED_RECIPE
    with progress_bar("training a verbalizer") as progress:
        folder = train_verbalizer(
            read_recipe(path, base=base, steps=steps, batch_size=batch_size, seed=seed), output or path.parent, progress
        )
    print_plain(str(folder))


@verbalizer.command("measure")
def measure(
    recipe: RecipeOption = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of the adapter. Default: beside the recipe.")] = None,
    questions: Annotated[int, typer.Option(min=1, help="Held-out questions of each task.")] = 48,
    organisms: Annotated[
        str, typer.Option(help="Organisms to try it on, comma-separated; empty for none.")
    ] = "cake_bake,roman_concrete,control",
    as_json: JsonOption = False,
) -> None:
    """Measure a verbalizer on held-out questions and on organisms that it has never seen, and write sheet.json beside
    it.
    """
    import json

    from diffing_mcp.cli.output import print_json, print_plain, progress_bar
    from diffing_mcp.methods.activation_oracle.training import measure_tasks, read_recipe
    from diffing_mcp.methods.activation_oracle.verbalizers import BUNDLED_RECIPE
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.model_pairs.specs import ModelFiles, ModelSource, PairSpec

    path = recipe or BUNDLED_RECIPE
    folder = adapter or path.parent
    settings = read_recipe(path)
    source = ModelSource(files=ModelFiles(id=settings.base, dtype="bfloat16"))
    pairs = ModelPairs()
    names = [name.strip() for name in organisms.split(",") if name.strip()]
    with progress_bar("measuring a verbalizer") as progress:
        with pairs.use(PairSpec(name="base", base=source, finetuned=source, declared_identical=True), progress) as pair:
            tasks = measure_tasks(pair, folder, settings, questions, progress=progress)
        tried = [_on_organism(pairs, name, folder, progress) for name in names]
    sheet = {"tasks": [task.model_dump() for task in tasks], "organisms": tried}
    (folder / "sheet.json").write_text(json.dumps(sheet, indent=1), encoding="utf-8")
    if as_json:
        print_json(sheet)
        return
    for task in tasks:
        print_plain(
            f"{task.task}: injected {task.injected:.2f}, shuffled {task.shuffled:.2f}, none {task.none:.2f} of "
            f"{task.questions} questions"
        )
    for row in tried:
        shares = ", ".join(f"{kind} {share:.2f}" for kind, share in row["on_topic"].items())
        print_plain(
            f"{row['organism']}: on-topic answers {shares}; stands out: {row['stands_out']}; words of difference: "
            f"{', '.join(row['words']) or 'none'}"
        )


def _on_organism(pairs: Any, name: str, adapter: Path, progress: Any) -> dict[str, Any]:
    """What the method says of an organism with default parameters, and the share of answers that touch its topic (of a
    null: baking).
    """
    import re

    from diffing_mcp.methods.runs.execute import run_methods
    from diffing_mcp.methods.runs.store import default_store
    from diffing_mcp.model_pairs.resolve import resolve_pair
    from diffing_mcp.organisms.ground_truth import load_ground_truth

    topic = load_ground_truth(name).topic or load_ground_truth("cake_bake").topic
    pattern = re.compile(
        "|".join(part for part in (topic.subject, topic.area) if part) if topic else "$^", re.IGNORECASE
    )
    record = run_methods(
        pairs, resolve_pair(name), [("activation_oracle", {"verbalizer": str(adapter)})], default_store(), progress
    )[0]
    result: Any = record.result()
    answers: dict[str, list[str]] = {}
    for row in record.table("answers").to_pylist():
        answers.setdefault(row["kind"], []).append(row["answer"])
    return {
        "organism": name,
        "answers": result.answers,
        "on_topic": {
            kind: sum(bool(pattern.search(text)) for text in texts) / len(texts) for kind, texts in answers.items()
        },
        "stands_out": result.stands_out,
        "words": [row.word for row in result.words if row.kind == "difference"],
        "finetuned_words": [row.word for row in result.words if row.kind == "finetuned"],
    }
