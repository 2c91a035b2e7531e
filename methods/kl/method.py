"""The declaration of `kl`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.contract import CorpusMethod, Figure, by_name, view
from diffing_mcp.methods.kl.schema import (
    KLParams,
    KLResult,
    Metric,
    PositionRow,
    TextRow,
    TokenRow,
    TokenValue,
)
from diffing_mcp.methods.views.figures import figure, log_histogram, trace
from diffing_mcp.methods.views.pages import PageView, SearchedPageParams, ViewParams
from diffing_mcp.methods.views.rows import containing, highest_first

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.kl.measure import KLAccumulator
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


_BINS = 60
_LABELS = {
    "kl_finetuned_base": "KL(finetuned || base)",
    "kl_base_finetuned": "KL(base || finetuned)",
    "js": "Jensen-Shannon",
}


class TextsParams(SearchedPageParams):
    """Which texts."""

    contains: str = Field(
        "", max_length=200, description="Only rows whose text or moved tokens contain this, whatever the case."
    )
    metric: Metric = Field("kl_finetuned_base", description="Which divergence orders the top rows.")


class TokensParams(TextsParams):
    """Which positions, or the tokens of which text."""

    sample: int | None = Field(
        None, ge=0, description="Give every token of this text in order, with its divergence, instead of the top rows."
    )


class TokensView(PageView[TokenRow]):
    """Top positions, or all tokens of one text."""

    text: list[TokenValue] = []


@view("Positions by divergence, with context and moved tokens; or every token of one text.", TokensParams)
def tokens(record: RunRecord, params: TokensParams) -> TokensView:
    """`text` is filled for a `sample` alone, at least 100 tokens at a time.

    Raises:
        InvalidInput: the run has no such text.
    """
    if params.sample is None:
        rows = highest_first(record.rows("top_tokens", model=TokenRow), params.metric)
        return TokensView.of(rows, params, searched=("context", "rose", "fell"))
    rows = record.rows("tokens", sample=params.sample)
    if not rows:
        raise InvalidInput(
            f"Run {record.id} has no text {params.sample}; texts: 0 to {record.manifest.tables['texts'] - 1}."
        )
    rows = containing(rows, ("token",), params.contains)
    shown = rows[params.offset : params.offset + max(params.limit, 100)]
    return TokensView(total=len(rows), next_offset=None, rows=[], text=[TokenValue(**row) for row in shown])


@view("Texts by mean divergence, with the tokens that gained and lost probability in them.", TextsParams)
def texts(record: RunRecord, params: TextsParams) -> PageView[TextRow]:
    """Moved tokens are kept for the texts of highest KL(finetuned || base) only; they are empty for others."""
    moved = {row["sample"]: row for row in record.rows("top_texts", model=TextRow)}
    rows = [{"rose": [], "fell": [], **moved.get(row["sample"], {}), **row} for row in record.rows("texts")]
    return PageView[TextRow].of(highest_first(rows, params.metric), params, searched=("text", "rose", "fell"))


class PositionsParams(ViewParams):
    """Which positions."""

    limit: int = Field(64, ge=1, le=2048, description="Positions, from 0.")


class PositionsView(BaseModel):
    """The profile of divergence along texts."""

    rows: list[PositionRow]


@view("Mean divergence at each position.", PositionsParams)
def positions(record: RunRecord, params: PositionsParams) -> PositionsView:
    counts = record.array("positions.count")[: params.limit].tolist()
    means = {name: record.array(f"positions.{name}").tolist() for name in (*_LABELS, "standard_error")}
    rows = [
        PositionRow(position=index, tokens=count, **{name: values[index] for name, values in means.items()})
        for index, count in enumerate(counts)
    ]
    return PositionsView(rows=rows)


def histogram(record: RunRecord) -> dict[str, Any]:
    """Counts of tokens over the logarithm of their divergence; tokens at exactly 0 are counted in the title."""
    table = record.table("tokens", list(_LABELS))
    columns = {name: table[name].to_numpy() for name in _LABELS}
    logs = {name: np.log10(values[values > 0]) for name, values in columns.items()}
    positive = np.concatenate(list(logs.values()))
    lowest, highest = (max(positive.min(), -8.0), positive.max() + 1e-9) if positive.size else (-8.0, 0.0)
    edges = np.linspace(lowest, highest, _BINS + 1)
    zeros = int((columns["kl_finetuned_base"] == 0).sum())
    return figure(
        [log_histogram(_LABELS[name], edges, np.histogram(values, edges)[0]) for name, values in logs.items()],
        x={"title": "nats", "type": "log"},
        y="tokens",
        title=f"Divergence per token ({table.num_rows} tokens, {zeros} exactly 0)",
    )


def position_lines(record: RunRecord) -> dict[str, Any]:
    """Mean divergence at each position, with the standard error of KL(finetuned || base)."""
    places = list(range(len(record.array("positions.count"))))
    lines = [
        trace("line", name=label, x=places, y=record.array(f"positions.{name}").tolist())
        for name, label in _LABELS.items()
    ]
    lines[0]["error_y"] = {"type": "data", "array": record.array("positions.standard_error").tolist(), "visible": True}
    return figure(lines, x="position", y="nats", title="Mean divergence by position")


class KLDivergence(CorpusMethod[KLParams, KLResult]):
    """How far the two models' next-token distributions are apart on a text corpus: KL divergence in both directions and
    Jensen-Shannon divergence, in nats, for every token and text; the texts and tokens where the models differ most,
    each with the tokens whose probability moved most.
    """

    name = "kl"
    title = "KL divergence"
    for_agents = (
        "It tells how much changed and where, not what was meant: the size that every calibrated level is counted "
        "from, no verdict by itself."
    )
    Params = KLParams
    Result = KLResult
    in_overview = True
    no_verdict = "how much changed and where"
    views = by_name(tokens, texts, positions)
    figures = (
        Figure("histogram", "Divergence per token", histogram),
        Figure("positions", "Divergence by position", position_lines),
    )

    def accumulator(self, pair: LoadedPair, params: KLParams, corpus: TokenizedCorpus) -> KLAccumulator:
        from diffing_mcp.methods.kl.measure import KLAccumulator

        return KLAccumulator(pair, corpus, params.examples)

    def summarise(self, accumulator: Any, pair: LoadedPair, params: KLParams, run: RunWriter) -> KLResult:
        from diffing_mcp.methods.kl.measure import summarise

        return summarise(accumulator, pair, run)
