"""`diffing relevance`: how many of the tokens that finished runs show are on the topic that the organism was taught."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from graders.replies import Ask
    from graders.token_readings import TokenReadings
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
    weighted: float | None = Field(None, description="Share of the judged tokens' probability on topic; None where the list has no probabilities.")
    by_model: float | None = Field(None, description="Share of the judged tokens that the language model calls relevant.")
    by_model_weighted: float | None = Field(None, description="The same by probability.")
    by_model_chance: float | None = Field(
        None, description="Mean share that the model calls relevant to what `grader_baselines` other organisms were taught; None without any."
    )


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
    agreement: Annotated[
        Literal["all", "majority"], typer.Option(help="A token counts when `all` readings call it relevant, or more than half of them (`majority`).")
    ] = "all",
    grader_baselines: Annotated[
        int,
        typer.Option(min=0, max=20, help="Baseline organisms that the language model judges too, for its chance level; each costs as many readings."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")] = False,
) -> None:
    """Judge the token lists of finished runs against ground truth: by keywords, and by a language model when one is named."""
    from cli.output import print_json, print_rows
    from methods.runs import default_store

    store = default_store()
    others = None if baselines is None else [name.strip() for name in baselines.split(",") if name.strip()]
    rows = [row for run in runs for row in judge(store.get(run), organism, others, k)]
    if grader != "none":
        from agents.llm import ask_with

        reader = ModelReader(
            ask=ask_with(grader, grader_url),
            rotations=rotations,
            agreement=agreement,
            baselines=_topical_organisms() if others is None else others,
            count=grader_baselines,
        )
        rows = _read_by_model(rows, [store.get(run) for run in runs], organism, k, reader)
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
                *((_percent(row.by_model), _percent(row.by_model_chance), _percent(row.by_model_weighted)) if grader != "none" else ()),
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
        found = relevance_of(each.tokens[:k], name, each.weights and each.weights[:k], baseline_organisms=others, frequent=frequent)
        rows.append(
            JudgedList(
                weighted=found.weighted_share,
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


@dataclass(frozen=True)
class ModelReader:
    """How a language model reads token lists."""

    ask: Ask
    rotations: int
    agreement: Literal["all", "majority"]
    baselines: Sequence[str]
    """Organisms to take the chance level from: the first `count` that a list is not judged for."""
    count: int

    def others(self, organism: str) -> list[str]:
        """The organisms of the chance level of one that lists are judged for."""
        return [name for name in self.baselines if name != organism][: self.count]

    async def read(self, tokens: Sequence[str], organism: str) -> TokenReadings:
        """Tokens read for one organism, with the frequent words of its training data as a hint."""
        from graders.token_readings import read_tokens
        from organisms.ground_truth import load_ground_truth

        frequent = _frequent_words(organism) or ()
        return await read_tokens(tokens, load_ground_truth(organism), self.ask, rotations=self.rotations, agreement=self.agreement, frequent=frequent)


def _read_by_model(rows: list[JudgedList], records: list[RunRecord], organism: str | None, k: int, reader: ModelReader) -> list[JudgedList]:
    import asyncio

    from cli.output import note
    from graders.replies import GradingFailed
    from graders.token_relevance import can_be_judged
    from methods.registry import get_method

    async def read() -> list[dict[str, float | None]]:
        found: list[dict[str, float | None]] = []
        for record in records:
            name = organism_of(record, organism)
            for each in get_method(record.manifest.method).token_lists(record):
                judged = [place for place, token in enumerate(each.tokens[:k]) if can_be_judged(token)]
                tokens = [each.tokens[place] for place in judged]
                try:
                    readings = await reader.read(tokens, name)
                    chance = [(await reader.read(tokens, other)).share for other in reader.others(name)]
                except GradingFailed as error:  # the other lists' readings are kept
                    note(f"diffing: {record.id}, list {each.name}: {error.message}")
                    found.append({})
                    continue
                found.append(
                    {
                        "by_model": readings.share,
                        "by_model_weighted": None if each.weights is None else readings.weighted_share([each.weights[place] for place in judged]),
                        "by_model_chance": sum(chance) / len(chance) if chance else None,
                    }
                )
        return found

    note(f"reading {len(rows)} lists, about {len(rows) * reader.rotations * (1 + reader.count)} questions to the model")
    return [row.model_copy(update=update) for row, update in zip(rows, asyncio.run(read()), strict=True)]


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
