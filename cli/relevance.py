"""`diffing relevance`: how many of the tokens that finished runs show are on the topic that the organism was taught."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from methods.runs import RunRecord

TOKENS = 20


class JudgedList(BaseModel):
    """One token list of a run, judged."""

    run: str
    name: str = Field(description="Of the list.")
    control: bool = Field(description="Read from one model alone.")
    share: float = Field(description="Share of the judged tokens on topic, 0 to 1.")
    chance: float = Field(description="Mean share of the same list for the baseline organisms' topics.")
    frequent: float | None = Field(description="Share that is frequent in the training data; None when that is not here.")
    judged: int
    relevant: list[str]
    by_model: float | None = Field(None, description="Share that the language model calls relevant.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("relevance")(relevance)


def relevance(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of runs, or their beginnings.")],
    organism: Annotated[str | None, typer.Option(help="What the lists are judged for; default: the organism of the run's pair.")] = None,
    baselines: Annotated[str | None, typer.Option(help="Organisms for the chance level, comma-separated; default: the other bundled ones.")] = None,
    k: Annotated[int, typer.Option(min=1, max=100, help="First tokens of each list.")] = TOKENS,
    grader: Annotated[str, typer.Option(help="`none` (keywords only), or an Inspect model that reads the tokens as well.")] = "none",
    grader_url: Annotated[str | None, typer.Option(help="Base URL of the grader's API.")] = None,
    rotations: Annotated[int, typer.Option(min=1, max=10, help="Readings by the language model of each list, each in another order.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")] = False,
) -> None:
    """Judge the token lists of finished runs against ground truth: by keywords, and by a language model when one is named."""
    from cli.output import print_json, print_rows
    from methods.runs import default_store

    store = default_store()
    others = None if baselines is None else [name.strip() for name in baselines.split(",") if name.strip()]
    rows = [row for run in runs for row in judge(store.get(run), organism, others, k)]
    if grader != "none":
        rows = _read_by_model(rows, [store.get(run) for run in runs], organism, k, grader, grader_url, rotations)
    if as_json:
        print_json(rows)
        return
    print_rows(
        ("run", "list", "on topic", "chance", "frequent", *(("by model",) if grader != "none" else ()), "tokens on topic"),
        [
            (
                row.run,
                row.name + (" (control)" if row.control else ""),
                f"{100 * row.share:.0f} % of {row.judged}",
                f"{100 * row.chance:.1f} %",
                _percent(row.frequent),
                *((_percent(row.by_model),) if grader != "none" else ()),
                " ".join(token.strip() for token in row.relevant[:8]) or "-",
            )
            for row in rows
        ],
    )


def judge(record: RunRecord, organism: str | None = None, baselines: Sequence[str] | None = None, k: int = TOKENS) -> list[JudgedList]:
    """The first `k` tokens of every list of a run, judged by keywords.

    Raises:
        UnknownName: no ground truth is recorded for an organism.
        InvalidInput: the run has no token lists.
    """
    from graders.token_relevance import relevance as relevance_of
    from methods.registry import get_method
    from organisms.errors import InvalidInput

    name = organism_of(record, organism)
    others = _topical_organisms() if baselines is None else baselines
    lists = get_method(record.manifest.method).token_lists(record)
    if not lists:
        raise InvalidInput(f"The run {record.id} shows no tokens: {record.manifest.method} found none, or shows something else.")
    frequent = _frequent_words(name)
    rows = []
    for each in lists:
        found = relevance_of(each.tokens[:k], name, baseline_organisms=others, frequent=frequent)
        rows.append(
            JudgedList(
                run=record.id,
                name=each.name,
                control=each.control,
                share=found.share,
                chance=found.chance,
                frequent=found.frequent_share,
                judged=found.judged,
                relevant=found.relevant,
            )
        )
    return rows


def _read_by_model(
    rows: list[JudgedList], records: list[RunRecord], organism: str | None, k: int, grader: str, url: str | None, rotations: int
) -> list[JudgedList]:
    import asyncio

    from agents.llm import ask_with
    from graders.token_readings import read_tokens
    from methods.registry import get_method
    from organisms.ground_truth import load_ground_truth

    async def read() -> list[float]:
        ask = ask_with(grader, url)
        shares = []
        for record in records:
            name = organism_of(record, organism)
            frequent = _frequent_words(name) or ()
            for each in get_method(record.manifest.method).token_lists(record):
                shares.append((await read_tokens(each.tokens[:k], load_ground_truth(name), ask, rotations=rotations, frequent=frequent)).share)
        return shares

    return [row.model_copy(update={"by_model": share}) for row, share in zip(rows, asyncio.run(read()), strict=True)]


def organism_of(record: RunRecord, organism: str | None) -> str:
    """The organism that a run's lists are judged for. Raises UnknownName when it has no ground truth."""
    from organisms.errors import UnknownName
    from organisms.ground_truth import has_ground_truth

    name = organism or re.split(r"[/@]", record.manifest.pair_name)[0]
    if not has_ground_truth(name):
        raise UnknownName(f"No ground truth is recorded for {name!r}: name an organism that has one with --organism.")
    return name


def _topical_organisms() -> list[str]:
    """Bundled organisms that were taught a topic of their own, by hand-written keywords."""
    from organisms.ground_truth import all_ground_truth
    from preprocessing.corpora import TRAINING_FOLDER

    return [name for name, truth in all_ground_truth().items() if truth.topic is not None and (TRAINING_FOLDER / name).is_dir()]


@lru_cache(maxsize=16)
def _frequent_words(organism: str) -> list[str] | None:
    """The frequent words of an organism's training data; None when they are not here."""
    from graders.token_relevance import frequent_tokens
    from organisms.errors import UnknownName
    from preprocessing.corpora import CorpusParams, load_corpus

    try:
        corpus = load_corpus(CorpusParams(corpus=f"training:{organism}"))
    except UnknownName:
        return None
    texts = [document if isinstance(document, str) else " ".join(message["content"] for message in document) for document in corpus.documents]
    return frequent_tokens(re.findall(r"\w+", " ".join(texts)))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
