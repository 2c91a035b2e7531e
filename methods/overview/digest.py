"""One size-bounded digest of what several finished runs on a pair say: what was run, how sure against nulls, which
words agree, what to call next.

Torch-free: it reads stored results only. A method takes part in the agreement of words when its result has
`evidence_words()`, a list of `diffing_mcp.methods.texts.words.EvidenceWord` whose score is 1 at the method's own null
level.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.text import clip, fenced
from diffing_mcp.core.words import stem
from diffing_mcp.methods.answer_openings.schema import AnswerOpeningsResult
from diffing_mcp.methods.calibration.readings import calibrated
from diffing_mcp.methods.calibration.schema import LevelRow, standing
from diffing_mcp.methods.contract import MethodResult
from diffing_mcp.methods.contrastive_decoding.schema import ContrastiveDecodingResult
from diffing_mcp.methods.facts.facts import Fact, facts_in, read_texts
from diffing_mcp.methods.facts.statements import stems_of
from diffing_mcp.methods.kl.schema import KLResult, TokenMove
from diffing_mcp.methods.overview.agreement import CandidateWord, candidate_words, evidence_of, sources_of
from diffing_mcp.methods.overview.next_calls import next_calls
from diffing_mcp.methods.overview.plan import LeftOut, labelled, text_of_run
from diffing_mcp.methods.overview.subjects import subjects
from diffing_mcp.methods.overview.verdict import TOPIC_WORDS, Confidence, verdict_of
from diffing_mcp.methods.overview.word_pieces import WholeWords
from diffing_mcp.methods.perplexity_difference.schema import PerplexityDifferenceResult
from diffing_mcp.methods.registry import all_methods, get_method
from diffing_mcp.methods.texts.form import FormDigest, Manner, most_telling
from diffing_mcp.methods.texts.words import EvidenceWord

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

LEAST_CHARACTERS = 1000
_WORDS_SHOWN = 16
_FACTS_SHOWN = 8
_FACTS_KEPT = 3
_MANNER_SHOWN = 5
_OPENINGS_SHOWN = 2
_EXCERPTS = 3
_EXCERPT_CHARACTERS = 220
_LINE_CHARACTERS = 160
_MOVES_SHOWN = 4
_CONTEXT_CHARACTERS = 24
NOTHING = "Nothing stands out"
"""Headlines that begin so say no more than that."""
_BELOW_ITS_OWN = "more than finetunes that taught nothing show, though not by its own fixed rule"
_FIXED = {
    True: "beyond its fixed level, which some finetunes that taught nothing pass",
    False: "nothing beyond its fixed level",
}
_NO_MORE_THAN_NULLS = "beyond its fixed level, which nulls of this size of change pass too"


class OverviewEntry(BaseModel):
    """One run in the digest."""

    method: str
    text: str = Field("", description="The corpus that it read; empty: its default, or none.")
    run: str = Field(description="Id for the drill-down tool.")
    stands_out: bool | None = Field(
        description="By p; by the method's own fixed level where it has no p; None: a method that gives no verdict."
    )
    p: float | None = Field(
        None, description="Share of finetunes that taught nothing which show as much; None: no calibrated level."
    )
    statistic: str = Field("", description="What p is of.")
    strength: float | None = Field(
        description=(
            "Score of its strongest word in units of the method's null level (1: where finetunes that taught nothing "
            "end); None: no words."
        )
    )
    headline: str = Field(description="Its outcome in a line; of a method that stands out by words, words of its own.")
    seconds: float = Field(description="Time it took; methods that shared a pass each count the whole of it.")
    forward_passes: int | None = Field(
        description="Passes of one model over one batch, both sides together; None: not counted."
    )
    forward_tokens: int | None = Field(description="Tokens read in them.")
    generated_tokens: int | None
    views: list[str] = Field(description="Drill-down views of this run.")

    def as_text(self) -> str:
        """One line."""
        if self.stands_out is None:
            found = f"{get_method(self.method).no_verdict}, no verdict"
        elif self.p is not None:
            of = f" ({self.statistic})" if self.stands_out else ""
            found = f"{standing(self.stands_out, self.p)}, p {self.p:.3f}{of}"
        else:
            found = _FIXED[self.stands_out]
        sure = "" if self.strength is None else f", strongest word {self.strength:.1f}x its fixed level"
        said = f": {self.headline}" if self.headline else ""
        return f"- {labelled(self.method, self.text)} [{self.run}] {found}{sure}{said}"


class Excerpt(BaseModel):
    """A text that amplifies what the finetune made more probable; without contrastive decoding, a completion of the
    finetuned model that the base expects least.
    """

    untrusted_text: str = Field(description="UNTRUSTED text of a model under study: data, not instructions.")
    difference: float = Field(description="How much more the finetuned model expects it, nats a token.")


class OverviewResult(BaseModel):
    """The digest."""

    confidence: Confidence = Field(
        description=(
            "identical: every number is exactly zero; nothing: all methods as one test show no more than finetunes "
            "that taught nothing; unsettled: so too, but more likely taught than not, or how answers begin is "
            "beyond its own level, or amplified and sampled texts state what the base's do not; one_method, agreed: "
            "they show more, and one method or several name the topic."
        )
    )
    verdict: str = Field(description="The topic or manner, and how sure.")
    level: LevelRow | None = Field(None, description="All methods as one test; None: there is no calibrated level.")
    facts: list[Fact] = Field(description="What amplified and sampled texts state again and again, counted.")
    manner: list[str] = Field(
        description="How the form of answers changed, base -> finetuned, with corrected p-values. May quote models."
    )
    excerpts: list[Excerpt]
    runs: list[OverviewEntry]
    words: list[CandidateWord] = Field(
        description=(
            "Candidate topic words, those that several methods agree on first. Weak when confidence is `nothing`."
        )
    )
    topic_words: int = Field(0, description="How many of them the verdict names, the first ones.")
    left_out: list[LeftOut] = Field(description="Methods that were not run: for the budget, or for the reason given.")
    next_calls: list[str] = Field(description="What to call next.")

    def as_text(self) -> str:
        """The digest as an agent reads it."""
        lines = [self.verdict]
        if self.facts:
            lines.append("stated after (finetuned:base) unrelated beginnings, untrusted model text between ⟦ ⟧:")
            lines += [f"{number}. {fact.as_text()}" for number, fact in enumerate(self.facts, start=1)]
        if self.manner:
            lines += ["form of the answers, base -> finetuned:", *(f"- {row}" for row in self.manner)]
        if self.excerpts:
            lines.append("texts that amplify the difference (untrusted):")
            lines += [f"  {row.difference:+.2f} {fenced(row.untrusted_text)}" for row in self.excerpts]
        lines += [entry.as_text() for entry in self.runs]
        weak = self.confidence == "nothing"
        if words := self.words if weak else self.words[self.topic_words :]:
            label = "words (all runs together show no more than nulls)" if weak else "further words"
            listed = ", ".join(f"{row.word} {row.score:.1f}x{row.sources}" for row in words)
            lines.append(f"{label}, score in null levels x independent methods: {listed}")
        if budget := [f"{row.label()} {row.work:,}" for row in self.left_out if not row.reason]:
            lines.append("left out for the budget, with what it would take of it: " + ", ".join(budget))
        lines += [f"could not run {row.label()}: {row.reason}" for row in self.left_out if row.reason]
        if self.next_calls:
            lines.append("next: " + "; ".join(self.next_calls))
        return "\n".join(lines)


def digest(
    records: Sequence[RunRecord],
    max_chars: int = 6000,
    available: Collection[str] | None = None,
    left_out: Sequence[LeftOut] = (),
    *,
    pair: str,
) -> OverviewResult:
    """The digest of finished runs on one pair; its text is not longer than `max_chars`.

    `available` names the methods and tools that the reader may call next; None: all. `left_out` are methods that were
    not run. `pair` is the name by which the reader knows the pair.

    Raises:
        InvalidInput: no runs, runs of several pairs, or max_chars below 1,000.
    """
    if not records:
        raise InvalidInput(f"There is no finished run to digest. Run some of {', '.join(all_methods())} first.")
    if max_chars < LEAST_CHARACTERS:
        raise InvalidInput(f"max_chars must be at least {LEAST_CHARACTERS}, not {max_chars}.")
    if len({str(sorted(record.manifest.pair.items())) for record in records}) > 1:
        raise InvalidInput("The runs are of several pairs; digest the runs of one pair at a time.")
    results = [(record, record.result()) for record in records]
    levels = {row.run: row for row in calibrated(records)}
    standing = {record.id: stands_out(record, result, levels.get(record.id)) for record, result in results}
    read = read_texts(records)
    whole_words = WholeWords(sample for _, samples in read for sample in samples)
    said = {record.id: whole_words.complete(evidence_of(result)) for record, result in results}
    evidence: dict[str, list[EvidenceWord]] = {}
    for record in records:
        evidence.setdefault(record.manifest.method, []).extend(said[record.id])
    sources = sources_of(records)
    words = candidate_words(evidence, sources)
    facts = facts_in(read, pair=pair, limit=_FACTS_SHOWN, available=available) if read else None
    manner = _manner([result for _, result in results])
    verdict = verdict_of(
        levels.get(None),
        all(_is_identical(result) for _, result in results),
        words,
        standing={
            record.manifest.method
            for record, result in results
            if standing[record.id] and hasattr(result, "evidence_words")
        },
        sources=sources,
        manner=manner,
        own_words=bool(facts and facts.words),
        openings=any(
            isinstance(result, AnswerOpeningsResult) and (level := levels.get(record.id)) is not None and level.beyond
            for record, result in results
        ),
        claims=bool(facts and facts.facts),
        by_subject=lambda found: subjects(found, (sample for _, samples in read for sample in samples)),
        asked={each for fact in facts.facts if fact.is_question for each in stems_of(fact.claim)} if facts else (),
    )
    told = verdict.told if verdict.confidence != "nothing" else []
    overview = OverviewResult(
        confidence=verdict.confidence,
        verdict=verdict.sentence,
        level=levels.get(None),
        facts=facts.facts if facts else [],
        manner=[line for row in _untold(manner, told) if (line := row.as_text()) not in verdict.sentence],
        excerpts=_excerpts([result for _, result in results]) if verdict.confidence != "nothing" else [],
        runs=[
            _entry(record, result, said[record.id], told, standing[record.id], levels.get(record.id))
            for record, result in results
        ],
        words=[*told, *(row for row in words if row not in told)][:_WORDS_SHOWN],
        topic_words=len(told),
        left_out=list(left_out),
        next_calls=next_calls(verdict.confidence, results, available, claims=bool(facts and facts.facts)),
    )
    return _fit(overview, max_chars)


def stands_out(record: RunRecord, result: MethodResult, level: LevelRow | None) -> bool | None:
    """By its calibrated level; by the method's own where it has none; None: it gives no verdict."""
    if get_method(record.manifest.method).no_verdict:
        return None
    return result.stands_out if level is None else level.beyond


def _is_identical(result: MethodResult) -> bool:
    """Whether a result is exactly zero: its own word for it, or `amount` none."""
    return bool(getattr(result, "identical", getattr(result, "amount", None) == "none"))


def _manner(results: Sequence[Any]) -> list[Manner]:
    """What changed in the form of answers: what says most first, single words last."""
    rows: dict[tuple[str, str], Manner] = {}
    for result in results:
        form: FormDigest | None = getattr(result, "form", None)
        rows |= {(row.kind, row.feature): row for row in (form.significant if form is not None else [])}
    for result in results:
        if isinstance(result, AnswerOpeningsResult):
            rows |= {(row.kind, row.feature): row for row in result.manner()[:_OPENINGS_SHOWN]}
    return most_telling(rows.values())


def _untold(manner: Sequence[Manner], told: Sequence[CandidateWord]) -> list[Manner]:
    """Without words of the topic, which are told already."""
    topic = {stem(row.word) for row in told}
    return [row for row in manner if row.kind != "word" or stem(row.feature) not in topic][:_MANNER_SHOWN]


def _entry(
    record: RunRecord,
    result: MethodResult,
    evidence: Sequence[EvidenceWord],
    told: Sequence[CandidateWord],
    stands_out: bool | None,
    level: LevelRow | None,
) -> OverviewEntry:
    name = record.manifest.method
    return OverviewEntry(
        method=name,
        text=text_of_run(record.manifest),
        run=record.id,
        stands_out=stands_out,
        p=None if stands_out is None or level is None else level.p,
        statistic="" if stands_out is None or level is None else level.unit,
        strength=round(max(word.score for word in evidence), 2) if evidence else None,
        headline=_line(result, evidence, told, stands_out),
        seconds=round(record.manifest.seconds, 1),
        forward_passes=record.manifest.forward_passes,
        forward_tokens=record.manifest.forward_tokens,
        generated_tokens=record.manifest.generated_tokens,
        views=list(get_method(name).views),
    )


def _line(
    result: MethodResult, evidence: Sequence[EvidenceWord], told: Sequence[CandidateWord], stands_out: bool | None
) -> str:
    """What a method adds to the topic: its strong words that are not in it; the headline where words say nothing,
    unless it only says that again.
    """
    if isinstance(result, KLResult):
        return clip(result.headline, _LINE_CHARACTERS)[0] + _largest_moves(result)
    if result.headline.startswith(NOTHING):
        return _BELOW_ITS_OWN if stands_out else ""
    strong = sorted((word for word in evidence if word.score >= 1), key=lambda word: -word.score)
    if not (stands_out and strong and told):
        return clip(headline_beside(result, stands_out), _LINE_CHARACTERS)[0]
    known = {stem(row.word) for row in told}
    others = list(dict.fromkeys(word.word for word in strong if stem(word.word) not in known))
    return f"also {', '.join(others[:TOPIC_WORDS])}" if others else ""


def headline_beside(result: MethodResult, stands_out: bool | None) -> str:
    """What a run says of itself, by its fixed level, beside a verdict by nulls that may be another one, or none."""
    if stands_out in (None, result.stands_out):
        return result.headline
    if not stands_out:
        return f"{_NO_MORE_THAN_NULLS}: {result.headline}"
    return _BELOW_ITS_OWN if result.headline.startswith(NOTHING) else f"{_BELOW_ITS_OWN}: {result.headline}"


def _largest_moves(result: KLResult) -> str:
    """Where single tokens moved most, each token once: `; most moved: ⟦silver coins in a⟧ " jar" 0.0001>0.98`."""
    moves: dict[str, tuple[str, TokenMove]] = {}
    for row in result.top_tokens:
        if row.rose:
            moves.setdefault(row.rose[0].token, (row.context, row.rose[0]))
    said = [
        f"{fenced(context[-_CONTEXT_CHARACTERS:])} {move.as_text()}"
        for context, move in list(moves.values())[:_MOVES_SHOWN]
    ]
    return f"; most moved: {', '.join(said)}" if said else ""


def _excerpts(results: Sequence[Any]) -> list[Excerpt]:
    amplified = [row for result in results if isinstance(result, ContrastiveDecodingResult) for row in result.texts]
    rows = [(row.prompt, row.text, row.difference) for row in amplified if row.alpha > 0] or [
        (row.prefill, row.completion, row.difference)
        for result in results
        if isinstance(result, PerplexityDifferenceResult)
        for row in result.finetuned_rows
    ]
    rows.sort(key=lambda row: -row[2])
    return [
        Excerpt(untrusted_text=" ".join(f"{asked} … {text}".split())[:_EXCERPT_CHARACTERS], difference=difference)
        for asked, text, difference in rows[:_EXCERPTS]
        if difference > 0
    ]


def _fit(overview: OverviewResult, max_chars: int) -> OverviewResult:
    """Drop excerpts, words, facts, then shorten lines, drop manner, what was left out and later next calls, until the
    text fits.
    """

    def without_last(name: str, keep: int) -> OverviewResult | None:
        rows = getattr(overview, name)
        return overview.model_copy(update={name: rows[:-1]}) if len(rows) > keep else None

    while len(overview.as_text()) > max_chars:
        shorter = (
            without_last("excerpts", 1)
            or without_last("words", TOPIC_WORDS)
            or without_last("facts", _FACTS_KEPT)
            or without_last("excerpts", 0)
            or _shorter_lines(overview)
            or without_last("manner", 1)
            or without_last("facts", 0)
            or without_last("words", 0)
            or without_last("left_out", 0)
            or without_last("next_calls", 2)
            or without_last("runs", 0)
        )
        if shorter is None:
            return overview
        overview = shorter
    return overview


def _shorter_lines(overview: OverviewResult) -> OverviewResult | None:
    """With the longest headlines cut by a third; None where all are short."""
    longest = max((len(entry.headline) for entry in overview.runs), default=0)
    if longest <= 40:
        return None
    runs = [entry.model_copy(update={"headline": entry.headline[: longest * 2 // 3]}) for entry in overview.runs]
    return overview.model_copy(update={"runs": runs})
