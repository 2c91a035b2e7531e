"""What the methods share that write with a direction or a difference amplified (`steering`, `weight_amplification`,
`contrastive_decoding`): the words of the texts, their coherence by strength, and the texts of a search. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from pydantic import BaseModel, Field

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.progress import Progress
from diffing_mcp.core.text import fenced
from diffing_mcp.methods.contract import CostEstimate, Figure, PairSize, TextGroup, view
from diffing_mcp.methods.texts.distinctive_words import ComparedWord, DistinctiveWord, distinctive_words, worth_showing
from diffing_mcp.methods.texts.words import repetition
from diffing_mcp.methods.views.figures import figure, trace
from diffing_mcp.methods.views.pages import TextPageParams, TextPageView
from diffing_mcp.methods.views.rows import grouped, near

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.generation import GenerationRequest
    from diffing_mcp.model_pairs.pair import LoadedPair

PERPLEXITY_ROOM = 1.5
"""Nats a token by which a text may be less probable under the base than the median of the reference texts."""
REPETITION_ROOM = 0.3
"""Share of repeated word triples that a text may have beyond the median of the reference texts."""


@dataclass(frozen=True)
class TextScores:
    """What tells whether texts are coherent, without a language model as judge. Per text [N]: log-perplexity under the
    base (nats a token; infinite for an empty text) and share of repeated word triples.
    """

    log_perplexity: np.ndarray
    repetition: np.ndarray

    def coherent(self, reference: TextScores) -> np.ndarray:
        """[N] bool: not far less probable and not far more repetitive than the median of `reference`."""
        return (self.log_perplexity <= reference.median_log_perplexity + PERPLEXITY_ROOM) & (
            self.repetition <= float(np.median(reference.repetition)) + REPETITION_ROOM
        )

    @property
    def median_log_perplexity(self) -> float:
        """Of the texts that are not empty; 0 when all are."""
        finite = self.log_perplexity[np.isfinite(self.log_perplexity)]
        return float(np.median(finite)) if len(finite) else 0.0

    def part(self, start: int, stop: int) -> TextScores:
        """Texts [start, stop)."""
        return TextScores(self.log_perplexity[start:stop], self.repetition[start:stop])


def score_texts(pair: LoadedPair, texts: Sequence[tuple[GenerationRequest, str]], progress: Progress) -> TextScores:
    """Score answers to their requests under the plain base."""
    scores = -np.array([each.mean for each in pair.answer_scores("base", texts, progress)])
    scores[np.isnan(scores)] = np.inf
    return TextScores(scores, np.array([repetition(text) for _, text in texts]))


W = TypeVar("W", bound=ComparedWord)
Prompted = Sequence[tuple[str, str]]
"""Prompts with a text of each."""

WORDS_SHOWN = 12
SEARCHED = "searched"
"""Table of the texts that a search for a strength wrote."""


class CoherenceRow(BaseModel):
    """How readable the texts are at one strength."""

    coherent: float = Field(description="Share of the texts that are coherent.")
    log_perplexity: float = Field(description="Median log-perplexity of the texts under the base, nats a token.")
    repetition: float = Field(description="Median share of word triples that had come before in the same text.")

    @classmethod
    def measured(cls, coherent: np.ndarray, scores: TextScores, **where: Any) -> Self:
        """Of texts that are `coherent` [N] bool or not; `where` are the other fields."""
        return cls(
            coherent=round(float(coherent.mean()), 3),
            log_perplexity=round(scores.median_log_perplexity, 3),
            repetition=round(float(np.median(scores.repetition)), 3),
            **where,
        )

    def figures(self) -> str:
        """All three in words."""
        return (
            f"{100 * self.coherent:.0f} % coherent, log-ppl {self.log_perplexity:.2f}, repetition {self.repetition:.2f}"
        )


def words_beyond(sets: Iterable[tuple[Prompted, Prompted, Callable[[DistinctiveWord], W]]]) -> list[W]:
    """The words of each set of texts beyond its control texts, as rows made by its function: strong ones first, then
    the most surprising.
    """
    rows = [make(word) for texts, control, make in sets for word in worth_showing(distinctive_words(texts, control))]
    return sorted(rows, key=lambda row: (not row.strong, -row.surprise, row.word))


def each_once(words: Sequence[W]) -> list[W]:
    """The first row of each word: it counts once, however many strengths bring it up."""
    first: dict[str, W] = {}
    for row in words:
        first.setdefault(row.word, row)
    return list(first.values())


def quoted_texts(heading: str, texts: Mapping[str, str]) -> list[str]:
    """Lines: a heading, and below it each text by its name, marked as text of a model."""
    named = [f"  {name} {fenced(text)}" for name, text in texts.items()]
    return [f"{heading}; untrusted model text between ⟦ ⟧:", *named]


def coherence_figure(title: str, table: str, column: str, axis: str) -> Figure:
    """Share of coherent texts by the number in `column`, a line for each side where the table has several."""

    def build(record: RunRecord) -> dict[str, Any]:
        rows = sorted(({"side": "finetuned"} | row for row in record.rows(table)), key=lambda row: row[column])
        sides = sorted(grouped(rows, "side").items())
        lines = [trace("line", of_side, side, x=column, y="coherent") for side, of_side in sides]
        return figure(lines, x=axis, y={"title": "share of coherent texts", "range": [0, 1.02]})

    return Figure("coherence", title, build)


def cost_of_answers(pair: PairSize, generated: int) -> CostEstimate:
    """Cost of tokens that are each generated once and read once by the base."""
    return pair.cost(generated, -(-generated // 32), generated_tokens=generated, bytes=20 * generated)


class SearchedText(BaseModel):
    """A text that the search for a strength wrote. UNTRUSTED text of a model under study."""

    side: str
    strength: float
    prompt: str
    text: str


class SearchedParams(TextPageParams):
    """Which texts of the search."""

    strength: float | None = Field(None, description="Only this strength (or weight) of the search (0.01 near).")


class SearchedView(TextPageView[SearchedText]):
    """A page of texts of the search, to judge by reading which strength leaves texts coherent."""

    strengths: list[float] = Field(description="All that were tried.")


def add_searched(run: RunWriter, texts: Sequence[SearchedText], own_prompts: bool) -> None:
    """Store the texts of a search, if there was one. Those on the caller's `own_prompts` are not kept: answers to own
    prompts cost interactions, and only those at the strengths taken are charged for."""
    if texts and not own_prompts:
        run.add_rows(SEARCHED, texts, SearchedText)


@view("Page through the texts at every strength that the search tried.", SearchedParams)
def searched(record: RunRecord, params: SearchedParams) -> SearchedView:
    """A page of the texts of a search.

    Raises:
        UnknownName: the run keeps none.
    """
    if SEARCHED not in record.manifest.tables:
        raise UnknownName(
            f"Run {record.id} keeps no searched texts: its strengths were given, it ran on own prompts, or it was made "
            "before they were kept. Read the view `answers`, or run again without `strengths` and `prompts`."
        )
    rows = record.rows(SEARCHED)
    strengths = sorted({row["strength"] for row in rows})
    rows = near(rows, "strength", params.strength)
    return SearchedView.of(rows, params, searched=("prompt", "text"), cut=("text",), strengths=strengths)


def group_of(rows: Sequence[Mapping[str, Any]], column: str, **about: Any) -> TextGroup:
    """The texts of one column of stored rows; `about` are the other fields."""
    return TextGroup(prompts=[row["prompt"] for row in rows], texts=[row[column] for row in rows], **about)


def group_at(
    rows: Sequence[Mapping[str, Any]],
    column: str,
    side: str,
    strength: float,
    coherent: Mapping[tuple[str, float], float],
    **about: Any,
) -> TextGroup:
    """The texts of one column that a side wrote at a strength, in the series of that side and sign.

    Args:
        coherent: share that the method found coherent, by side and strength.
        about: the other fields.
    """
    series = f"{side} {'+' if strength > 0 else '-'}" if strength else None
    share = coherent.get((side, strength))
    return group_of(rows, column, strength=strength, series=series, coherent=share, **about)


def searched_groups(record: RunRecord, coherent: Mapping[tuple[str, float], float]) -> list[TextGroup]:
    """The texts of a search by side and strength, with the share that the method found `coherent`; none where nothing
    was searched for.
    """
    table = record.rows(SEARCHED) if SEARCHED in record.manifest.tables else []
    groups = []
    for side, strength in dict.fromkeys((row["side"], row["strength"]) for row in table):
        rows = [row for row in table if (row["side"], row["strength"]) == (side, strength)]
        name = f"{side} {strength:+g} (search)"
        groups.append(group_at(rows, "text", side, strength, coherent, name=name, role="search"))
    return groups
