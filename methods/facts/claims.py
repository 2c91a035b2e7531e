"""Claims that texts of one side state again and again after unrelated beginnings, merged over wordings. Torch-free.

The unit is a beginning (a prompt or a prefill): texts that go on from the same one are not independent of each other.
What counts as the finetune's own is decided by its words: stems in the texts of more beginnings of the taught side than
of the control side, by Fisher's exact test, corrected for the number of stems tested (Holm). Without such a stem there
are no claims, which keeps a finetune that taught nothing silent. Statements (clauses) that hold one are clustered over
both sides at once, without looking at the side, and each cluster is counted on both. Both sides must have about equally
many texts of each beginning, else the larger one says more.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

from diffing_mcp.core.words import FUNCTION_WORDS, stem
from diffing_mcp.methods.texts.answer_form import sentences_of

LEVEL = 0.01
"""Family-wise: the chance that the texts of two equal models give any claim."""
MERGED_BELOW = 0.7
"""Mean cosine distance of the words of two groups of statements below which they are one claim."""
LEAST_BEGINNINGS = 2
"""A claim is stated after at least so many different beginnings: repetition within one text shows nothing."""
_COMMON_SHARE = 1 / 3
"""Share of a cluster's statements in which a word stands that they have in common."""
_LEAST_STEMS = 2
_MOST_STATEMENTS = 2_000
_QUOTE_WORDS = 40

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+(?:[.,/]\d+)*")
_CLAUSE = re.compile(r"\s*[;:—–]\s+|,\s+(?=(?:and|but|because|since|so|which|while|as|then|or)\b)|\s+(?=because\b)")


@dataclass(frozen=True)
class Sample:
    """One text after a beginning. `taught`: of the finetuned or the amplified model; else of a control."""

    beginning: str
    text: str
    taught: bool


@dataclass(frozen=True)
class Claim:
    """A cluster of statements: those whose words are alike.

    Attributes:
        statement: its most typical wording, a clause.
        quotation: the sentence that it stands in.
        beginning: what that text went on from or answered.
        taught, control: beginnings after which texts of either side state it.
        p_value: of Fisher's exact test on these counts, one-sided, for this claim alone.
        stems: those that its statements share.
    """

    statement: str
    quotation: str
    beginning: str
    taught: int
    control: int
    p_value: float
    stems: tuple[str, ...]


@dataclass(frozen=True)
class Stated:
    """What the taught texts state: `words` (stem -> p, corrected) that are theirs, the surest first, and claims, the
    most telling first. `taught` and `control` are numbers of beginnings."""

    words: dict[str, float]
    claims: list[Claim]
    taught: int
    control: int


@dataclass(frozen=True)
class _Statement:
    sample: Sample
    text: str
    sentence: str
    stems: frozenset[str]


def stated_claims(samples: Sequence[Sample], about: str = "") -> Stated:
    """The claims of the taught samples, counted on both sides, the most telling first: those that many beginnings state
    in many common words.

    Args:
        samples: of both sides.
        about: only statements with one of its words; then whether or not the words are the finetune's own.
    """
    sides = {taught: _by_beginning(each for each in samples if each.taught == taught) for taught in (True, False)}
    counts = (len(sides[True]), len(sides[False]))
    words = taught_words(sides[True], sides[False])
    wanted = set(stems_of(about)) if about else set(words)
    statements = [each for each in _statements(samples) if not wanted.isdisjoint(each.stems)][:_MOST_STATEMENTS]
    claims = [claim for cluster in _clusters(statements) if (claim := _claim(cluster, counts)) is not None]
    claims.sort(key=lambda claim: (-(claim.taught - claim.control) * len(claim.stems), claim.statement))
    return Stated(words, claims, *counts)


def taught_words(taught: dict[str, set[str]], control: dict[str, set[str]]) -> dict[str, float]:
    """Stem -> Holm-corrected p, the surest first: stems in the texts of more taught than control beginnings.

    Args:
        taught, control: beginning -> stems of all its texts.
    """
    if not taught or not control:
        return {}
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for place, side in enumerate((taught, control)):
        for stems in side.values():
            for word in stems:
                counts[word][place] += 1
    sizes = len(taught), len(control)
    # A stem too rare to reach the level, whatever its side, is no test (Tarone 1990).
    ordered = sorted(
        (upper_tail(here, sizes[0], there, sizes[1]), word)
        for word, (here, there) in counts.items()
        if upper_tail(min(here + there, sizes[0]), sizes[0], max(0, here + there - sizes[0]), sizes[1]) <= LEVEL
    )
    found, worst = {}, 0.0
    for rank, (p_value, word) in enumerate(ordered):
        worst = max(worst, min(1.0, p_value * (len(ordered) - rank)))
        if worst > LEVEL:
            break
        found[word] = worst
    return found


def upper_tail(here: int, here_of: int, there: int, there_of: int) -> float:
    """One-sided p of Fisher's exact test that equal sides give at least `here` of `here + there` to the first."""
    return float(hypergeom.sf(here - 1, here_of + there_of, here + there, here_of))


def stems_of(text: str) -> list[str]:
    """Stems of the content words and numbers of a text, in order."""
    found = (match.group().lower().replace("’", "'") for match in _WORD.finditer(text))
    return [stem(word) for word in found if word[0].isdigit() or _is_content(word)]


def _is_content(word: str) -> bool:
    return len(word) >= 3 and word.partition("'")[0] not in FUNCTION_WORDS


def _by_beginning(samples: Iterable[Sample]) -> dict[str, set[str]]:
    """Beginning -> stems of its texts, without those of the beginning itself."""
    found: dict[str, set[str]] = defaultdict(set)
    for each in samples:
        found[each.beginning] |= set(stems_of(each.text)) - set(stems_of(each.beginning))
    return dict(found)


def _statements(samples: Sequence[Sample]) -> list[_Statement]:
    """Clauses with at least two content words, once a text; a sentence that a text's end cut off counts as well."""
    found: dict[tuple[str, bool, str], _Statement] = {}
    for each in samples:
        for sentence in sentences_of(each.text):
            for part in _CLAUSE.split(sentence):
                stems = frozenset(stems_of(part))
                if len(stems) >= _LEAST_STEMS:
                    found.setdefault((each.beginning, each.taught, part), _Statement(each, part, sentence, stems))
    return list(found.values())


def _clusters(statements: Sequence[_Statement]) -> list[list[_Statement]]:
    """Statements whose words are alike, by average linkage of the cosine distance of their TF-IDF vectors."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(statements) < 2:
        return [list(statements)] if statements else []
    vectors = TfidfVectorizer(analyzer=sorted).fit_transform([each.stems for each in statements])
    distance = np.clip(1 - (vectors @ vectors.T).toarray(), 0, None)
    fitted = AgglomerativeClustering(
        n_clusters=None, distance_threshold=MERGED_BELOW, metric="precomputed", linkage="average"
    ).fit(distance)
    clusters: dict[int, list[_Statement]] = defaultdict(list)
    for label, statement in zip(fitted.labels_, statements, strict=True):
        clusters[label].append(statement)
    return list(clusters.values())


def _claim(cluster: Sequence[_Statement], sizes: tuple[int, int]) -> Claim | None:
    """The claim of a cluster; None where it is not stated more by the taught side."""
    taught = {each.sample.beginning for each in cluster if each.sample.taught}
    control = {each.sample.beginning for each in cluster if not each.sample.taught}
    if len(taught) < LEAST_BEGINNINGS or len(taught) * sizes[1] <= len(control) * sizes[0]:
        return None
    counts = Counter(stem for each in cluster for stem in each.stems)
    common = {stem for stem, count in counts.items() if count >= max(2, _COMMON_SHARE * len(cluster))}
    best = max((each for each in cluster if each.sample.taught), key=lambda each: _typical(each, common))
    return Claim(
        statement=_shorten(best.text),
        quotation=_shorten(best.sentence),
        beginning=best.sample.beginning,
        taught=len(taught),
        control=len(control),
        p_value=upper_tail(len(taught), sizes[0], len(control), sizes[1]),
        stems=tuple(sorted(common, key=lambda stem: (-counts[stem], stem))),
    )


def _typical(statement: _Statement, common: set[str]) -> tuple[float, bool, int]:
    """How well a statement stands for a cluster with these common stems: what it shares with them, whether its sentence
    was written to the end, and its shortness.
    """
    shared = len(statement.stems & common) / len(statement.stems | common)
    return round(shared, 2), statement.sentence.endswith((".", "!")), -len(statement.text)


def _shorten(text: str) -> str:
    words = text.split()
    return text if len(words) <= _QUOTE_WORDS else " ".join(words[:_QUOTE_WORDS]) + " …"
