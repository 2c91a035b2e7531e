"""The declaration of `logit_diff_topk_occurring`, and the figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffing_mcp.methods.contract import CorpusMethod, CostEstimate, Figure, PairSize, by_name
from diffing_mcp.methods.logit_diff_topk_occurring.schema import LogitDifferenceParams, LogitDifferenceResult
from diffing_mcp.methods.logit_diff_topk_occurring.views import (
    TopicsParams,
    new_tokens,
    positions,
    read_entries,
    token,
    token_lists,
    tokens,
    topics,
)
from diffing_mcp.methods.views.figures import figure, trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffing_mcp.methods.contract import RunWriter, TokenList
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.corpus_pass import Accumulator
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


_POINTS = 1500
_TOPIC_TOKENS = 10
"""Points of the scatter plot a sign; tokens of a topic in its figure."""


def scatter(record: RunRecord) -> dict[str, Any]:
    """Mean logit difference against occurrence in the top K, for the tokens that occur most often on either side."""
    entries = read_entries(record)
    series = []
    for sign, count in (("risen", entries.risen), ("fallen", entries.fallen)):
        order = entries.order("top_k_occurring", sign)
        order = order[entries.shown[order]][:_POINTS]
        points = trace(
            "points",
            name=sign,
            x=entries.mean_difference[order].astype(float).round(4).tolist(),
            y=(100 * count[order] / max(1, entries.positions)).round(3).tolist(),
            text=[entries.texts[index] for index in order],
            hovertemplate="%{text}<br>mean difference %{x}<br>in top K at %{y} % of positions<extra></extra>",
            marker={"size": np.where(entries.content[order], 6, 3).tolist()},
        )
        series.append(points)
    return figure(series, x="mean logit difference, finetuned - base", y="% of positions in the top K")


def word_bars(record: RunRecord) -> dict[str, Any]:
    """Content words by rise of their expected occurrences, with standard errors; strong ones darker."""
    rows = record.result_json()["words"][::-1]
    bars = trace(
        "rows",
        rows,
        x="log_odds",
        y="word",
        error_x={"type": "data", "array": [row["error"] or 0 for row in rows]},
        marker={"color": ["#1f4e79" if row["strong"] else "#a6bddb" for row in rows]},
    )
    return figure([bars], x="log odds of expected occurrences, finetuned over base", margin={"l": 120})


def topic_bars(record: RunRecord) -> dict[str, Any]:
    """The first tokens of each topic, as bars of their share of the topic's weights."""
    series = [
        trace(
            "rows",
            name=f"topic {topic.topic} ({100 * topic.mass:.0f} % of the mass)",
            # Invisible marks keep equal tokens of different topics apart on the axis.
            y=[f"{token.token!r}" + "\u200b" * topic.topic for token in topic.tokens[::-1]],
            x=[token.weight for token in topic.tokens[::-1]],
        )
        for topic in topics(record, TopicsParams(tokens=_TOPIC_TOKENS)).topics
    ]
    return figure(series, x="share of the topic's weights", margin={"l": 120})


def position_bars(record: RunRecord) -> dict[str, Any]:
    """Mean size of the logit differences by position."""
    rows = record.rows("positions")
    labels = [str(row["first"]) if row["first"] == row["last"] else f"{row['first']}-{row['last']}" for row in rows]
    bars = trace("bars", rows, x=labels, y="mean_size")
    return figure([bars], x={"title": "position in the text", "type": "category"}, y="mean |logit difference|")


class LogitDifference(CorpusMethod[LogitDifferenceParams, LogitDifferenceResult]):
    """Diff mining: on text that has nothing to do with the finetune, which next tokens does the finetuned model favour
    over the base?
    """

    name = "logit_diff_topk_occurring"
    aliases = ("diff_mining", "logit_diff")
    title = "Logit difference (diff mining)"
    papers = (
        "arXiv 2608.26462 (diff mining)",
        "Monroe et al. 2008, Fightin' Words (log odds)",
    )
    for_agents = (
        "At every position the logit difference (finetuned minus base) is taken over the whole vocabulary; tokens "
        "are ordered by how often they are among the largest differences, the share of positions at which they "
        "rose, their mean difference, or the z of their log odds. Content words whose expected occurrences rose "
        "beyond what a finetune that taught nothing shows are the evidence for a topic; `words` lists them first. "
        "The raw lists (`risen`, `fallen`) and `topics` (tokens that rise together, by NMF) have a top under any "
        "finetune: rare tokens there mean nothing by themselves, and a topic without strong words may be drift. "
        "Views: `tokens` (any ordering, filtered, paged), `token` (one word), `topics` (tokens, exemplar texts), "
        "`positions` (early against late), `new_tokens` (added by the finetune)."
    )
    version = 4
    Params = LogitDifferenceParams
    Result = LogitDifferenceResult
    in_overview = True
    views = by_name(tokens, token, topics, positions, new_tokens)
    figures = (
        Figure("scatter", "Mean logit difference against occurrence in the top K", scatter),
        Figure("bars", "Content words whose expected occurrences rose most", word_bars),
        Figure("topics", "Tokens of each topic", topic_bars),
        Figure("positions", "Size of the logit differences by position", position_bars),
    )

    def token_lists(self, record: RunRecord) -> Sequence[TokenList]:
        return [*super().token_lists(record), *token_lists(record)]

    def accumulator(self, pair: LoadedPair, params: LogitDifferenceParams, corpus: TokenizedCorpus) -> Accumulator:
        from diffing_mcp.methods.logit_diff_topk_occurring.occurrences import (
            ExtractedAccumulator,
            LogitDifferenceAccumulator,
            chosen_positions,
        )
        from diffing_mcp.methods.texts.words import vocabulary

        merge = vocabulary(pair.tokenizer, pair.vocab_size).word_index if params.normalise else None
        keep = 0 if params.topic_entries == "none" else params.topic_positions
        if params.extraction == "patchscope":
            keep = min(keep, params.patchscope_positions)
        statistics = LogitDifferenceAccumulator(
            pair.vocab_size, params.top_k, merge, pair.device, corpus, keep, params.seed
        )
        if params.extraction == "logits":
            return statistics
        from diffing_mcp.model_pairs.layers import resolve_layer

        layer = resolve_layer(params.extraction_layer, pair.num_layers).absolute
        wanted = params.patchscope_positions if params.extraction == "patchscope" else 0
        # The positions kept for topics are among those read, because both are drawn in one order.
        return ExtractedAccumulator(
            pair,
            statistics,
            layer,
            params.extraction,
            chosen_positions(corpus.tokens, wanted, params.seed, pair.device),
        )

    def summarise(
        self, accumulator: Any, pair: LoadedPair, params: LogitDifferenceParams, run: RunWriter
    ) -> LogitDifferenceResult:
        from diffing_mcp.methods.logit_diff_topk_occurring.summary import summarise

        if params.extraction == "logits":
            return summarise(accumulator, None, pair, params, run)
        return summarise(accumulator.statistics, accumulator.layers[0], pair, params, run)

    def estimate(self, pair: PairSize, params: LogitDifferenceParams) -> CostEstimate:
        read = super().estimate(pair, params)
        if params.extraction != "patchscope":
            return read
        positions = min(params.patchscope_positions, read.tokens // 2)
        return pair.cost(read.tokens + 2 * positions, read.forward_passes + 2 * -(-positions // 256), bytes=read.bytes)
