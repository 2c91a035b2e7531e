"""The numbers that verdicts rest on, read from stored results, larger where more stands out: one or two of each method;
and how large the whole change is. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffing_mcp.methods.answer_openings.schema import Place
from diffing_mcp.methods.directions.lens_words import LISTED_Z
from diffing_mcp.methods.facts.facts import stated_in
from diffing_mcp.methods.overview.plan import SIZE, label_of_run, method_of, text_of_run
from diffing_mcp.methods.texts.distinctive_words import SHOWN_NEG_LOG10_P
from diffing_mcp.methods.texts.words import is_content_word

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

WORDS = "words"
"""Family of what counts words and phrases of the text that both models read."""


@dataclass(frozen=True)
class Statistic:
    """What of a method's result is compared with nulls.

    Attributes:
        unit: what the number is.
        floor: results that list nothing are taken to be here: where the method's lists begin.
        read: the number of a run and its result, or None where that holds none.
        aspect: what of the method it is, where there are several.
        family: statistics that look at the same place for the same kind of change, where all methods are one test
            (`levels.together`); `WORDS` is one for each text that is read. None: it does not count there.
    """

    unit: str
    floor: float
    read: Callable[[RunRecord, Any], float | None]
    aspect: str = ""
    family: str | None = None


def _highest(rows: str, value: str) -> Callable[[RunRecord, Any], float | None]:
    return lambda _, result: max((float(getattr(row, value)) for row in getattr(result, rows)), default=None)


def _highest_promoted(_: RunRecord, result: Any) -> float | None:
    """Its word list begins where random directions end; what finetunes show lies below as well."""
    tokens = [token for row in result.rows for token in row.promoted if token.token.startswith(" ")]
    return max((float(token.z) for token in tokens if is_content_word(token.token)), default=None)


def _unevenness(_: RunRecord, result: Any) -> float | None:
    spread = result.per_text
    return spread.max / spread.median if spread.median > 0 else None


def _concentration(_: RunRecord, result: Any) -> float | None:
    first = [row for row in result.rows if row.component == 1 and row.null_explained > 0]
    return max((row.explained / row.null_explained for row in first), default=None)


def _least_p_of_form(_: RunRecord, result: Any) -> float | None:
    """-log10 of the smallest corrected p; at most 4, as so many random swaps are tried. None without answers."""
    if result.form is None:
        return None
    return max((-math.log10(row.p_value) for row in result.form.rows if row.p_value > 0), default=None)


_FORM = Statistic(
    "-log10 p of the form that changed most", 0.3, _least_p_of_form, aspect="form", family="form of answers"
)
_WORD = Statistic(
    "-log10 p of the most surprising word", SHOWN_NEG_LOG10_P, _highest("words", "surprise"), family="amplified words"
)


_CLAIMS = Statistic(
    "claims that amplified texts state and those of the base do not, and one more",
    1.0,
    lambda record, _: 1.0 + len(stated_in([record]).claims),
    aspect="claims",
    family="claims",
)


def _openings(place: Place) -> Statistic:
    return Statistic(
        f"rise of the opening that rose most, place `{place}`",
        1.0,
        lambda _, result: float(result.highest(place)),
        aspect="" if place == "answer" else place,
    )


STATISTICS: Mapping[str, tuple[Statistic, ...]] = {
    "kl": (Statistic("KL of the most changed text, over that of the median text", 1.0, _unevenness),),
    "logit_diff_topk_occurring": (
        Statistic("log odds of the word that rose most", 0.1, _highest("words", "log_odds"), family=WORDS),
    ),
    "continuation_mining": (
        Statistic(
            "-log10 p of the most surprising phrase", SHOWN_NEG_LOG10_P, _highest("ngrams", "surprise"), family=WORDS
        ),
    ),
    "answer_openings": (_openings("answer"), _openings("sentence")),
    "perplexity_difference": (_WORD, _FORM),
    "contrastive_decoding": (_WORD, _FORM, _CLAIMS),
    "weight_amplification": (_WORD,),
    "activation_difference_lens": (Statistic("z of the highest content word", 1.0, _highest_promoted),),
    "activation_analysis": (Statistic("z of the word that differs most", 1.0, _highest("words", "z")),),
    "pca": (Statistic("variance share of the first component, over its null's", 0.1, _concentration),),
    "weight_difference": (Statistic("z of the highest content word", LISTED_Z, _highest("words", "z")),),
}
"""By method. Those that are not here have no calibrated level."""
_UNKNOWN = Statistic("of another version of this package", 0.0, lambda *_: None)
"""What a calibration may hold that a newer version made: it decides nothing."""


def statistics_of(record: RunRecord, among: Collection[str] | None = None) -> dict[str, float]:
    """Name -> number of all statistics of a run, or of those `among` some; its floor where nothing is listed."""
    label, result = label_of_run(record.manifest), record.result()
    found = {}
    for statistic in STATISTICS.get(record.manifest.method, ()):
        name = named(label, statistic)
        if among is None or name in among:
            value = statistic.read(record, result)
            found[name] = statistic.floor if value is None else max(statistic.floor, value)
    return found


def names_of(label: str) -> set[str]:
    """Names of all statistics of a method on its text."""
    return {named(label, statistic) for statistic in STATISTICS.get(method_of(label), ())}


def named(label: str, statistic: Statistic) -> str:
    """The statistic's name: `contrastive_decoding`, `contrastive_decoding: form`."""
    return f"{label}: {statistic.aspect}" if statistic.aspect else label


def label_of(name: str) -> str:
    """The method, and its text where that is not the default, that a statistic is of."""
    return name.partition(": ")[0]


def unit_of(name: str) -> str:
    """What a statistic's number is."""
    return _behind(name).unit


def family_of(name: str) -> str | None:
    """The family in which it counts where all methods are one test; None: it does not."""
    family = _behind(name).family
    if family != WORDS:
        return family
    return f"{WORDS} on {label_of(name).partition(' on ')[2] or 'texts'}"


def families_of(names: Iterable[str]) -> list[str]:
    """The family of each statistic where several are taken together; one that counts nowhere is its own."""
    return [family_of(name) or name for name in names]


def _behind(name: str) -> Statistic:
    label, _, aspect = name.partition(": ")
    return next((each for each in STATISTICS.get(method_of(label), ()) if each.aspect == aspect), _UNKNOWN)


def size_of_change(records: Iterable[RunRecord]) -> float | None:
    """Mean KL(finetuned || base), nats a token, of the first run on the text that comes first by name, the default one
    before others: how much the finetune changed at all, in four digits. None without a run of `kl`, and where nothing
    differs.
    """
    sized = sorted(
        (record for record in records if record.manifest.method == SIZE), key=lambda each: text_of_run(each.manifest)
    )
    results: Iterator[Any] = (record.result() for record in sized)
    found = [float(result.kl_finetuned_base.mean) for result in results]
    return float(f"{found[0]:.4g}") if found and found[0] > 0 else None
