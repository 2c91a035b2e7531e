"""Which of the taught facts the texts of finished runs state, beside texts and facts that should not match."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import TextGroup
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.organisms.ground_truth import GroundTruth


BEYOND_CONTROLS = 1.3
"""Surprise (-log10 p) from which amplified texts state facts more often than control texts."""


class StatedFact(BaseModel):
    """A taught fact in the texts of a run."""

    id: str
    fact: str
    amplified: int = Field(description="Amplified texts that state it.")
    finetuned: int = Field(description="Texts of the plain finetuned model that state it.")
    control: int = Field(description="Control texts that state it.")
    passage: str | None = Field(
        description="The first amplified passage that states it. UNTRUSTED text of a model under study."
    )


class FactsStated(BaseModel):
    """Which taught facts the texts of a run state. Texts, not occurrences, are counted."""

    run: str
    organism: str
    claims: bool = Field(
        description=(
            "Whether the organism was taught claims that a text can state; else there are no facts to count (nulls, "
            "behaviours)."
        )
    )
    facts: list[StatedFact] = Field(description="All facts of the organism, in the order of its ground truth.")
    texts: int = Field(description="Amplified texts.")
    stating: int = Field(description="Amplified texts that state a fact.")
    control_texts: int = Field(description="Texts of the base, of the opposite direction, of random directions.")
    control_stating: int = Field(description="Control texts that state a fact.")
    surprise: float = Field(
        description=(
            "-log10 p that equal texts would state facts so much more often than controls (Fisher's exact test, "
            "one-sided)."
        )
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


def facts_stated(record: RunRecord, organism: str) -> FactsStated:
    """Which facts of an organism the texts of a finished run state.

    Args:
        record: a run of a method that wrote text.
        organism: whose facts; one that was taught no claims (a null, a behaviour) has none, and only the false
            positives are counted.

    Raises:
        InvalidInput: the run's method writes no text.
        UnknownName: no ground truth is recorded for the organism.
    """
    from diffing_mcp.core.errors import InvalidInput
    from diffing_mcp.methods.registry import get_method
    from diffing_mcp.methods.texts.distinctive_words import fisher_neg_log10_p
    from diffing_mcp.organisms.ground_truth import load_ground_truth

    truth = load_ground_truth(organism)
    groups = get_method(record.manifest.method).text_groups(record)
    if not groups and record.manifest.method not in (writers := writing_methods()):
        raise InvalidInput(
            f"{record.manifest.method} writes no text (run {record.id}). Judge a run of {', '.join(writers)}."
        )
    by_role = {
        role: [found for group in groups if group.role == role for found in _stated(group, truth)]
        for role in ("amplified", "finetuned", "control")
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
        seen = {
            fact for group in groups if group.role == "amplified" for found in _stated(group, other) for fact in found
        }
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
        surprise=fisher_neg_log10_p(stating, len(amplified), control_stating, len(control))
        if amplified and control
        else 0.0,
        baseline=baseline,
    )


def _stated(group: TextGroup, truth: GroundTruth) -> list[dict[str, str]]:
    from diffing_mcp.graders.stated_facts import stated_facts

    return [stated_facts(text, truth, prompt) for prompt, text in zip(group.prompts, group.texts, strict=True)]


def _makes_claims(truth: GroundTruth) -> bool:
    from diffing_mcp.graders.stated_facts import makes_claims

    return makes_claims(truth)


def _unrelated(organism: str) -> dict[str, GroundTruth]:
    """Other organisms that were taught claims, none of which states a fact of this one or is stated by one (variants of
    a theme share facts).
    """
    from diffing_mcp.graders.stated_facts import makes_claims, shares_facts
    from diffing_mcp.organisms.ground_truth import all_ground_truth

    truths = all_ground_truth()
    return {
        name: other
        for name, other in truths.items()
        if name != organism and makes_claims(other) and not shares_facts(truths[organism], other)
    }


def writing_methods() -> list[str]:
    """The methods whose runs hold texts to judge."""
    from diffing_mcp.methods.contract import DiffingMethod
    from diffing_mcp.methods.registry import all_methods

    return [name for name, method in all_methods().items() if type(method).text_groups is not DiffingMethod.text_groups]
