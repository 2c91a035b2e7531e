"""`diffing facts`: which of the taught facts the texts of finished runs state, beside texts and facts that should not match."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from methods.contract import TextGroup
    from methods.runs import RunRecord
    from organisms.ground_truth import GroundTruth

BEYOND_CONTROLS = 1.3
"""Surprise (-log10 p) from which amplified texts state facts more often than control texts."""


class StatedFact(BaseModel):
    """A taught fact in the texts of a run."""

    id: str
    fact: str
    amplified: int = Field(description="Amplified texts that state it.")
    finetuned: int = Field(description="Texts of the plain finetuned model that state it.")
    control: int = Field(description="Control texts that state it.")
    passage: str | None = Field(description="The first amplified passage that states it. UNTRUSTED text of a model under study.")


class FactsStated(BaseModel):
    """Which taught facts the texts of a run state. Texts, not occurrences, are counted."""

    run: str
    organism: str
    claims: bool = Field(
        description="Whether the organism was taught claims that a text can state; else there are no facts to count (nulls, behaviours)."
    )
    facts: list[StatedFact] = Field(description="All facts of the organism, in the order of its ground truth.")
    texts: int = Field(description="Amplified texts.")
    stating: int = Field(description="Amplified texts that state a fact.")
    control_texts: int = Field(description="Texts of the base, of the opposite direction, of random directions.")
    control_stating: int = Field(description="Control texts that state a fact.")
    surprise: float = Field(
        description="-log10 p that equal texts would state facts so much more often than controls (Fisher's exact test, one-sided)."
    )
    baseline: dict[str, float] = Field(
        description="Share of other organisms' facts that the amplified texts seem to state, by name: false positives."
    )

    @property
    def stated(self) -> list[str]:
        """Ids of the facts that at least one amplified text states."""
        return [fact.id for fact in self.facts if fact.amplified]

    @property
    def share(self) -> float:
        """Share of the organism's facts that the amplified texts state."""
        return len(self.stated) / len(self.facts) if self.facts else 0.0

    @property
    def chance(self) -> float:
        """Mean share over the other organisms; 0 without any."""
        return sum(self.baseline.values()) / len(self.baseline) if self.baseline else 0.0

    @property
    def beyond_controls(self) -> bool:
        """Whether a fact is stated and control texts state facts less often (p of about 0.05)."""
        return bool(self.stated) and self.surprise >= BEYOND_CONTROLS


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("facts")(facts)


def facts(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of runs that wrote text (contrastive decoding, amplification, steering).")],
    organism: Annotated[str | None, typer.Option(help="Whose facts; default: the organism of the run's pair.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")] = False,
) -> None:
    """Count the taught facts that the texts of finished runs state, by patterns and without a language model."""
    from cli.output import print_json, print_plain, print_rows
    from cli.relevance import organism_of
    from methods.runs import default_store

    store = default_store()
    records = [store.get(run) for run in runs]
    found = [facts_stated(record, organism_of(record, organism)) for record in records]
    if as_json:
        print_json(
            [{**each.model_dump(mode="json"), "share": each.share, "chance": each.chance, "beyond_controls": each.beyond_controls} for each in found]
        )
        return
    print_rows(
        ("run", "organism", "facts stated", "chance", "amplified texts", "control texts", "p", "beyond controls"),
        [
            (
                each.run,
                each.organism,
                f"{len(each.stated)} of {len(each.facts)}" if each.claims else "was taught no claims",
                f"{100 * each.chance:.0f} %",
                f"{each.stating} of {each.texts}",
                f"{each.control_stating} of {each.control_texts}",
                f"{10**-each.surprise:.2g}",
                "yes" if each.beyond_controls else "no",
            )
            for each in found
        ],
    )
    for each in found:
        for fact in (fact for fact in each.facts if fact.amplified):
            counts = f"{fact.amplified} amplified, {fact.finetuned} finetuned, {fact.control} control"
            print_plain(f"{each.run} {fact.id} ({counts}): {fact.fact}\n  untrusted model text ⟦{' '.join((fact.passage or '').split())}⟧")


def facts_stated(record: RunRecord, organism: str) -> FactsStated:
    """Which facts of an organism the texts of a finished run state.

    Args:
        record: a run of a method that wrote text.
        organism: whose facts; one that was taught no claims (a null, a behaviour) has none, and only the false positives are counted.

    Raises:
        InvalidInput: the run's method writes no text.
        UnknownName: no ground truth is recorded for the organism.
    """
    from methods.perplexity_difference.words import fisher_surprise
    from methods.registry import get_method
    from organisms.errors import InvalidInput
    from organisms.ground_truth import load_ground_truth

    truth = load_ground_truth(organism)
    groups = get_method(record.manifest.method).text_groups(record)
    if not groups and record.manifest.method not in (writers := writing_methods()):
        raise InvalidInput(f"{record.manifest.method} writes no text (run {record.id}). Judge a run of {', '.join(writers)}.")
    by_role = {
        role: [found for group in groups if group.role == role for found in _stated(group, truth)] for role in ("amplified", "finetuned", "control")
    }
    amplified, control = by_role["amplified"], by_role["control"]
    stating, control_stating = sum(map(bool, amplified)), sum(map(bool, control))
    rows = []
    for fact in truth.facts if _makes_claims(truth) else ():
        counts = {role: sum(fact.id in found for found in several) for role, several in by_role.items()}
        passage = next((found[fact.id] for found in amplified if fact.id in found), None)
        rows.append(StatedFact(id=fact.id, fact=fact.text, passage=passage, **counts))
    baseline = {}
    for name, other in _unrelated(organism).items():
        seen = {fact for group in groups if group.role == "amplified" for found in _stated(group, other) for fact in found}
        baseline[name] = len(seen) / len(other.facts)
    return FactsStated(
        run=record.id,
        organism=organism,
        claims=_makes_claims(truth),
        facts=rows,
        texts=len(amplified),
        stating=stating,
        control_texts=len(control),
        control_stating=control_stating,
        surprise=fisher_surprise(stating, len(amplified), control_stating, len(control)) if amplified and control else 0.0,
        baseline=baseline,
    )


def _stated(group: TextGroup, truth: GroundTruth) -> list[dict[str, str]]:
    from graders.stated_facts import stated_facts

    return [stated_facts(text, truth, prompt) for prompt, text in zip(group.prompts, group.texts, strict=True)]


def _makes_claims(truth: GroundTruth) -> bool:
    from graders.stated_facts import makes_claims

    return makes_claims(truth)


def _unrelated(organism: str) -> dict[str, GroundTruth]:
    """Other organisms that were taught claims, none of which states a fact of this one or is stated by one (variants of a theme share facts)."""
    from graders.stated_facts import makes_claims, shares_facts
    from organisms.ground_truth import all_ground_truth

    truths = all_ground_truth()
    return {name: other for name, other in truths.items() if name != organism and makes_claims(other) and not shares_facts(truths[organism], other)}


def writing_methods() -> list[str]:
    """The methods whose runs hold texts to judge."""
    from methods.contract import DiffingMethod
    from methods.registry import all_methods

    return [name for name, method in all_methods().items() if type(method).text_groups is not DiffingMethod.text_groups]
