"""The view `examples`, the same for every method whose runs hold max-activating examples: put `examples` into its
`views`. Torch-free.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import view
from diffing_mcp.methods.examples.reader import Example, FeatureSummary
from diffing_mcp.methods.views.pages import ViewParams, page_size

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

STRONGEST = 5
"""Tokens of the shown text whose scores are given."""


class ExamplesParams(ViewParams):
    """Parameters of the view `examples`."""

    feature: str | None = Field(None, max_length=200, description="Name of a feature; None: list the features.")
    bin: int | None = Field(None, ge=0, le=1000, description="Quantile bin, 0 the lowest; None: all.")
    search: str | None = Field(
        None, max_length=200, description="Only contexts with all these words (beginnings of words count)."
    )
    cursor: str | None = Field(None, max_length=500, description="next_cursor of the page before.")
    limit: int = page_size(10)
    max_characters: int = Field(240, ge=20, le=4000, description="Characters of context shown around the token.")
    scores: bool = Field(False, description="Give the score of every shown token.")


class TokenScore(BaseModel):
    """A token of a context and the feature's score on it."""

    token: str
    score: float | None


class ExampleRow(BaseModel):
    """A place where the feature is high."""

    score: float
    bin: int
    document: str = Field(description="The text's number in this run.")
    position: int
    side: str = Field(description="The model it was read from; empty: both.")
    token: str
    text: str = Field(description="Context, the token between » and «.")
    strongest: list[TokenScore] = Field(description="Tokens of the shown context with the highest scores.")
    tokens: list[TokenScore] = Field(default_factory=list, description="All shown tokens (with `scores`).")

    def as_text(self) -> str:
        scored = " ".join(_shown(token) for token in (self.tokens or self.strongest))
        side = f" {self.side}" if self.side else ""
        return (
            f"  {self.score:.4g} [{self.document}@{self.position}{side}, bin {self.bin}] "
            f"{json.dumps(self.text, ensure_ascii=False)} | {scored}"
        )


class FeatureRow(BaseModel):
    """A feature that has examples."""

    feature: str
    examples: int = Field(description="Examples (that contain what was searched for).")
    max_score: float
    bins: list[int]


class ExamplesView(BaseModel):
    """Examples of a feature by falling score, or the features."""

    total: int
    examples: list[ExampleRow] = []
    features: list[FeatureRow] = []
    next_cursor: str | None = None

    def as_text(self) -> str:
        lines = [f"{self.total} in all"]
        lines += [
            f"  {row.feature}: {row.examples} examples, highest {row.max_score:.4g}, bins {row.bins}"
            for row in self.features
        ]
        lines += [row.as_text() for row in self.examples]
        if self.next_cursor:
            lines.append(f"next_cursor: {self.next_cursor}")
        return "\n".join(lines)


@view("Contexts where a feature is highest, by quantile bin, with token scores; searchable.", ExamplesParams)
def examples(record: RunRecord, params: ExamplesParams) -> ExamplesView:
    reader = record.examples()
    if params.feature is None:
        page = reader.features(params.search, params.cursor, params.limit)
        return ExamplesView(
            total=page.total, features=[_feature_row(found) for found in page.rows], next_cursor=page.next_cursor
        )
    page = reader.examples(params.feature, params.bin, params.search, params.cursor, params.limit)
    return ExamplesView(
        total=page.total,
        examples=[example_row(found, params.max_characters, params.scores) for found in page.rows],
        next_cursor=page.next_cursor,
    )


def example_row(example: Example, max_characters: int = 240, scores: bool = False) -> ExampleRow:
    """An example with `max_characters` of its context, most of them before the token."""
    tokens, place = example.context.tokens, example.place
    first, last, used = place, place + 1, len(tokens[place])
    # Two thirds of the room to what the model had read at the token, the rest to what follows it.
    while first > 0 and used + len(tokens[first - 1]) <= max_characters * 2 // 3:
        first -= 1
        used += len(tokens[first])
    while last < len(tokens) and used + len(tokens[last]) <= max_characters:
        used += len(tokens[last])
        last += 1
    text = (
        "".join(tokens[first:place])[-max_characters:]
        + f"»{tokens[place][:max_characters]}«"
        + "".join(tokens[place + 1 : last])
    )
    known = example.token_scores
    shown = [] if known is None else [_token(tokens[index], known[index]) for index in range(first, last)]
    ranked = sorted((row for row in shown if row.score is not None), key=lambda row: -(row.score or 0.0))
    return ExampleRow(
        score=example.score,
        bin=example.bin,
        document=example.context.document,
        position=example.position,
        side=example.side,
        token=tokens[place][:max_characters],
        text=text,
        strongest=ranked[:STRONGEST],
        tokens=shown if scores else [],
    )


def _token(text: str, score: np.floating) -> TokenScore:
    return TokenScore(token=text, score=float(f"{score:.4g}") if np.isfinite(score) else None)


def _shown(row: TokenScore) -> str:
    score = "-" if row.score is None else f"{row.score:.3g}"
    return f"{json.dumps(row.token, ensure_ascii=False)} {score}"


def _feature_row(found: FeatureSummary) -> FeatureRow:
    return FeatureRow(feature=found.name, examples=found.examples, max_score=found.max_score, bins=list(found.bins))
