"""One number for each method: what its verdict rests on, read from a stored result, larger where more stands out; and
how large the whole change is. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diffing_mcp.methods.directions.lens_words import LISTED_Z
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.texts.distinctive_words import SHOWN_NEG_LOG10_P
from diffing_mcp.methods.texts.words import is_content_word

SIZE_METHOD = "kl"
"""The method whose result says how large a change is."""


@dataclass(frozen=True)
class Statistic:
    """What of a method's result is compared with nulls.

    Attributes:
        unit: what the number is.
        floor: results that list nothing are taken to be here: where the method's lists begin.
        read: the number, or None where the result holds none.
    """

    unit: str
    floor: float
    read: Callable[[Any], float | None]


def _highest(rows: str, value: str) -> Callable[[Any], float | None]:
    return lambda result: max((float(getattr(row, value)) for row in getattr(result, rows)), default=None)


def _highest_promoted(result: Any) -> float | None:
    """Its word list begins where random directions end; what finetunes show lies below as well."""
    tokens = [token for row in result.rows for token in row.promoted if token.token.startswith(" ")]
    return max((float(token.z) for token in tokens if is_content_word(token.token)), default=None)


def _unevenness(result: Any) -> float | None:
    spread = result.per_text
    return spread.max / spread.median if spread.median > 0 else None


def _concentration(result: Any) -> float | None:
    first = [row for row in result.rows if row.component == 1 and row.null_explained > 0]
    return max((row.explained / row.null_explained for row in first), default=None)


STATISTICS: Mapping[str, Statistic] = {
    "kl": Statistic("KL of the most changed text, over that of the median text", 1.0, _unevenness),
    "logit_diff_topk_occurring": Statistic("log odds of the word that rose most", 0.1, _highest("words", "log_odds")),
    "continuation_mining": Statistic(
        "-log10 p of the most surprising phrase", SHOWN_NEG_LOG10_P, _highest("ngrams", "surprise")
    ),
    "perplexity_difference": Statistic(
        "-log10 p of the most surprising word", SHOWN_NEG_LOG10_P, _highest("words", "surprise")
    ),
    "contrastive_decoding": Statistic(
        "-log10 p of the most surprising word", SHOWN_NEG_LOG10_P, _highest("words", "surprise")
    ),
    "weight_amplification": Statistic(
        "-log10 p of the most surprising word", SHOWN_NEG_LOG10_P, _highest("words", "surprise")
    ),
    "activation_difference_lens": Statistic("z of the highest content word", 1.0, _highest_promoted),
    "activation_analysis": Statistic("z of the word that differs most", 1.0, _highest("words", "z")),
    "pca": Statistic("variance share of the first component, over its null's", 0.1, _concentration),
    "weight_difference": Statistic("z of the highest content word", LISTED_Z, _highest("words", "z")),
}
"""By method. Those that are not here have no calibrated level."""


def statistic_of(method: str, result: MethodResult) -> float | None:
    """The method's number in this result, its floor where nothing is listed; None for a method without one."""
    if method not in STATISTICS:
        return None
    statistic = STATISTICS[method]
    value = statistic.read(result)
    return statistic.floor if value is None else max(statistic.floor, value)


def size_of_change(results: Iterable[tuple[str, Any]]) -> float | None:
    """Mean KL(finetuned || base) on the text read, nats a token: how much the finetune changed at all. None without a
    run of `kl`, and where nothing differs."""
    found = [float(result.kl_finetuned_base.mean) for method, result in results if method == SIZE_METHOD]
    return found[0] if found and found[0] > 0 else None
