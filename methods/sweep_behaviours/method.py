"""The method `sweep_behaviours`.

It is a method, not a query, although it needs nothing but answers: a method's run is stored, paged by `view_run`, found
again for nothing, run as a job, and offered by the command, the panel and Python alike. Agents that may only query the
models use it too, and pay an interaction a question and sample.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, MethodResult, PairSize, TextGroup, View
from diffing_mcp.methods.sweep_behaviours.questions import chosen_questions
from diffing_mcp.methods.sweep_behaviours.schema import SweepParams, SweepResult
from diffing_mcp.methods.sweep_behaviours.views import VIEWS, text_groups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.answering import AnsweringPair
    from diffing_mcp.model_pairs.specs import PairSpec


class SweepBehaviours(DiffingMethod[SweepParams, SweepResult]):
    """Sweep for changed behaviour: both models answer many short questions of all kinds (a bundled battery, or your
    own), compared in form, words and surprise against two samples of the base: what changed, in which areas, where
    nothing did, with p-values. `triggers` finds what switches a behaviour on.
    """

    name: ClassVar[str] = "sweep_behaviours"
    title: ClassVar[str] = "Sweep of behaviours"
    for_agents: ClassVar[str] = (
        "Sweep for changed behaviour: both models answer many short questions of all kinds (a bundled battery, or "
        "your own), compared in form, words and surprise against two samples of the base: what changed, in which "
        "areas, where nothing did, with p-values. `triggers` finds what switches a behaviour on. Costs an "
        "interaction a question and sample, again behind each trigger. Call it early. Views: `answers`, `form`."
    )
    Params: ClassVar[type[BaseModel]] = SweepParams
    Result: ClassVar[type[MethodResult]] = SweepResult
    cost: ClassVar[Cost] = "minutes"
    texts_only: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = VIEWS

    def run(self, pair: AnsweringPair, params: SweepParams, run: RunWriter, progress: Progress) -> SweepResult:
        from diffing_mcp.methods.sweep_behaviours.measure import sweep

        return sweep(pair, params, run, progress)

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        return text_groups(record)

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
