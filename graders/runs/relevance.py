"""How many of the tokens that finished runs show are on the topic that the organism was taught."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from diffing_mcp.graders.replies import Ask
    from diffing_mcp.graders.token_readings import TokenReadings
    from diffing_mcp.methods.runs.store import RunRecord


TOKENS = 20


class JudgedList(BaseModel):
    """One token list of a run, judged."""

    run: str
    name: str = Field(description="Of the list.")
    control: bool = Field(description="Read from one model alone.")
    share: float = Field(description="Share of the judged tokens on topic, 0 to 1.")
    chance: float = Field(description="Mean share of the same list for the baseline organisms' topics.")
    frequent: float | None = Field(
        description="Share that is frequent in the training data; None when that is not here."
    )
    judged: int
    relevant: list[str]
    weighted: float | None = Field(
        None, description="Share of the judged tokens' probability on topic; None where the list has no probabilities."
    )
    by_model: float | None = Field(
        None, description="Share of the judged tokens that the language model calls relevant."
    )
    by_model_weighted: float | None = Field(None, description="The same by probability.")
    by_model_chance: float | None = Field(
        None,
        description=(
            "Mean share that the model calls relevant to what `grader_baselines` other organisms were taught; None "
            "without any."
        ),
    )


def judge(
    record: RunRecord, organism: str | None = None, baselines: Sequence[str] | None = None, k: int = TOKENS
) -> list[JudgedList]:
    """The first `k` tokens of every list of a run, judged by keywords.

    Raises:
        UnknownName: no ground truth is recorded for an organism.
        InvalidInput: the run has no token lists.
    """
    from diffing_mcp.core.errors import InvalidInput
    from diffing_mcp.graders.token_relevance import relevance as relevance_of
    from diffing_mcp.methods.registry import get_method

    name = organism_of(record, organism)
    others = topical_organisms() if baselines is None else baselines
    lists = get_method(record.manifest.method).token_lists(record)
    if not lists:
        raise InvalidInput(
            f"The run {record.id} shows no tokens: {record.manifest.method} found none, or shows something else."
        )
    frequent = _frequent_words(name)
    rows = []
    for each in lists:
        found = relevance_of(
            each.tokens[:k], name, each.weights and each.weights[:k], baseline_organisms=others, frequent=frequent
        )
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
        from diffing_mcp.graders.token_readings import read_tokens
        from diffing_mcp.organisms.ground_truth import load_ground_truth

        frequent = _frequent_words(organism) or ()
        return await read_tokens(
            tokens,
            load_ground_truth(organism),
            self.ask,
            rotations=self.rotations,
            agreement=self.agreement,
            frequent=frequent,
        )


def read_by_model(
    rows: list[JudgedList],
    records: list[RunRecord],
    organism: str | None,
    k: int,
    reader: ModelReader,
    note: Callable[[str], None],
) -> list[JudgedList]:
    """The rows with what a language model reads in their lists; `note` is told what that takes and which lists it could
    not read.
    """
    import asyncio

    from diffing_mcp.graders.replies import GradingFailed
    from diffing_mcp.graders.token_relevance import can_be_judged
    from diffing_mcp.methods.registry import get_method

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
                        "by_model_weighted": None
                        if each.weights is None
                        else readings.weighted_share([each.weights[place] for place in judged]),
                        "by_model_chance": sum(chance) / len(chance) if chance else None,
                    }
                )
        return found

    note(f"reading {len(rows)} lists, about {len(rows) * reader.rotations * (1 + reader.count)} questions to the model")
    return [row.model_copy(update=update) for row, update in zip(rows, asyncio.run(read()), strict=True)]


def organism_of(record: RunRecord, organism: str | None) -> str:
    """The organism that a run's lists are judged for. Raises UnknownName when it has no ground truth."""
    from diffing_mcp.core.errors import UnknownName
    from diffing_mcp.organisms.ground_truth import has_ground_truth

    name = organism or re.split(r"[/@]", record.manifest.pair_name)[0]
    if not has_ground_truth(name):
        raise UnknownName(f"No ground truth is recorded for {name!r}: name an organism that has one with --organism.")
    return name


def topical_organisms() -> list[str]:
    """Bundled organisms that were taught a topic of their own, by hand-written keywords."""
    from diffing_mcp.organisms.ground_truth import all_ground_truth
    from diffing_mcp.preprocessing.corpora import TRAINING_FOLDER

    return [
        name
        for name, truth in all_ground_truth().items()
        if truth.topic is not None and (TRAINING_FOLDER / name).is_dir()
    ]


@lru_cache(maxsize=16)
def _frequent_words(organism: str) -> list[str] | None:
    """The frequent words of an organism's training data; None when they are not here."""
    from diffing_mcp.core.errors import UnknownName
    from diffing_mcp.graders.token_relevance import frequent_tokens
    from diffing_mcp.preprocessing.corpora import CorpusParams, load_corpus

    try:
        corpus = load_corpus(CorpusParams(corpus=f"training:{organism}"))
    except UnknownName:
        return None
    texts = [
        document if isinstance(document, str) else " ".join(message["content"] for message in document)
        for document in corpus.documents
    ]
    return frequent_tokens(re.findall(r"\w+", " ".join(texts)))
