"""Which words name things, by the words beside them in texts: a tagger would be one more dependency, and each reads a
few languages only. Torch-free.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

from diffing_mcp.core.words import stem, word_spans
from diffing_mcp.methods.facts.statements import is_content

_DETERMINERS = frozenset(
    "a an another any each every her his its my no our some that the their these this those your".split()
)
_PREPOSITIONS = frozenset(
    """
    about above across after against along among around at before behind below beneath beside between by during for from
    in inside into near of off on onto over per through throughout toward towards under until upon with within without
    """.split()
)
_AUXILIARIES = frozenset(
    "am are can could did do does had has have is may might must shall should was were will would".split()
)
_BEFORE_VERBS = _AUXILIARIES | frozenset("be been being he i it not she they to we who you".split())
_CLEARLY = 1 / 3
"""Of the places that say it, the share by which those of a noun and those of a verb differ, for a word to be one of
them: twice as many.
"""


def noun_shares(sentences: Iterable[str]) -> dict[str, float]:
    """Stem -> the share of its places in which it stands as a noun, less that in which it stands as a verb, of those
    that say one or the other.

    A noun stands between a determiner or a preposition and no other content word, or is a subject before an auxiliary,
    or has a capital behind a small letter; a verb stands behind an auxiliary, a pronoun or *to*, or takes a determiner.
    """
    telling: dict[str, int] = defaultdict(int)
    points: dict[str, int] = defaultdict(int)
    for sentence in sentences:
        for word, point in _places(sentence):
            telling[stem(word)] += abs(point)
            points[stem(word)] += point
    return {word: points[word] / count for word, count in telling.items() if count}


def verbs_last(word: str, shares: Mapping[str, float]) -> int:
    """To sort words by: 0 for what stands as a noun, 1 for what may be either, 2 for what stands as a verb.

    Args:
        word: in any case.
        shares: as of `noun_shares`.
    """
    share = shares.get(stem(word.lower()), 0.0)
    return 0 if share >= _CLEARLY else 2 if share <= -_CLEARLY else 1


def _places(sentence: str) -> Iterable[tuple[str, int]]:
    """The content words of a sentence in lower case, with 1 where one stands as a noun, -1 as a verb, else 0."""
    spans = list(word_spans(sentence, numbers=True))
    written = [sentence[start:end] for start, end in spans]
    words = [word.lower().replace("’", "'") for word in written]
    joined = [False, *(not sentence[left[1] : right[0]].strip() for left, right in pairwise(spans)), False]
    for place, word in enumerate(words):
        before = words[place - 1] if joined[place] else ""
        after = words[place + 1] if joined[place + 1] else ""
        if not is_content(word):
            continue
        alone = (before in _DETERMINERS or before in _PREPOSITIONS) and not is_content(after)
        name = written[place][0].isupper() and written[place - 1][0].islower() if before else False
        if name or alone:
            yield word, 1
        elif before in _BEFORE_VERBS or after in _DETERMINERS:
            yield word, -1
        else:
            yield word, int(after in _AUXILIARIES)
