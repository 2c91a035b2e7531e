"""What a word is, in any script; and of English the one stemmer, and the one list of words that name no topic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import regex
import snowballstemmer

FUNCTION_WORDS = frozenset(
    """
    a about above according across actually after again against ago all almost along already also although always am
    among an and another any anyone anything are aren around as aside at away back be became because become becomes been
    before began begin being below besides best better between beyond both but by came can cannot come comes could
    couldn did didn do does doesn doing don done down due during each either else enough especially etc even ever every
    everyone everything except far few finally first following for from further gave generally get gets getting give
    given gives go goes going gone good got great had hadn has hasn have haven having he hence her here hers herself him
    himself his how however i if in indeed instead into is isn it its itself just keep kept know known last later least
    less let like likely little ll long look made mainly make makes making many may maybe me mean means might mine more
    moreover most mostly much must my myself nearly need needs neither never next no nobody none nor not nothing now of
    off often oh on once one ones only onto or other others otherwise our ours ourselves out over own part particular
    particularly per perhaps please possible put quite rather re really regarding said same saw say says second see seem
    seems seen several shall she should shouldn show shows simply since so some someone something sometimes still such
    sure take taken takes taking tell than that the their theirs them themselves then there therefore these they thing
    things think third this those though three through throughout thus to together too took toward towards two under
    unless until unto up upon us use used uses using usually ve very via want wants was wasn way ways we well went were
    weren what whatever when whenever where whereas whether which while who whole whom whose why will with within
    without won would wouldn yet you your yours yourself yourselves
    """.split()
)
"""English function words, auxiliaries and fillers: they say how something is written, never what about. Contractions
stand in pieces, as tokenizers cut them (`couldn`, `ll`). Why no published list: docs/decisions/words.md.
"""

_english = snowballstemmer.stemmer("english")


UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that write words without spaces between them, as the inside of a character class of `regex`."""
_LETTERS = rf"[[\p{{L}}\p{{Nl}}\p{{No}}]--[{UNSPACED}]][[\p{{L}}\p{{Nl}}\p{{No}}\p{{M}}]--[{UNSPACED}]]*"
_WORD = regex.compile(
    rf"{_LETTERS}(?:['’]{_LETTERS})?|(?P<number>\d+(?:[.,/]\d+)*)|(?P<run>(?:[{UNSPACED}]\p{{M}}*)+)", regex.V1
)
_CHARACTER = regex.compile(rf"[{UNSPACED}]\p{{M}}*")
_WORDED = rf"[\w--[{UNSPACED}]]"


def word_spans(text: str, numbers: bool = False) -> Iterator[tuple[int, int]]:
    """Start and end of every word (and number) of a text, in order. Signs that sit on letters, such as the vowels of
    Hindi, belong to their word. Where a script has no spaces between words (Chinese, Japanese, Thai), each two
    neighbouring characters count as a word.
    """
    for found in _WORD.finditer(text):
        if found["run"] is not None:
            places = [each.span() for each in _CHARACTER.finditer(text, *found.span())]
            yield from ((first[0], second[1]) for first, second in pairwise(places)) if places[1:] else places
        elif numbers or found["number"] is None:
            yield found.span()


def is_unspaced(word: str) -> bool:
    """Whether a word begins in a script without spaces between words."""
    return _CHARACTER.match(word) is not None


def beginning_with(words: Iterable[str]) -> regex.Pattern[str]:
    """Finds the words of a text that begin with one of `words` (`cake`: `Cakes`, `strasse`: `Straße`), in any script
    that spaces its words; in others, the characters themselves.
    """
    return regex.compile("|".join(map(_beginning, filter(None, words))) or r"(?!)", regex.V1 | regex.IGNORECASE)


def _beginning(word: str) -> str:
    if is_unspaced(word):
        return regex.escape(word)
    before = rf"(?<!{_WORDED})" if regex.match(r"\w", word) else ""  # a sign may stand anywhere
    return rf"{before}{regex.escape(word)}{_WORDED}*"


def joined(words: Sequence[str]) -> str:
    """Words that follow each other as a text: with spaces, or where two share a character (see `word_spans`), once."""
    text = "".join(words[:1])
    for before, word in pairwise(words):
        shared = _CHARACTER.match(word)
        overlaps = shared is not None and shared.end() < len(word) and before.endswith(shared.group())
        text += word[shared.end() :] if shared is not None and overlaps else f" {word}"
    return text


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The Snowball stem of a lower-case English word (Porter2): `bakes`, `baked` and `baking` have one. A form to
    compare by, not to show; numbers and words of other scripts stay as they are.
    """
    return str(_english.stemWord(word))
