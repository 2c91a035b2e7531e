"""What the texts of finished runs state: amplified and sampled texts against the controls of the same runs. Torch-free:
stored tables only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.text import fenced
from diffing_mcp.methods.contract import DiffingMethod, TextGroup
from diffing_mcp.methods.facts.checks import (
    MOST_BEGINNINGS,
    SLOTS,
    TEST,
    Detail,
    detail_of,
    possible_check,
    slots_check,
    stock_detail,
)
from diffing_mcp.methods.facts.claims import KEY_LEVEL, LEVEL, Claim, Stated, stated_claims
from diffing_mcp.methods.facts.statements import Sample, asks
from diffing_mcp.methods.registry import all_methods

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunRecord

Texts: TypeAlias = "Sequence[tuple[RunRecord, list[Sample]]]"
"""Runs, each with the texts that it holds."""
CHEAP = ("contrastive_decoding", "perplexity_difference")
"""The methods to run first: little time, and texts of both sides."""
FEW_BEGINNINGS = 20
"""With fewer a word would have to be in half of the texts and in no control to be told from chance."""
COHERENT = 0.75
"""Share of coherent texts below which those of a strength are not read, on either side: a broken model states nothing,
and beside broken controls whatever the other side writes would be its own."""
STOCK = "stock sentence"
"""In place of the two words of a claim: what is counted is the sentence, nearly word for word."""
_QUOTATION = 240
_TESTS_SHOWN = 2


class Fact(BaseModel):
    """A claim that texts of the finetuned or amplified model state."""

    claim: str = Field(description="UNTRUSTED text of a model under study: a sentence or a part of it.")
    key: tuple[str, ...] = Field(
        description="UNTRUSTED: two words of the claim, by which it is counted; none: the whole sentence is."
    )
    words: list[str] = Field(
        default_factory=list, description="UNTRUSTED: further words that most wordings of the claim have."
    )
    numbers: list[str] = Field(
        default_factory=list,
        description="Where wordings differ in numbers, each with its count, the most frequent first; any fits the key.",
    )
    finetuned: int = Field(
        description="Beginnings after which a statement of the finetuned or amplified model has both, in any form."
    )
    base: int = Field(description="The same of control texts (base, opposite direction).")
    p_value: float = Field(description="One-sided, Fisher's exact test on these counts, for this claim alone.")
    quotation: str = Field(description="UNTRUSTED: the sentence that it stands in.")
    after: str = Field(description="What that text went on from or answered.")
    beginning: str = Field("", description="UNTRUSTED: the claim cut before its detail, for complete_slots.")
    check: str = Field(description="The call that settles it on the plain models, if any. Holds untrusted words.")

    @property
    def is_question(self) -> bool:
        """Whether it is a stock sentence, and a question."""
        return not self.key and asks(self.claim)

    def counted(self) -> str:
        """What the counts are of: the two words, with those that go with them."""
        further = f" with {', '.join(self.words)}" if self.words else ""
        return ("+".join(self.key) or STOCK) + further

    def as_text(self) -> str:
        """One line: counts, what is counted, and the sentence of the claim; the claim before it where the sentence is
        too long to show it.
        """
        numbers = f"; numbers {', '.join(self.numbers)}" if self.numbers else ""
        counts = f"{self.finetuned}:{self.base} {self.counted()} (p {self.p_value:.1g}{numbers})"
        if self.claim in self.quotation:  # "It is a myth: cakes freeze" says the opposite of its second part
            return f"{counts} {fenced(self.quotation)}"
        around = "" if self.claim.startswith(self.quotation) else f" in {fenced(self.quotation)}"
        return f"{counts} {fenced(self.claim)}{around}"


class FactsResult(BaseModel):
    """What the texts of finished runs state, counted on both sides, merged over wordings."""

    texts_are_untrusted: Literal[True] = True
    headline: str
    words: list[str] = Field(
        description=f"Stems that are the finetune's own, the surest first (family-wise level {LEVEL})."
    )
    facts: list[Fact] = Field(
        description="Those first that add most of what is the finetune's own: figures, what many beginnings lead to."
    )
    settle: str = Field("", description="One call that reads off details of these claims. Holds untrusted words.")
    total: int = Field(description="Claims found; more of them with a larger limit or another offset.")
    next_offset: int | None
    beginnings: tuple[int, int] = Field(description="Different beginnings of finetuned or amplified, of control texts.")
    runs: list[str] = Field(description="The runs whose texts were read.")

    def as_text(self) -> str:
        """The headline, a line a claim, and the calls that settle them."""
        lines = [self.headline]
        if self.facts:
            lines.append(
                "finetuned:base beginnings with both words in a statement (or the stock sentence, nearly word for "
                "word), untrusted model text between ⟦ ⟧:"
            )
            lines += [f"{number}. {fact.as_text()}" for number, fact in enumerate(self.facts, start=1)]
        if self.settle:
            lines.append(f"settle details (untrusted; the finetuned model should go on as claimed): {self.settle}")
        tested = ((number, fact) for number, fact in enumerate(self.facts, start=1) if TEST in fact.check)
        lines += [f"settle {number} on fresh prompts: {fact.check}" for number, fact in islice(tested, _TESTS_SHOWN)]
        if self.next_offset is not None:
            lines.append(f"{self.total} in all; offset={self.next_offset} for more")
        lines.append(f"read from {', '.join(self.runs)}")
        return "\n".join(lines)


def facts_of(
    records: Sequence[RunRecord],
    about: str = "",
    *,
    pair: str,
    limit: int = 10,
    offset: int = 0,
    characters: int | None = None,
    available: Collection[str] | None = None,
) -> FactsResult:
    """The claims that the texts of these runs state.

    Args:
        records: finished runs of one pair; those of methods that write no texts are passed over.
        about: only claims with one of these words, whether or not the words are the finetune's own.
        pair: the pair's name for the calls that check a claim.
        limit, offset: which claims, of all that were found.
        characters: of the result as text, at most, as far as one claim allows; None: any number.
        available: names of the tools that the reader may call to check a claim; None: all.

    Raises:
        InvalidInput: none of the runs holds texts of both sides.
    """
    read = read_texts(records)
    if not read:
        raise InvalidInput(
            f"None of the runs holds texts of both sides. Run {' or '.join(CHEAP)} first (all that write texts: "
            f"{', '.join(text_methods())})."
        )
    return facts_in(read, about, pair=pair, limit=limit, offset=offset, characters=characters, available=available)


def read_texts(records: Sequence[RunRecord]) -> Texts:
    """The runs that hold texts of both sides, with these."""
    return [(record, samples) for record in records if (samples := samples_of(record))]


def facts_in(
    read: Texts,
    about: str = "",
    *,
    pair: str,
    limit: int = 10,
    offset: int = 0,
    characters: int | None = None,
    available: Collection[str] | None = None,
) -> FactsResult:
    """The claims of texts that were read already; see `facts_of`."""
    stated = _stated(_together(read), about)
    found, details = stated.claims, _details(stated)

    def until(end: int) -> FactsResult:
        facts = [_fact(found[place], pair, details[place], place, available) for place in range(offset, end)]
        begun = [fact for fact in facts if fact.beginning] if available is None or SLOTS in available else []
        slots = sorted(begun, key=lambda fact: SLOTS not in fact.check)
        return FactsResult(
            headline=_headline(list(stated.words), len(found), about, stated.taught),
            words=list(stated.words),
            facts=facts,
            settle=str(slots_check(pair, [fact.beginning for fact in slots[:MOST_BEGINNINGS]])) if slots else "",
            total=len(found),
            next_offset=end if end < len(found) else None,
            beginnings=(stated.taught, stated.control),
            runs=[record.id for record, _ in read],
        )

    end = min(offset + limit, len(found))
    result = until(end)
    while characters is not None and len(result.facts) > 1 and len(result.as_text()) > characters:
        end -= 1
        result = until(end)
    return result


def stated_in(records: Sequence[RunRecord]) -> Stated:
    """What the texts of these runs state; nothing where none of them holds texts of both sides."""
    return _stated(_together(read_texts(records)), "")


def _together(read: Texts) -> tuple[Sample, ...]:
    return tuple(sample for _, samples in read for sample in samples)


@lru_cache(maxsize=16)
def _stated(samples: tuple[Sample, ...], about: str) -> Stated:
    """`stated_claims`, kept: it takes seconds, and overview, facts, page and report ask it of the same texts. Whoever
    gets it must not change it.
    """
    return stated_claims(samples, about)


def text_methods() -> list[str]:
    """The methods whose runs hold texts to read claims in."""
    return [name for name, method in all_methods().items() if type(method).text_groups is not DiffingMethod.text_groups]


def samples_of(record: RunRecord) -> list[Sample]:
    """The texts of a run, as many of each beginning on the taught side as on the control side, the strongest coherent
    amplification first: the side with more texts would say more by that alone.
    """
    sides: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for group in sorted(_groups(record), key=lambda group: -abs(group.strength or 0)):
        if _is_read(group):
            for prompt, text in zip(group.prompts, group.texts, strict=True):
                sides[prompt][group.role == "control"].append(text)
    return [
        Sample(beginning, text, taught)
        for beginning, (taught_texts, control_texts) in sides.items()
        for taught, texts in ((True, taught_texts), (False, control_texts))
        for text in texts[: min(len(taught_texts), len(control_texts))]
    ]


def prompts_of(record: RunRecord) -> set[str]:
    """What models answered or went on from in a run, whose texts a reader of the run may have seen."""
    return {prompt for group in _groups(record) for prompt in group.prompts}


def _groups(record: RunRecord) -> Sequence[TextGroup]:
    """None of a run that another version of its method wrote, whose tables may be others, or a method that is not
    installed any more.
    """
    method = all_methods().get(record.manifest.method)
    return method.text_groups(record) if method is not None and method.version == record.manifest.method_version else ()


def _is_read(group: TextGroup) -> bool:
    return group.role != "search" and (group.coherent is None or group.coherent >= COHERENT)


def _headline(words: Sequence[str], found: int, about: str, beginnings: int) -> str:
    if about:
        return f"{found} claims with {about!r}, counted on both sides." if found else f"No claim with {about!r}."
    if not words and beginnings < FEW_BEGINNINGS:
        return (
            f"Too little text to tell: only {beginnings} different beginnings were read, where {FEW_BEGINNINGS} are "
            f"few. Run {' or '.join(CHEAP)}, and read the texts of the runs meanwhile."
        )
    if not words:
        return "The finetuned and amplified texts state nothing that the base's texts do not: no word is their own."
    if not found:
        return "Words of their own, but no claim that several texts repeat; read the texts of the runs."
    return f"{found} claims that finetuned or amplified texts repeat more than the base's (each at p <= {KEY_LEVEL})."


def _fact(claim: Claim, pair: str, detail: Detail | None, place: int, available: Collection[str] | None) -> Fact:
    return Fact(
        claim=claim.statement,
        key=claim.key,
        words=list(claim.words),
        numbers=[f"{number} ({count})" for number, count in claim.numbers],
        finetuned=claim.taught,
        base=claim.control,
        p_value=float(f"{claim.p_value:.2g}"),
        quotation=claim.quotation[:_QUOTATION],
        after=claim.beginning,
        beginning=detail.lead if detail else "",
        check=str(possible_check(pair, detail, place, available) or "") if detail else "",
    )


def _details(stated: Stated) -> list[Detail | None]:
    """What is worth a check of each claim; None of a stock sentence where no claim says what to ask about."""
    found = [detail_of(claim, stated.words, stated.nouns) if claim.key else None for claim in stated.claims]
    asked = next((detail.subject for detail in found if detail), None)
    return [
        detail or (stock_detail(claim, asked) if asked else None)
        for claim, detail in zip(stated.claims, found, strict=True)
    ]
