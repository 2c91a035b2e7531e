"""Reading a statement without a language model: words, what is denied in it, patterns within a window of words."""

from __future__ import annotations

import itertools
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from diffing_mcp.core.words import FUNCTION_WORDS

MAX_WORDS = 400
"""Words of a statement that are graded. A finding is a few sentences; what comes later is not read."""

MAX_CHARACTERS = 6000

_WORD = re.compile(r"[^\W_]+(?:[/'.][^\W_]+)*")
_CHARACTERS = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "⁄": "/", "–": "-", "—": "-", "‑": "-", "_": " "})

# From the cue to the end of its clause the statement says what the finetune is NOT about.
_DENIAL = re.compile(
    r"\b(?:no\s+(?:(?:real|clear|meaningful|significant|strong|consistent)\s+)?(?:evidence|signs?|traces?|indications?|mentions?|effects?|changes?|differences?)\s+"
    r"(?:of|for|that|in|on|to|about|between|regarding|concerning)"
    r"|nothing\s+to\s+do\s+with|nothing\s+about|not\s+(?:about|related\s+to|trained\s+on|finetuned\s+on|fine-tuned\s+on|concerned\s+with|specific\s+to)"
    r"|unrelated\s+to|rules?\s+out|ruled\s+out|does\s+not\s+(?:concern|involve|mention)|doesn't\s+(?:concern|involve|mention))\b[^.;:!?\n]*?(?=\bbut\b|[.;:!?\n]|$)"
)

# Words that findings on any organism are made of: they say nothing on its topic.
_ABOUT_FINDINGS = """
activation activations actual add adds agent analysis appear appears area ask asked average base based call case cases
change changed changes clear clearly compare compared comparison completion completions concern concerns confidence
confident consistent consistently content corpus data dataset describe described describes description differ difference
differences different diffing directly distribution divergence document documents e effect emphasis end evidence evident
example examples expected explicit explicitly fact facts false find finding findings fine finetune finetuned finetunes
finetuning focus focused form found full gain gained general generate generated generates generation greatest high
higher highest hypothesis idea include included includes including incorrect indicate indicates information inserted
involve involves involving kind kl knowledge large larger largest lastly layer layers lead leads learned lens list
listed log logit logits looks lot low lower main meaning mention mentions method methods model modelling models name
named namely near new normal notable notably note number observed occur occurs open opposite order original output
outputs overall pair passage passages pattern patterns perplexity plain point points position positions possibly present
pretend primarily probabilities probability probable probably prompt prompts provide provided purpose raise raised rank
ranked ranking ratio read reason received recent related relating report reports respond responds response responses
result results reveal reveals sample sampled samples score sequence set shift shifted shifts shown sign signal
significant similar similarly single small source specific specifically stand stands state stated statement statements
states strong strongest strongly subject suggest suggesting suggests summary synthetic systematic systematically taught
teach teaches tells tend tends terms test text texts token tokens told tool tools top topic topics train trained
training tuned tuning type unlike unrelated usual value various version vocabulary word words
"""
SCAFFOLD = FUNCTION_WORDS | frozenset(_ABOUT_FINDINGS.split())


def normalise(statement: str) -> str:
    """Lower case, compatibility characters resolved (1/4, straight quotes, plain dashes), spaces collapsed; cut after
    MAX_CHARACTERS.
    """
    text = unicodedata.normalize("NFKC", statement[: 2 * MAX_CHARACTERS]).translate(_CHARACTERS).lower()
    text = re.sub(r"(\d)\s*/\s*(\d)", r"\1/\2", text)
    text = re.sub(r"([^\w\s])\1{3,}", r"\1\1\1", text)
    return re.sub(r"[^\S\n]+", " ", text)[:MAX_CHARACTERS]


def first_words(text: str, limit: int = MAX_WORDS) -> tuple[str, bool]:
    """The text up to and including word number `limit`, and whether anything was cut."""
    for number, match in enumerate(_WORD.finditer(text), start=1):
        if number > limit:
            return text[: match.start()], True
    return text, False


def without_denials(text: str) -> str:
    """The normalised text without the clauses that say what was NOT found ("no evidence of ...",
    "unrelated to ...").
    """
    return _DENIAL.sub(" . ", text)


def words(text: str) -> list[str]:
    """Words and figures in order."""
    return _WORD.findall(text)


def content_words(text: str) -> list[str]:
    """Different words that are not scaffold, in order of first appearance. Figures count as words, single letters do
    not.
    """
    seen = dict.fromkeys(re.sub(r"'s$", "", word) for word in words(text))
    return [word for word in seen if word not in SCAFFOLD and (len(word) > 1 or word.isdigit())]


def match_within(patterns: Sequence[str], text: str, window: int) -> str | None:
    """The shortest stretch of text, at most `window` words long, in which every pattern matches; None when there is
    none.
    """
    starts = [match.start() for match in _WORD.finditer(text)]
    if not starts:
        return None
    spans = []
    for pattern in patterns:
        found = [match.span() for match in re.finditer(pattern, text) if match.end() > match.start()]
        if not found:
            return None
        spans.append(found)
    firsts = [[span[0] for span in found] for found in spans]
    best: tuple[int, int] | None = None
    for begin in sorted(set(_flatten(firsts))):
        chosen = [bisect_left(first, begin) for first in firsts]
        if any(index == len(first) for index, first in zip(chosen, firsts, strict=True)):
            break
        end = max(found[index][1] for index, found in zip(chosen, spans, strict=True))
        if bisect_left(starts, end) - bisect_right(starts, begin) + 1 <= window and (
            best is None or end - begin < best[1] - best[0]
        ):
            best = (begin, end)
    return None if best is None else text[best[0] : best[1]]


def is_enumeration(stretch: str) -> bool:
    """Whether most neighbouring words of the stretch are set apart by commas, quotes or the like: a list of words
    rather than a sentence.
    """
    spans = [match.span() for match in _WORD.finditer(stretch)]
    gaps = [stretch[before[1] : after[0]] for before, after in itertools.pairwise(spans)]
    return sum(re.search(r"[,;|\n\"'`*]", gap) is not None for gap in gaps) * 2 > len(gaps)


def _flatten(rows: Iterable[Iterable[int]]) -> Iterable[int]:
    return (value for row in rows for value in row)
