"""The declaration of `kl`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.contract import CorpusMethod, Cost, Figure, MethodResult, View
from diffing_mcp.methods.kl.schema import KLParams, KLResult, Metric, TextRow, TokenRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.kl.measure import KLAccumulator
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


_BINS = 60
_DIVERGENCES = {
    "kl_finetuned_base": "KL(finetuned || base)",
    "kl_base_finetuned": "KL(base || finetuned)",
    "js": "Jensen-Shannon",
}


class _Page(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(10, ge=1, le=100, description="Rows.")
    offset: int = Field(0, ge=0, description="Rows to pass over.")
    contains: str | None = Field(
        None, max_length=200, description="Only rows whose text or moved tokens contain this, whatever the case."
    )


class TokensParams(_Page):
    """Parameters of the view `tokens`."""

    sample: int | None = Field(
        None, ge=0, description="Give every token of this text in order, with its divergence, instead of the top rows."
    )
    metric: Metric = Field("kl_finetuned_base", description="Which divergence orders the top rows.")


class TokenValue(BaseModel):
    """A token of a text and how differently the models continue after it."""

    position: int
    token: str
    kl_finetuned_base: float
    kl_base_finetuned: float
    js: float


class TokensView(BaseModel):
    """Top positions, or all tokens of one text."""

    total: int = Field(description="Rows there are before `limit` and `offset`.")
    rows: list[TokenRow] = []
    text: list[TokenValue] = []


class TextsParams(_Page):
    """Parameters of the view `texts`."""

    metric: Metric = Field("kl_finetuned_base", description="Which divergence orders the texts.")


class TextsView(BaseModel):
    """Texts by mean divergence. Moved tokens are kept for the texts of highest KL(finetuned || base) only; they are
    empty for others.
    """

    total: int
    rows: list[TextRow]


class PositionsParams(BaseModel):
    """Parameters of the view `positions`."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(64, ge=1, le=2048, description="Positions, from 0.")


class PositionRow(BaseModel):
    """Means over all texts at one position."""

    position: int
    tokens: int
    kl_finetuned_base: float
    standard_error: float
    kl_base_finetuned: float
    js: float


class PositionsView(BaseModel):
    """The profile of divergence along texts."""

    rows: list[PositionRow]


def tokens(record: RunRecord, params: TokensParams) -> TokensView:
    """The top positions, or all tokens of one text.

    Raises:
        InvalidInput: the run has no such text.
    """
    if params.sample is not None:
        return _one_text(record, params)
    rows = [_unpack(row) for row in record.table("top_tokens").to_pylist()]
    rows = [row for row in rows if _matches(params.contains, row["context"], row)]
    rows.sort(key=lambda row: -row[params.metric])
    page = rows[params.offset : params.offset + params.limit]
    return TokensView(total=len(rows), rows=[TokenRow.model_validate(row) for row in page])


def _one_text(record: RunRecord, params: TokensParams) -> TokensView:
    from pyarrow import compute

    table = record.table("tokens")
    chosen = table.filter(compute.equal(table["sample"], params.sample)).drop_columns(["sample"])
    if chosen.num_rows == 0:
        raise InvalidInput(
            f"Run {record.id} has no text {params.sample}; texts: 0 to {record.manifest.tables['texts'] - 1}."
        )
    values = [TokenValue.model_validate(row) for row in chosen.to_pylist()]
    if params.contains:
        values = [value for value in values if params.contains.lower() in value.token.lower()]
    return TokensView(total=len(values), text=values[params.offset : params.offset + max(params.limit, 100)])


def texts(record: RunRecord, params: TextsParams) -> TextsView:
    """Texts by mean divergence."""
    moved = {row["sample"]: _unpack(row) for row in record.table("top_texts").to_pylist()}
    table = record.table("texts")
    order = np.argsort(-table[params.metric].to_numpy(), kind="stable")
    contents = table["text"].to_pylist()
    order = np.array([index for index in order if _matches(params.contains, contents[index], moved.get(index))], int)
    page = table.take(order[params.offset : params.offset + params.limit]).to_pylist()
    rows = [TextRow.model_validate({"rose": [], "fell": [], **moved.get(row["sample"], {}), **row}) for row in page]
    return TextsView(total=len(order), rows=rows)


def positions(record: RunRecord, params: PositionsParams) -> PositionsView:
    """The means at each position."""
    counts = record.array("positions.count")[: params.limit].tolist()
    means = {name: record.array(f"positions.{name}").tolist() for name in (*_DIVERGENCES, "standard_error")}
    rows = [
        PositionRow(position=index, tokens=count, **{name: values[index] for name, values in means.items()})
        for index, count in enumerate(counts)
    ]
    return PositionsView(rows=rows)


def _unpack(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "rose": json.loads(row["rose"]), "fell": json.loads(row["fell"])}


def _matches(contains: str | None, text: str, moved: dict[str, Any] | None) -> bool:
    """Whether the text or one of the moved tokens contains what was asked for, whatever the case."""
    wanted = (contains or "").lower()
    moves = [*moved["rose"], *moved["fell"]] if moved else []
    return wanted in text.lower() or any(wanted in move["token"].lower() for move in moves)


def histogram(record: RunRecord) -> dict[str, Any]:
    """Counts of tokens over the logarithm of their divergence; tokens at exactly 0 are counted in the title."""
    table = record.table("tokens", list(_DIVERGENCES))
    columns = {name: table[name].to_numpy() for name in _DIVERGENCES}
    positive = {name: np.log10(values[values > 0]) for name, values in columns.items()}
    everything = np.concatenate(list(positive.values())) if positive else np.zeros(0)
    edges = (
        np.linspace(max(everything.min(), -8.0), everything.max() + 1e-9, _BINS + 1)
        if everything.size
        else np.linspace(-8, 0, _BINS + 1)
    )
    centres = 10 ** ((edges[1:] + edges[:-1]) / 2)
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "line": {"shape": "hvh"},
            "name": _DIVERGENCES[name],
            "x": centres.tolist(),
            "y": np.histogram(logs, edges)[0].tolist(),
        }
        for name, logs in positive.items()
    ]
    zeros = int((columns["kl_finetuned_base"] == 0).sum())
    return {
        "data": data,
        "layout": {
            "title": {"text": f"Divergence per token ({table.num_rows} tokens, {zeros} exactly 0)"},
            "xaxis": {"type": "log", "title": {"text": "nats"}},
            "yaxis": {"title": {"text": "tokens"}},
        },
    }


def position_lines(record: RunRecord) -> dict[str, Any]:
    """Mean divergence at each position, with the standard error of KL(finetuned || base)."""
    count = record.array("positions.count")
    places = np.arange(len(count)).tolist()
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": label,
            "x": places,
            "y": record.array(f"positions.{name}").tolist(),
        }
        for name, label in _DIVERGENCES.items()
    ]
    data[0]["error_y"] = {"type": "data", "array": record.array("positions.standard_error").tolist(), "visible": True}
    return {
        "data": data,
        "layout": {
            "title": {"text": "Mean divergence by position"},
            "xaxis": {"title": {"text": "position"}},
            "yaxis": {"title": {"text": "nats"}},
        },
    }


VIEWS = {
    "tokens": View(
        "tokens",
        "Positions by divergence, with context and moved tokens; or every token of one text.",
        TokensParams,
        tokens,
    ),
    "texts": View(
        "texts",
        "Texts by mean divergence, with the tokens that gained and lost probability in them.",
        TextsParams,
        texts,
    ),
    "positions": View("positions", "Mean divergence at each position.", PositionsParams, positions),
}
FIGURES = (
    Figure("histogram", "Divergence per token", histogram),
    Figure("positions", "Divergence by position", position_lines),
)


class KLDivergence(CorpusMethod[KLParams, KLResult]):
    """How far the two models' next-token distributions are apart on a text corpus: KL divergence in both directions and
    Jensen-Shannon divergence, in nats, for every token and text; the texts and tokens where the models differ most,
    each with the tokens whose probability moved most.
    """

    name: ClassVar[str] = "kl"
    title: ClassVar[str] = "KL divergence"
    for_agents: ClassVar[str] = (
        "How far the two models' next-token distributions are apart on a text corpus: KL divergence in both "
        "directions and Jensen-Shannon divergence, in nats, for every token and text; the texts and tokens where "
        "the models differ most, each with the tokens whose probability moved most. It tells how much changed and "
        "where, not what was meant: the size that every calibrated level is counted from, no verdict by itself."
    )
    version: ClassVar[int] = 1
    Params: ClassVar[type[BaseModel]] = KLParams
    Result: ClassVar[type[MethodResult]] = KLResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = VIEWS
    figures: ClassVar[Sequence[Figure]] = FIGURES

    def accumulator(self, pair: LoadedPair, params: KLParams, corpus: TokenizedCorpus) -> KLAccumulator:
        from diffing_mcp.methods.kl.measure import KLAccumulator

        return KLAccumulator(pair, corpus, params.examples)

    def summarise(self, accumulator: Any, pair: LoadedPair, params: KLParams, run: RunWriter) -> KLResult:
        from diffing_mcp.methods.kl.measure import summarise

        return summarise(accumulator, pair, run)
