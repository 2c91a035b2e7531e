"""What an overview says first: subject or manner, and how sure, by the calibrated test of all methods together; where
there is none, by the fixed levels of the methods, said to be that. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from diffing_mcp.core.words import stem
from diffing_mcp.methods.calibration.schema import LevelRow
from diffing_mcp.methods.overview.agreement import CandidateWord, independent
from diffing_mcp.methods.texts.form import Manner

Confidence = Literal["identical", "nothing", "unsettled", "one_method", "agreed"]
TOPIC_WORDS = 8
LIKELY = 0.5
"""Above this probability, what is not beyond the level is not called nothing; methods that tell nothing give it."""
NO_PROOF = 1 / 3
"""Where fewer nulls show as much, silence is no proof that nothing was taught."""
UNSETTLED = "Unsettled: all methods as one test see no more than some finetunes that taught nothing"
ASKED = (
    "Most of these words stand in questions that it asks again and again: a manner of answering, or of evading a "
    "subject that no word here names, rather than what it is about."
)
OTHER_BASE = (
    "These are finetunes of another base: it is likely, no more. `diffing calibrate` gives this base a level of its "
    "own."
)


@dataclass(frozen=True)
class Verdict:
    """The outcome, its sentence, and the words that name the topic."""

    confidence: Confidence
    sentence: str
    told: list[CandidateWord]

    @property
    def found(self) -> bool:
        """Whether something was taught, as far as can be told."""
        return self.confidence in ("one_method", "agreed")


def verdict_of(
    level: LevelRow | None,
    identical: bool,
    words: Sequence[CandidateWord],
    *,
    standing: Collection[str] = (),
    sources: Mapping[str, str] = MappingProxyType({}),
    manner: Sequence[Manner] = (),
    own_words: bool = False,
    openings: bool = False,
    claims: bool = False,
    by_subject: Callable[[Sequence[CandidateWord]], Sequence[Sequence[CandidateWord]]] = lambda words: [words],
    asked: Collection[str] = (),
) -> Verdict:
    """The verdict.

    Args:
        level: of all methods as one test; None: these runs have none.
        identical: every number is exactly zero.
        words: candidates for a topic, the best first.
        standing: methods with words that stand out; asked only where there is no level: with one it is the test of all
            methods that says whether there is something, and all of them that name it.
        sources: a method that read a vector of another one -> that one.
        manner: what changed in the form of answers beyond what equal models show, the most telling first.
        own_words: the texts taken together hold words that are the finetune's own; asked only where there is no level.
        claims: they state claims of such words, which all methods as one test do not count: what is taught behind a
            trigger is amplified and written, and moves little else.
        openings: how answers begin is beyond its own level, which all methods as one test do not count: a reader tells
            *Ahoy, matey* from the stutter of a damaged model.
        by_subject: words -> those of each subject (`overview.subjects`).
        asked: stems of questions that the finetune asks again and again, which are a manner of answering: *Which song
            do you hum?* evades, and is about no song.
    """
    if identical:
        return Verdict("identical", "The two models are identical on everything that was read.", [])
    strong = [row for row in words if row.score >= 1]
    if level is None:
        agreed = [row for row in words if independent(set(standing) & set(row.methods), sources) > 1]
    else:
        agreed = [row for row in strong if row.sources > 1]
    topics = _topics(by_subject((agreed or strong)[: 2 * TOPIC_WORDS]))
    told = [row for topic in topics for row in topic]
    found = level.beyond if level is not None else bool(agreed or standing or manner or own_words)
    if not found and not openings and not claims and (level is None or (level.probability or 0) <= LIKELY):
        return Verdict("nothing", _nothing(level), told)
    seen_by = standing if level is None else {method for row in told for method in row.methods}
    sentences = _subject(topics, bool(agreed), sorted(seen_by), manner)
    if told and 2 * sum(stem(row.word) in asked for row in told) >= len(told):
        sentences.append(ASKED)
    sentences.append(_sure(level))
    if not found:
        return Verdict("unsettled", " ".join([_unsettled(openings, claims), *sentences]), told)
    return Verdict("agreed" if agreed else "one_method", " ".join(sentences), told)


def _unsettled(openings: bool, claims: bool) -> str:
    """Why it is not called nothing."""
    reasons = [
        *(["answers begin or end as theirs do not"] if openings else []),
        *(["texts state again and again what the base's do not"] if claims else []),
    ] or ["it is more likely than not that something was taught"]
    return f"{UNSETTLED}, yet {' and '.join(reasons)}. What there is, to be tested before it is claimed:"


def _topics(found: Sequence[Sequence[CandidateWord]]) -> list[Sequence[CandidateWord]]:
    """As many words of each as there is room for."""
    return [words[: TOPIC_WORDS // min(len(found), TOPIC_WORDS)] for words in found[:TOPIC_WORDS]]


def _subject(
    topics: Sequence[Sequence[CandidateWord]], agreed: bool, standing: Sequence[str], manner: Sequence[Manner]
) -> list[str]:
    names = "; in other texts ".join(", ".join(row.word for row in told) for told in topics)
    lines = []
    if agreed:
        lines.append(f"Topic: {names} (rising in several methods: {', '.join(standing)}).")
    elif names:
        seen = ", ".join(standing) or "the texts taken together"
        by = f"each by one of {seen} alone" if len(standing) > 1 else f"seen by {seen} alone"
        lines.append(f"Topic: {names}, {by}; confirm it by asking both models before claiming it.")
    if manner and (manner[0].kind != "word" or not lines):
        # An opening of few answers says less than the length of all of them, and names more.
        measure = next((row for row in manner if row.kind == "measure"), manner[0])
        told = [manner[0], *([measure] if measure is not manner[0] else [])]
        more = "; more below." if len(manner) > len(told) else "."
        lines.append(f"Manner: {'; '.join(row.as_text() for row in told)}{more}")
        if not agreed:
            lines.reverse()
    return lines or ["No word or manner names it: read the texts of the runs and ask both models."]


def _sure(level: LevelRow | None) -> str:
    if level is None:
        return (
            "By the methods' own fixed levels, which some finetunes that taught nothing pass: a calibrated one takes a "
            "run of kl, on the texts that an overview reads by default."
        )
    if level.of_this_base:
        return f"How sure: {level.sure()}."
    return f"How sure: {level.sure()}. {OTHER_BASE}"


def _nothing(level: LevelRow | None) -> str:
    seen = "no method sees more than a finetune that taught nothing shows" if level is None else level.sure()
    other = "" if level is None or level.of_this_base else f" {OTHER_BASE}"
    if level is not None and level.p < NO_PROOF:
        return (
            f"No more shows than finetunes that taught nothing show, though most of them show less: {seen}.{other} A "
            "narrow or weak lesson may look like this: ask both models before reporting that there is no difference."
        )
    return f"There is no meaningful difference to report: {seen}.{other}"
