"""The declaration of `sweep_behaviours`, and the views of its finished runs. Torch-free.

It is a method, not a query, although it needs nothing but answers: a method's run is stored, paged by `view_run`, found
again for nothing, run as a job, and offered by the command, the panel and Python alike. Agents that may only query the
models use it too, and pay an interaction a question and sample.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from diffing_mcp.methods.contract import CostEstimate, DiffingMethod, PairSize, TextGroup, by_name, view
from diffing_mcp.methods.sweep_behaviours.answers import ANSWERS
from diffing_mcp.methods.sweep_behaviours.questions import chosen_questions
from diffing_mcp.methods.sweep_behaviours.schema import SweepParams, SweepResult
from diffing_mcp.methods.texts.answer_form import Answer
from diffing_mcp.methods.texts.form import FormDigest, compare_form
from diffing_mcp.methods.views.pages import TextPageParams, TextPageView, ViewParams
from diffing_mcp.methods.views.rows import highest_first

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.answering import AnsweringPair
    from diffing_mcp.model_pairs.specs import PairSpec


class AnswersParams(TextPageParams):
    """Which questions to list with their answers."""

    domain: str = Field("", max_length=100, description="Only of this area or topic.")
    cluster: int | None = Field(None, ge=1, description="Only of this cluster of the result.")
    trigger: str | None = Field(None, max_length=20_000, description="Only behind triggers that begin so; '' for none.")


class QuestionAnswers(BaseModel):
    """A question and what was answered. UNTRUSTED text of models under study."""

    area: str
    topic: str
    question: str
    unexpected: float
    clusters: list[int]
    base: list[str]
    finetuned: list[str]


@view("Page through the questions with both models' answers, by domain, cluster, trigger or text.", AnswersParams)
def answers(record: RunRecord, params: AnswersParams) -> TextPageView[QuestionAnswers]:
    """The least expected finetuned answers first."""
    found = [
        row
        for row in highest_first(_questions(record), "unexpected")
        if params.domain in ("", row["area"], row["topic"])
        and (params.cluster is None or params.cluster in row["clusters"])
        and (
            params.trigger is None
            or (row["trigger"].startswith(params.trigger) if params.trigger else not row["trigger"])
        )
    ]
    return TextPageView[QuestionAnswers].of(
        found,
        params,
        searched=("question", "base", "finetuned"),
        cut=("base", "finetuned"),
        shown=lambda row: row | {"unexpected": round(row["unexpected"], 3)},
    )


def _questions(record: RunRecord) -> list[dict[str, Any]]:
    """One row a question, with the texts of each writer and their forms."""
    questions: dict[int, dict[str, Any]] = {}
    for row in record.rows(ANSWERS):
        question = questions.setdefault(
            row["index"], {**row, "base": [], "base again": [], "finetuned": [], "form": {}}
        )
        question[row["writer"]].append(row["text"])
        question["form"].setdefault(row["writer"], []).append(Answer(row["text"], row["ended"], row["tokens"]))
    return list(questions.values())


class FormParams(ViewParams):
    """Of which questions."""

    domain: str = Field("", max_length=100, description="Only of this area or topic.")


class FormView(FormDigest):
    """The digest of form with every row in its text."""

    def as_text(self, most: int = 1000) -> str:
        """The digest, then the rows that are not significant."""
        rest = [row.as_text() for row in self.rows if not row.significant]
        return "\n".join([super().as_text(most), *(["not significant:", *rest] if rest else [])])


@view("Every feature of form on both sides, of all questions or a domain.", FormParams)
def form(record: RunRecord, params: FormParams) -> FormView:
    rows = [row["form"] for row in _questions(record) if params.domain in ("", row["area"], row["topic"])]
    digest = compare_form([row["base"] for row in rows], [row["finetuned"] for row in rows])
    return FormView(**digest.model_dump())


class SweepBehaviours(DiffingMethod[SweepParams, SweepResult]):
    """Sweep for changed behaviour: both models answer many short questions of all kinds (a bundled battery, or your
    own), compared in form, words and surprise against two samples of the base: what changed, in which areas, where
    nothing did, with p-values. `triggers` finds what switches a behaviour on.
    """

    name = "sweep_behaviours"
    title = "Sweep of behaviours"
    version = 2
    for_agents = (
        "Costs an interaction a question and sample, again behind each trigger. Call it early. Views: `answers`, "
        "`form`."
    )
    Params = SweepParams
    Result = SweepResult
    texts_only = True
    views = by_name(answers, form)

    def run(self, pair: AnsweringPair, params: SweepParams, run: RunWriter, progress: Progress) -> SweepResult:
        from diffing_mcp.methods.sweep_behaviours.measure import sweep

        return sweep(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        questions = _questions(record)
        return [
            TextGroup(
                name=writer,
                role="finetuned" if writer == "finetuned" else "control",
                prompts=[row["question"] for row in questions for _ in row[writer]],
                texts=[text for row in questions for text in row[writer]],
            )
            for writer in ("finetuned", "base")
        ]

    def interactions(self, params: SweepParams) -> int:
        return len(chosen_questions(params)) * params.samples

    def key_parts(self, params: SweepParams, spec: PairSpec) -> dict[str, Any]:
        asked = [each.question.text for each in chosen_questions(params)]
        return {"questions": hashlib.sha256(json.dumps(asked).encode()).hexdigest()}

    def estimate(self, pair: PairSize, params: SweepParams) -> CostEstimate:
        # The base answers twice; every answer is then read by both models.
        answers = 3 * len(chosen_questions(params)) * params.samples
        generated = answers * params.max_new_tokens
        passes = -(-answers // 64) * (params.max_new_tokens + 2)
        return pair.cost(2 * generated, passes, generated_tokens=generated, bytes=20 * generated)
