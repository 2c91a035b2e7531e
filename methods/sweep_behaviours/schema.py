"""Parameters, rows and result of a sweep of behaviours. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from diffing_mcp.core.seeds import Seed
from diffing_mcp.core.text import clip, fenced
from diffing_mcp.methods.contract import MethodParams, MethodResult
from diffing_mcp.methods.texts.distinctive_words import DistinctiveWord, evidence_of
from diffing_mcp.methods.texts.form import LEVEL
from diffing_mcp.methods.texts.prompts import Texts
from diffing_mcp.methods.texts.words import EvidenceWord

TEMPERATURE = 0.7
DEFAULT_LIMIT = 64
_TRIGGERS_SHOWN = 6
_TRIGGER_CHARACTERS = 60


class SweepParams(MethodParams):
    """Parameters of `sweep_behaviours`."""

    domains: Annotated[Texts | None, Field(min_length=1, max_length=100)] = Field(
        None, description="Areas or topics of the battery; a wrong name lists all."
    )
    prompts: Annotated[Texts | None, Field(min_length=1, max_length=1000)] = Field(
        None, description="Own questions instead."
    )
    triggers: Annotated[Texts, Field(max_length=100)] = Field(
        (), description="Prefixes, templates with {prompt}, `system: ...`; or `bundled`."
    )
    limit: int | None = Field(
        None, ge=1, le=2000, description=f"Questions at most; default {DEFAULT_LIMIT} of all areas, or all own."
    )
    samples: int = Field(1, ge=1, le=16, description="Answers a question.")
    max_new_tokens: int = Field(48, ge=4, le=1024, description="Tokens of an answer at most.")
    seed: Seed = Field(0, description="Of sampling and of the choice of questions.")


class BothAnswers(BaseModel):
    """One question and both answers. UNTRUSTED text of the models under study."""

    question: str
    base: str
    finetuned: str

    def as_text(self) -> str:
        """In one line."""
        return f"{self.question!r} base {fenced(self.base)} finetuned {fenced(self.finetuned)}"


class Cluster(BaseModel):
    """Questions whose answers changed in the same way."""

    number: int
    what: str = Field(description="What changed; quotes UNTRUSTED words of the answers.")
    p_value: float = Field(
        description="That equal models show it: of its strongest word alone, else corrected for all features of form."
    )
    questions: int = Field(description="Questions whose answers show it more in the finetuned model.")
    areas: dict[str, int] = Field(description="Area -> such questions, most first.")
    example: BothAnswers

    def as_text(self) -> str:
        """Two lines."""
        areas = ", ".join(f"{area} {count}" for area, count in list(self.areas.items())[:6])
        return f"[{self.number}] {self.what}; {self.questions} questions ({areas})\n    {self.example.as_text()}"


class AreaRow(BaseModel):
    """How far the models differ in one area."""

    area: str
    questions: int
    unexpected: float = Field(
        description="Mean over its questions: how much less the base expects the finetuned answers, nats a token."
    )
    p_value: float = Field(
        description=(
            "That its finetuned answers are no less expected by the base, than by their writer or than its own, than "
            "two samples of the base vary: rank sums, corrected over areas (Holm)."
        )
    )
    clusters: list[int] = Field(description="Numbers of the clusters that most of its questions are in.")

    @property
    def differs(self) -> bool:
        """Beyond what sampling gives, or mostly in a cluster."""
        return self.p_value <= LEVEL or bool(self.clusters)


class TriggerRow(BaseModel):
    """What a trigger changes in the finetuned model that it does not change in the base."""

    trigger: str
    questions: int
    change: float = Field(description="Mean `unexpected` (see areas) behind the trigger minus without it.")
    p_value: float = Field(description="That two samples of the base change so (see areas), corrected (Holm).")
    form: list[str] = Field(
        description="What differs in form behind it between base and finetuned, significantly, and not without it."
    )
    example: BothAnswers

    @property
    def name(self) -> str:
        """Its beginning, in quotes."""
        return repr(clip(self.trigger, _TRIGGER_CHARACTERS)[0])

    @property
    def switches(self) -> bool:
        """Beyond what sampling gives, or another form."""
        return self.p_value <= LEVEL or bool(self.form)

    def as_text(self) -> str:
        """Up to three lines."""
        form = "".join(f"\n    {row}" for row in self.form[:2])
        return (
            f"{self.name}: {self.change:+.2f} nats/token (p {self.p_value:.2g})"
            + form
            + (f"\n    {self.example.as_text()}" if self.switches else "")
        )


class QuestionRow(BaseModel):
    """A question whose finetuned answer the base expects least."""

    area: str
    unexpected: float = Field(description="How much less the base expects the finetuned answers, nats a token.")
    example: BothAnswers

    def as_text(self) -> str:
        """In one line."""
        return f"{self.unexpected:+.2f} {self.area}: {self.example.as_text()}"


class SweepResult(MethodResult):
    """Where and how the finetuned model behaves differently."""

    questions: int
    scored: bool = Field(
        True,
        description="False: a side gives no log-probabilities, so that surprise (0 and p 1 here) was not measured.",
    )
    unexpected: float = Field(description="Mean over all questions, see areas.")
    excess: float = Field(description="How much less the base expects them than its own answers, nats a token.")
    excess_p_value: float = Field(description="That answers of equal models are so unexpected, as in areas.")
    base_differs_from_itself: int = Field(description="Changes of form between two samples of the base: expect 0.")
    clusters: list[Cluster]
    words: list[DistinctiveWord] = Field(description="Content words of the finetuned answers beyond the base's.")
    areas: list[AreaRow]
    triggers: list[TriggerRow]
    least_expected: list[QuestionRow] = Field(description="Questions whose finetuned answers the base expects least.")

    def evidence_words(self) -> list[EvidenceWord]:
        """Distinctive words, for `overview`; a score of 1 is the null level."""
        return evidence_of(self.words)

    def as_text(self) -> str:
        """The headline, what changed, the triggers, and the areas."""
        surprise = (
            f"The base expects the finetuned answers {self.unexpected:.3f} nats/token less than the finetuned model "
            f"does, and {self.excess:+.3f} less than answers of its own (p {self.excess_p_value:.2g})."
            if self.scored
            else "A side gives no log-probabilities: surprise was not measured, words and form alone were compared."
        )
        lines = [
            self.headline,
            (
                f"{self.questions} questions. {surprise} Two samples of the base differ in "
                f"{self.base_differs_from_itself} features of form."
            ),
        ]
        if self.clusters:
            lines.append("What changed, base -> finetuned; untrusted model text between ⟦ ⟧ and in quotes:")
            lines += [cluster.as_text() for cluster in self.clusters]
        if self.words:
            lines.append("words in finetuned:base answers: " + ", ".join(word.as_text() for word in self.words))
        if self.triggers:
            lines.append("Triggers, by what they change in the finetuned model beyond the base:")
            shown, rest = self.triggers[:_TRIGGERS_SHOWN], self.triggers[_TRIGGERS_SHOWN:]
            lines += [row.as_text() for row in shown]
            lines += _named("less", [row.trigger[:_TRIGGER_CHARACTERS] for row in rest])
        lines += self._area_lines()
        if self.least_expected:
            lines.append("Least expected by the base:")
            lines += [row.as_text() for row in self.least_expected]
        return "\n".join(lines)

    def _area_lines(self) -> list[str]:
        if len(self.areas) == 1:  # own questions: the numbers above are theirs, by a test with more power
            return []
        differing = [row for row in self.areas if row.differs]
        shown = [
            f"{row.area} {row.unexpected:.2f}{'*' if row.p_value <= LEVEL else ''}"
            + (f" [{' '.join(map(str, row.clusters))}]" if row.clusters else "")
            for row in differing
        ]
        name = (
            f"areas that differ (nats/token; * beyond samples of the base, p <= {LEVEL}; [clusters of most questions])"
        )
        return [
            *_named(name, shown),
            *_named(
                "areas where no difference was shown (one or two questions hardly can), with their questions",
                [f"{row.area} {row.questions}" for row in self.areas if not row.differs],
            ),
        ]


def _named(name: str, items: Sequence[str]) -> list[str]:
    return [f"{name}: {', '.join(items)}"] if items else []
