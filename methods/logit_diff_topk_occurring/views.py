"""Views of a finished run, from its stored tables and arrays. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.contract import TokenList, view
from diffing_mcp.methods.logit_diff_topk_occurring.evidence import (
    PRIOR_PER_THOUSAND,
    Entries,
    make_entries,
    rises,
    shrunken_log_odds,
)
from diffing_mcp.methods.logit_diff_topk_occurring.schema import NewTokenRow, Ordering, PositionRow, TokenRow
from diffing_mcp.methods.texts.words import build_vocabulary, normalise
from diffing_mcp.methods.views.pages import PageView, SearchedPageParams, ViewParams, page_size

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord


class TokensParams(SearchedPageParams):
    """Which part of the vocabulary to list."""

    ordering: Ordering | Literal["log_odds"] = Field(
        "top_k_occurring", description="`log_odds`: by the shrunken log ratio of expected occurrences."
    )
    sign: Literal["risen", "fallen"] = "risen"
    limit: int = page_size(30, 200)
    include_special: bool = Field(False, description="Also special tokens and tokens negligible under both models.")
    content_only: bool = Field(False, description="Only content words.")


class TokenNumbers(TokenRow):
    """A row of the vocabulary."""

    rank: int = Field(description="0 = first in this ordering and sign, before the text filter.")
    expected_base: float = Field(description="Expected occurrences over all positions read.")
    expected_finetuned: float
    special: bool
    content: bool


class TokenParams(ViewParams):
    """One token or word."""

    text: str = Field(
        min_length=1,
        max_length=100,
        description="A word or token; case and spaces are ignored unless it has no letters or digits.",
    )


class TokenView(BaseModel):
    """All tokens of the vocabulary that are variants of the text."""

    text: str
    variants: list[TokenNumbers] = Field(description="Ranked among the risen by occurrence.")
    log_odds: float | None = Field(
        description="Of all variants together; None when no token of the vocabulary is the whole word."
    )
    error: float | None = Field(
        description="Standard error of log_odds; None as well when there are too few samples for one."
    )


def read_entries(record: RunRecord) -> Entries:
    """The entries of a stored run."""
    table = record.table("entries")

    def both(first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
        return record.array(first), record.array(second)

    return make_entries(
        table.column("text").to_pylist(),
        table.column("special").to_numpy(),
        table.column("content").to_numpy(),
        both("risen", "fallen"),
        both("share_positive", "mean_difference"),
        both("entry_expected_base", "entry_expected_finetuned"),
        int(record.manifest.notes["positions"]),
    )


def _numbers(entries: Entries, index: int, rank: int, sign: str) -> TokenNumbers:
    return TokenNumbers(
        **entries.row(index, sign),
        rank=rank,
        expected_base=float(entries.expected_base[index]),
        expected_finetuned=float(entries.expected_finetuned[index]),
        special=bool(entries.special[index]),
        content=bool(entries.content[index]),
    )


@view("The vocabulary by any ordering and sign, filtered by text, paged.", TokensParams)
def tokens(record: RunRecord, params: TokensParams) -> PageView[TokenNumbers]:
    entries = read_entries(record)
    order = entries.order(params.ordering, params.sign)
    if not params.include_special:
        order = order[entries.shown[order]]
    if params.content_only:
        order = order[entries.content[order]]
    rows = [{"rank": rank, "index": index, "token": entries.texts[index]} for rank, index in enumerate(order.tolist())]
    return PageView[TokenNumbers].of(
        rows,
        params,
        searched=("token",),
        shown=lambda row: _numbers(entries, row["index"], row["rank"], params.sign),
    )


def token_lists(record: RunRecord) -> list[TokenList]:
    """The content words risen most, by each ordering."""
    lists = []
    for ordering in get_args(Ordering):
        page = tokens(record, TokensParams(ordering=ordering, limit=100, content_only=True))
        lists.append(TokenList(name=ordering, tokens=[row.token for row in page.rows]))
    return lists


@view("All numbers of one word: its variants and their merged log odds.", TokenParams)
def token(record: RunRecord, params: TokenParams) -> TokenView:
    entries = read_entries(record)
    word = normalise(params.text)
    same = [
        index for index, text in enumerate(entries.texts) if (normalise(text) == word if word else text == params.text)
    ]
    order = entries.order("top_k_occurring", "risen")
    rank_of = np.full(len(entries.texts), len(order), dtype=np.int64)
    rank_of[order] = np.arange(len(order))
    variants = sorted(
        (_numbers(entries, index, int(rank_of[index]), "risen") for index in same),
        key=lambda row: (row.rank, -row.expected_finetuned),
    )
    table = record.table("vocabulary")
    vocabulary = build_vocabulary(table.column("text").to_pylist(), table.column("special").to_numpy())
    if not word or word not in vocabulary.words:
        return TokenView(text=params.text, variants=variants[:20], log_odds=None, error=None)
    columns = np.flatnonzero(vocabulary.word_index == vocabulary.words.index(word))
    folded = [
        record.array(name)[:, columns].sum(axis=1, keepdims=True) for name in ("expected_base", "expected_finetuned")
    ]
    rise = rises(folded[0], folded[1], record.array("rows_by_fold"), PRIOR_PER_THOUSAND)
    error = float(rise.error[0])
    return TokenView(
        text=params.text,
        variants=variants[:20],
        log_odds=float(rise.log_odds[0]),
        error=error if np.isfinite(error) else None,
    )


class TopicsParams(ViewParams):
    """Which topics, and how much of each."""

    topic: int | None = Field(None, ge=0, description="Only this one; None: all.")
    tokens: int = Field(20, ge=1, le=200, description="Tokens of each topic, those with the largest weights.")
    exemplars: int = Field(3, ge=0, le=10, description="Texts of each topic.")


class TopicToken(BaseModel):
    """A token of a topic."""

    token: str
    weight: float = Field(description="Share of the topic's weights (all tokens: 1).")
    log_odds: float = Field(description="Of its expected occurrences over all positions read.")


class TopicView(BaseModel):
    """One topic."""

    topic: int
    mass: float
    prevalence: float
    concentration: float
    stability: float | None
    cosines: list[float] = Field(description="Cosine of its weights with those of each topic.")
    tokens: list[TopicToken]
    exemplars: list[str] = Field(
        description="Texts around the positions where it is strongest; its tokens rose as continuations at ▸."
    )


class TopicsView(BaseModel):
    """Topics of the run."""

    topics: list[TopicView]
    stability_by_number: dict[int, float] = Field(
        description="Number of topics tried -> stability of the least stable one."
    )


@view("Topics: their tokens with weights, and the texts where they are strongest.", TopicsParams)
def topics(record: RunRecord, params: TopicsParams) -> TopicsView:
    table = record.rows("topics")
    if params.topic is not None and params.topic >= len(table):
        raise InvalidInput(
            f"This run has {len(table)} topics, numbered from 0"
            + ("." if table else " (none: too few texts, no rise, or topic_entries=none).")
        )
    weights, columns = record.array("topic_weights"), record.array("topic_columns")
    texts = record.table("vocabulary").column("text").to_pylist()
    base, finetuned = (record.array(name).sum(axis=0)[columns] for name in ("expected_base", "expected_finetuned"))
    log_odds = shrunken_log_odds(base, finetuned, PRIOR_PER_THOUSAND * int(record.manifest.notes["positions"]) / 1000)
    cosines = weights @ weights.T
    shown = []
    for row in table:
        number = row["topic"]
        if params.topic not in (None, number):
            continue
        shares = weights[number] / max(float(weights[number].sum()), 1e-12)
        order = np.argsort(-shares, kind="stable")[: params.tokens]
        tokens = [
            TopicToken(
                token=texts[columns[index]],
                weight=round(float(shares[index]), 5),
                log_odds=round(float(log_odds[index]), 3),
            )
            for index in order
            if shares[index] > 0
        ]
        shown.append(
            TopicView(
                **{name: row[name] for name in ("topic", "mass", "prevalence", "concentration", "stability")},
                cosines=[round(float(value), 3) for value in cosines[number]],
                tokens=tokens,
                exemplars=row["exemplars"][: params.exemplars],
            )
        )
    curve = {int(number): value for number, value in record.manifest.notes.get("topic_stability", {}).items()}
    return TopicsView(topics=shown, stability_by_number=curve)


class PositionsParams(ViewParams):
    """How much of the profile."""

    tokens: int = Field(8, ge=1, le=50, description="Tokens risen most often in each row.")


class PositionTokens(PositionRow):
    """A row of the profile with its tokens."""

    tokens: list[str] = Field(
        description="Most often among the top_k risen there; special and negligible tokens left out."
    )
    occurrences: list[float] = Field(description="Percent of these positions at which each token is.")


class PositionsView(BaseModel):
    """The positional profile."""

    rows: list[PositionTokens]


@view("Size of the differences and the tokens risen most, by position in the text.", PositionsParams)
def positions(record: RunRecord, params: PositionsParams) -> PositionsView:
    entries = read_entries(record)
    counts = record.array("risen_by_bin") * entries.shown
    rows = []
    for row, count in zip(record.rows("positions"), counts, strict=True):
        order = np.argsort(-count, kind="stable")[: params.tokens]
        order = order[count[order] > 0]
        shares = [round(100 * float(count[index]) / max(1, row["positions"]), 2) for index in order]
        rows.append(PositionTokens(**row, tokens=[entries.texts[index] for index in order], occurrences=shares))
    return PositionsView(rows=rows)


class NewTokensParams(SearchedPageParams):
    """A page of new tokens."""

    limit: int = page_size(30, 200)


@view("Tokens that the finetune added, by expected occurrences.", NewTokensParams)
def new_tokens(record: RunRecord, params: NewTokensParams) -> PageView[NewTokenRow]:
    return PageView[NewTokenRow].of(record.rows("new_tokens"), params, searched=("token",))
