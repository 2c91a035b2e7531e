"""What is known of a pair from its finished runs: the digest, what the models wrote, and what has not been run. Reads
files only, so a report and the panel say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.core.words import beginning_with
from diffing_mcp.methods.contract import DiffingMethod, PairSize
from diffing_mcp.methods.overview.digest import OverviewResult, digest
from diffing_mcp.methods.overview.plan import LENS, mean_difference, text_of
from diffing_mcp.methods.registry import all_methods, get_method
from diffing_mcp.methods.runs.store import RunManifest, RunRecord, RunStore
from diffing_mcp.model_pairs.resolve import resolve_pair
from diffing_mcp.ui.saved_evidence import EvidenceFolder, SavedEvidence

Writer = Literal["base", "finetuned", "amplified"]

_DIGEST_CHARACTERS = 40_000
_TRIED = ("steering", "weight_amplification")
"""What the page Steer starts."""


@dataclass(frozen=True)
class Passage:
    """A text that a model wrote. UNTRUSTED."""

    writer: Writer
    prompt: str
    text: str
    run: str


@dataclass(frozen=True)
class Missing:
    """A method that has not been run on the pair."""

    method: str
    title: str
    arguments: dict[str, str | list[str]]
    """What the call needs besides the pair."""
    work: int | None
    seconds: float | None
    reason: str = ""
    """Why it cannot be started as it is; empty: it can."""


@dataclass(frozen=True)
class PairFindings:
    """The newest readable run of each method on the pair as its models are now, and what they say together."""

    name: str
    records: list[RunRecord]
    overview: OverviewResult | None
    passages: list[Passage]
    missing: list[Missing]
    remarks: list[str]
    saved: list[SavedEvidence]
    """What a person added by hand."""


def full_name(pair: str) -> str:
    """The name under which runs of a pair are stored; what cannot be resolved stays as it is."""
    try:
        return resolve_pair(pair).name
    except DiffingError:
        return pair


def unknown_pair(pair: str) -> str | None:
    """Why no pair goes by this name, with those that come close; None when one does."""
    try:
        resolve_pair(pair)
    except DiffingError as error:
        return error.message
    return None


def findings_of(pair: str, store: RunStore) -> PairFindings:
    """Everything that the stored runs say about a pair, by any of its names."""
    name = full_name(pair)
    manifests = store.list(pair=name)
    current = [manifest for manifest in manifests if manifest.pair == manifests[0].pair and not tried(manifest)]
    remarks = []
    if other := sum(manifest.pair != manifests[0].pair for manifest in manifests):
        remarks.append(f"{other} runs were made of this pair with other weights; they are left out here.")
    records, unreadable = _newest(current, store)
    if unreadable:
        remarks.append(f"Cannot be read by this version, run again: {', '.join(unreadable)}.")
    return PairFindings(
        name=name,
        records=records,
        overview=digest(records, _DIGEST_CHARACTERS, pair=name) if records else None,
        passages=list(_passages(records)),
        missing=_missing(records),
        remarks=remarks,
        saved=EvidenceFolder(store).list(name),
    )


def tried(manifest: RunManifest) -> bool:
    """Whether a run is a try: a direction or a stack of finetunes on prompts of one's own. Prompts about cake bring
    words about cake, and of a stack the words may be another finetune's, so no try says what the pair is about.
    """
    own = (manifest.params.get("prompts"), manifest.params.get("config"))
    return manifest.method in _TRIED and own != (None, None)


def _newest(manifests: Sequence[RunManifest], store: RunStore) -> tuple[list[RunRecord], list[str]]:
    """The newest run of each method on each corpus that can be read, in the order of the registry, and the ids of those
    that cannot and have no newer one.
    """
    found: dict[tuple[str, str], RunRecord] = {}
    unreadable: dict[str, str] = {}
    order = list(all_methods())
    for manifest in manifests:
        if manifest.method not in order:
            unreadable.setdefault(manifest.method, manifest.id)
            continue
        try:
            params = get_method(manifest.method).Params.model_validate(manifest.params)
            key = manifest.method, text_of((manifest.method, params))
            if key in found:
                continue  # a newer one was read
            record = store.get(manifest.id)
            record.result()
        except (DiffingError, ValidationError):
            unreadable.setdefault(manifest.method, manifest.id)
            continue
        found[key] = record
    readable = [found[key] for key in sorted(found, key=lambda key: (order.index(key[0]), key[1]))]
    run = {record.manifest.method for record in readable}
    return readable, [identifier for method, identifier in unreadable.items() if method not in run]


def arguments_for(method: str, pair: str, store: RunStore) -> dict[str, str | list[str]]:
    """What a call of a method needs besides the pair, from the runs there are: the mean difference of a lens run for
    those that read a vector.
    """
    known = all_methods().get(method)
    if known is None or not known.needs_vector:
        return {}
    records, _ = _newest(store.list(method=LENS, pair=full_name(pair)), store)
    return _vector_arguments(known, records)


def _vector_arguments(method: DiffingMethod[Any, Any], records: Sequence[RunRecord]) -> dict[str, str | list[str]]:
    vector = next((str(handle) for record in records if (handle := mean_difference(record)) is not None), None)
    if not method.needs_vector or vector is None:
        return {}
    return {"vector": vector} if "vector" in method.Params.model_fields else {"vectors": [vector]}


def _missing(records: Sequence[RunRecord]) -> list[Missing]:
    """Methods without a run, the cheapest first; those that need a vector take the mean difference of a lens run."""
    run = {record.manifest.method for record in records}
    size = PairSize(tokens_per_second=_speed(records))
    rows = []
    for name, method in all_methods().items():
        if name in run:
            continue
        arguments = _vector_arguments(method, records)
        if method.needs_vector and not arguments:
            rows.append(Missing(name, method.title, arguments, None, None, f"needs a vector: run {LENS} first"))
            continue
        try:
            cost = method.estimate(size, method.Params.model_validate(arguments))
        except (DiffingError, ValidationError, NotImplementedError):
            rows.append(Missing(name, method.title, arguments, None, None, "needs parameters: start it under Jobs"))
            continue
        rows.append(Missing(name, method.title, arguments, cost.work, cost.seconds))
    return sorted(rows, key=lambda row: (row.work is None, row.work))


def _speed(records: Sequence[RunRecord]) -> float | None:
    """Tokens a second of the newest pass over a corpus."""
    passes = [record.manifest.notes.get("corpus_pass") for record in records]
    return next((2 * one["tokens"] / one["seconds"] for one in passes if one and one.get("seconds")), None)


def _passages(records: Sequence[RunRecord]) -> Iterator[Passage]:
    """The texts that base and finetuned model wrote in these runs, and those of the amplified difference."""
    for record in records:
        for group in get_method(record.manifest.method).text_groups(record):
            writer: Writer | None = (
                "base" if group.name == "base" else group.role if group.role in ("finetuned", "amplified") else None
            )
            if writer is not None:
                for prompt, text in zip(group.prompts, group.texts, strict=True):
                    yield Passage(writer, prompt, text, record.id)


def counts(word: str, passages: Sequence[Passage]) -> dict[Writer, tuple[int, int]]:
    """For each writer: in how many of its texts the word is, and how many there are."""
    pattern = beginning_with([word])
    writers: tuple[Writer, ...] = ("finetuned", "base", "amplified")
    texts = {writer: [passage.text for passage in passages if passage.writer == writer] for writer in writers}
    return {
        writer: (sum(pattern.search(text) is not None for text in of), len(of)) for writer, of in texts.items() if of
    }


def telling(words: Sequence[str], text: str) -> int:
    """How many of the words are in a text."""
    return sum(beginning_with([word]).search(text) is not None for word in words)


def quotation(word: str, words: Sequence[str], passages: Sequence[Passage]) -> Passage | None:
    """The text with the word that holds most of `words` too; the finetuned model's own before amplified ones."""
    pattern = beginning_with([word])
    found = [passage for passage in passages if passage.writer != "base" and pattern.search(passage.text)]
    return max(found, key=lambda each: (each.writer == "finetuned", telling(words, each.text)), default=None)


def answers_of_both(passages: Sequence[Passage], words: Sequence[str], most: int = 3) -> list[tuple[Passage, Passage]]:
    """(base, finetuned) texts after equal prompts, those first whose finetuned text holds most of `words`; one a
    prompt.
    """
    of_base: dict[str, Passage] = {}
    for passage in passages:
        if passage.writer == "base":
            of_base.setdefault(passage.prompt, passage)
    ranked = sorted(
        (passage for passage in passages if passage.writer == "finetuned" and passage.prompt in of_base),
        key=lambda passage: -telling(words, passage.text),
    )
    first: dict[str, Passage] = {}
    for passage in ranked:
        first.setdefault(passage.prompt, passage)
    return [(of_base[prompt], passage) for prompt, passage in list(first.items())[:most]]
