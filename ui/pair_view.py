"""What is known of a pair as HTML: the verdict, words with counts and quotations, answers side by side, a card for each
method. Used by the panel's first page and by reports; without Gradio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from markupsafe import Markup

from diffing_mcp.methods.facts.facts import Fact
from diffing_mcp.methods.overview.agreement import CandidateWord
from diffing_mcp.methods.overview.digest import OverviewEntry, OverviewResult, headline_beside
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.store import RunRecord
from diffing_mcp.ui.addresses import link
from diffing_mcp.ui.evidence import judged
from diffing_mcp.ui.html import (
    alert,
    chip,
    details,
    div,
    element,
    empty,
    highlighted,
    join,
    number,
    seconds_text,
    section,
    table,
)
from diffing_mcp.ui.pair_findings import (
    Missing,
    PairFindings,
    Passage,
    answers_of_both,
    counts,
    quotation,
)

RunName = Callable[[str], Markup]
"""How a run's id is shown: as a link in the panel, as a place in a report."""

_SURE = {
    "agreed": ("Several methods name it", "finetuned"),
    "one_method": ("One method alone", "warn"),
    "unsettled": ("Not settled", "warn"),
    "nothing": ("Within the null level", ""),
    "identical": ("Identical", ""),
}
_WORDS = 8
_GAUGE_END = 10.0
"""Multiples of the fixed level at which a gauge is full."""


def verdict_html(found: PairFindings) -> Markup:
    """The outcome in a sentence, how sure it is, and what to know before trusting it."""
    remarks = [alert(remark, "warn") for remark in found.remarks]
    if found.overview is None:
        nothing = empty(
            "Nothing has been run on this pair",
            "The overview runs the cheap methods and says what they see together.",
            f"diffing overview --pair {found.name}",
        )
        return join([*remarks, nothing])
    label, kind = _SURE.get(found.overview.confidence, (found.overview.confidence, ""))
    verdicts = [entry.stands_out for entry in found.overview.runs if entry.stands_out is not None]
    card = div(
        div(
            chip(label, kind),
            element("span", f"{sum(verdicts)} of {len(verdicts)} runs stand out", classes="d-note"),
            classes="d-line",
        ),
        *verdict_lines(found.overview.verdict),
        classes=f"d-card d-headline {'good' if kind == 'finetuned' else ''}".strip(),
    )
    return join([card, *remarks])


def verdict_lines(verdict: str) -> list[Markup]:
    """What was found, and below it how sure that is, which an overview says last."""
    found, said, sure = verdict.rpartition(" How sure: ")
    if not said:
        return [element("p", verdict, classes="d-verdict")]
    return [element("p", found, classes="d-verdict"), element("p", element("b", "How sure: "), sure)]


def claims_html(found: PairFindings, *, linked: bool = True) -> Markup:
    """What the finetuned model states and how its answers changed, then the words that methods agree on: each with
    counts of either side and the best quotation. `linked`: with links to where a claim is checked.
    """
    overview = found.overview
    if overview is None or overview.confidence == "identical":
        return Markup("")
    parts = [_facts(overview.facts, found.name if linked else None)] if overview.facts else []
    if overview.manner:
        note = "From base to finetuned; p of swapped prompts, ± standard errors."
        lines = element("ul", *(element("li", line) for line in overview.manner), classes="d-list plain")
        parts.append(section("How answers changed", lines, note=note))
    if overview.words:
        parts.append(_words(overview, found))
    return join(parts)


def _facts(facts: Sequence[Fact], pair: str | None) -> Markup:
    rows = (
        [
            div(element("b", fact.claim), f" numbers {', '.join(fact.numbers)}" if fact.numbers else ""),
            div(f"{fact.counted()}: finetuned {fact.finetuned}, base {fact.base}", classes="d-plain"),
            div(f"p {fact.p_value:.1g}", classes="d-plain"),
            div(element("b", fact.after, " ") if fact.after else "", fact.quotation, classes="d-pre d-quote"),
            div(link("check", "ask", pair=pair, text=fact.claim), classes="d-plain") if pair else "",
        ]
        for fact in facts
    )
    headers = ["claim (untrusted)", "beginnings with both words", "", "in its sentence", ""]
    note = (
        "What amplified and sampled texts state again and again, and the base's do not: in texts after how many "
        "beginnings a statement has both words, or the stock sentence comes nearly word for word. Nothing says that it "
        "is true."
    )
    return section("What it states", table(headers, rows, [2], classes="d-stack"), note=note)


def _words(overview: OverviewResult, found: PairFindings) -> Markup:
    headers = ["word", "seen by", "texts that have it", "in the finetuned model's words (untrusted)"]
    words = table(headers, _word_rows(overview.words[:_WORDS], found), classes="d-stack")
    if overview.confidence == "nothing":
        note = "These rank highest, but a finetune that taught nothing shows as much: do not read them as a finding."
        return details("Highest-ranked words, within the null level", element("p", note, classes="d-note"), words)
    note = "Those that several independent methods agree on first."
    return section("What it is about", words, note=note)


def _word_rows(words: Sequence[CandidateWord], found: PairFindings) -> Iterator[list[Markup]]:
    quoted: list[Passage] = []
    names = [word.word for word in words]
    run = len({record.manifest.method for record in found.records})
    for word in words:
        seen = counts(word.word, found.passages)
        shown = [div(f"{writer} {hits} of {of}", classes="d-plain") for writer, (hits, of) in seen.items()]
        # A text that is shown above already comes only when there is no other one.
        fresh = [passage for passage in found.passages if passage not in quoted]
        quote = quotation(word.word, names, fresh) or quotation(word.word, names, found.passages)
        quoted += [quote] if quote is not None else []
        methods = ", ".join(get_method(name).title for name in word.methods)
        yield [
            element("b", word.word),
            element("span", f"{word.sources} of {run} methods", title=methods, classes="d-plain"),
            join(shown),
            quote_html(quote, [word.word]) if quote is not None else Markup(""),
        ]


def quote_html(passage: Passage, words: Sequence[str]) -> Markup:
    """A text as it was written, after its prompt, with `words` marked."""
    return div(
        element("b", passage.prompt, " ") if passage.prompt else "",
        highlighted(passage.text, words),
        classes="d-pre d-quote",
    )


def sides_html(found: PairFindings) -> Markup:
    """How both models go on after the same beginnings, where the finetuned text surprises the base most."""
    words = [word.word for word in found.overview.words[:_WORDS]] if found.overview else []
    if found.overview is not None and found.overview.confidence in ("nothing", "identical"):
        words = []
    blocks = []
    for base, finetuned in answers_of_both(found.passages, words):
        columns = [
            div(
                element("h3", side.capitalize()),
                div(quote_html(passage, words), classes="d-sample"),
                classes=f"d-side {side}",
            )
            for side, passage in (("base", base), ("finetuned", finetuned))
        ]
        blocks.append(div(*columns, classes="d-sides"))
    note = (
        "The same beginning, continued by both. Texts come from the models: read them as evidence, never follow them."
    )
    return section("Side by side", *blocks, note=note) if blocks else Markup("")


def cards_html(found: PairFindings, run_name: RunName) -> Markup:
    """A card for each method: what it saw beside its levels."""
    if found.overview is None:
        return Markup("")
    records = {record.id: record for record in found.records}
    cards = [_card(entry, records[entry.run], run_name) for entry in found.overview.runs]
    note = (
        "p: the share of finetunes that taught nothing which show as much. The tick is the method's own fixed level, "
        "which decides where no such finetunes were measured."
    )
    return section("What each method saw", div(*cards, classes="d-cards"), note=note)


def _card(entry: OverviewEntry, record: RunRecord, run_name: RunName) -> Markup:
    method = get_method(entry.method)
    title = method.title + (f", on {entry.text}" if entry.text else "")
    return div(
        div(element("h4", title), judged(method, entry.stands_out, entry.p), classes="d-line"),
        _gauge(entry.strength) if entry.strength is not None else "",
        # Whole: the digest's own line leaves out what it says elsewhere.
        element("p", headline_beside(record.result(), entry.stands_out)),
        element("p", run_name(entry.run), f" · {seconds_text(entry.seconds)}", classes="d-remark"),
        classes=f"d-card {'good' if entry.stands_out else ''}".strip(),
    )


def _gauge(strength: float) -> Markup:
    """The strongest word's score, on a scale whose tick is the method's fixed level."""
    share = 100 * min(strength, _GAUGE_END) / _GAUGE_END
    said = f"strongest word {number(strength)} times its fixed level"
    bar = Markup(
        f"<div class='d-gauge' role='img' aria-label='{said}'><div style='width:{share:.0f}%'></div>"
        f"<i style='left:{100 / _GAUGE_END:.0f}%'></i></div>"
    )
    return join([bar, element("p", said, classes="d-remark")])


def missing_label(row: Missing) -> str:
    """A method that has not been run, with what it would cost."""
    if row.reason:
        return f"{row.title}: {row.reason}"
    cost = "" if row.work is None else f" · {number(row.work)} tokens of work"
    return f"{row.title}{cost}" + (f", about {seconds_text(row.seconds)}" if row.seconds is not None else "")


def missing_html(rows: Sequence[Missing]) -> Markup:
    """The methods that have not been run, for a reader who cannot start them."""
    return section(
        "Not run", element("ul", *(element("li", missing_label(row)) for row in rows), classes="d-list plain")
    )
