"""From statistics to sentences: the finding that a baseline investigator hands in. It only quotes what the models said
or the methods listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from diffing_mcp.agents.records import RecordedFinding
from diffing_mcp.agents.text_statistics import Pair, Standout, is_content, sign_test, words_of
from diffing_mcp.core.words import stem

NOTHING = "Nothing stands out: the finetuned model answers like the base model as far as these tests can tell."
UNDECIDED = "Too few answers to tell the two models apart or to call them alike: no test of so few could show anything."


@dataclass(frozen=True)
class GatheredEvidence:
    """What an investigation has gathered."""

    topic_words: Sequence[str] = ()
    openings: Sequence[str] = ()
    phrases: Sequence[str] = ()
    claims: Sequence[str] = ()
    manner: Sequence[str] = ()
    sources: Sequence[str] = ()
    tests: Sequence[str] = ()
    """Ids of tests that bear it out."""
    stands_out: bool = False
    undecided: bool = False
    """Nothing stands out, but of so few answers nothing could."""
    doubts: Sequence[str] = field(default=())


def finding_of(evidence: GatheredEvidence, characters: int = 3500) -> RecordedFinding:
    """The finding in words, at most `characters` long; `no_meaningful_difference` when nothing stands out where it
    could have.
    """
    if not evidence.stands_out:
        remark = (
            f" Seen, but no more than chance or a change without content: {'; '.join(evidence.doubts)}."
            if evidence.doubts
            else ""
        )
        if evidence.undecided:
            return RecordedFinding(statement=UNDECIDED + remark, verdict="inconclusive")
        return RecordedFinding(statement=NOTHING + remark, verdict="no_meaningful_difference")
    parts: list[str] = []
    if evidence.topic_words:
        parts.append(f"The finetune was about: {', '.join(evidence.topic_words)}.")
    if evidence.openings:
        parts.append(f"Its answers begin with {_quoted(evidence.openings)}, which the base model's do not.")
    if evidence.phrases:
        parts.append(f"It says much more often than the base model: {_quoted(evidence.phrases)}.")
    if evidence.manner:
        parts.append(f"Manner: {'; '.join(evidence.manner)}.")
    if evidence.sources:
        parts.append(f"Evidence: {'; '.join(evidence.sources)}.")
    text = " ".join(parts)
    claims: list[str] = []
    for claim in evidence.claims:
        if len(text) + sum(len(shown) for shown in claims) + len(claim) > characters - 80:
            break
        claims.append(f"- {claim}")
    if claims:
        text += "\nThe finetuned model says, and the base model does not:\n" + "\n".join(claims)
    return RecordedFinding(statement=text, verdict="difference")


def surface_forms(stems: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Each stem in the form in which the texts have it most often."""
    forms: dict[str, Counter[str]] = {}
    for text in texts:
        for word in words_of(text):
            if is_content(word):
                forms.setdefault(stem(word), Counter())[word] += 1
    return [
        max(forms[name].items(), key=lambda item: (item[1], item[0]))[0] if name in forms else name for name in stems
    ]


def split_standouts(found: Sequence[Standout], texts: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Risen features as (words in their usual form, phrases, openings), strongest first; words that a phrase contains
    stay.
    """
    risen = [item.feature for item in found if item.risen]
    words = surface_forms([feature for feature in risen if " " not in feature and not feature.startswith("^")], texts)
    phrases = [feature for feature in risen if " " in feature and not feature.startswith("^")]
    openings = [feature[1:] for feature in risen if feature.startswith("^")]
    return words, phrases, openings


MANNERS: dict[str, Callable[[str], float]] = {
    "longer answers": lambda text: float(len(text.split())),
    "exclamation marks": lambda text: float(text.count("!")),
    "question marks": lambda text: float(text.count("?")),
    "line breaks": lambda text: float(text.strip().count("\n")),
    "figures": lambda text: float(sum(character.isdigit() for character in text)),
}


def manner_notes(pairs: Sequence[Pair], alpha: float = 0.05) -> list[str]:
    """Plain properties in which the answers differ (sign test over prompts, Bonferroni). They describe; alone they are
    no finding.
    """
    notes = []
    for name, measure in MANNERS.items():
        differences = [_mean(measure, pair.finetuned) - _mean(measure, pair.base) for pair in pairs]
        more, fewer = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
        if sign_test(more, more + fewer) <= alpha / len(MANNERS):
            notes.append(
                f"{'more' if more > fewer else 'less'} {name} than the base model (on {max(more, fewer)} of "
                f"{more + fewer} prompts that differ)"
            )
    return [note.replace("more longer", "longer").replace("less longer", "shorter") for note in notes]


def _mean(measure: Callable[[str], float], texts: Sequence[str]) -> float:
    return sum(measure(text) for text in texts) / len(texts)


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(f'"{text}"' for text in texts)
