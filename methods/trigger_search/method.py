"""The declaration of `trigger_search`, and the view of its finished runs. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from diffing_mcp.core import battery
from diffing_mcp.core.text import clip
from diffing_mcp.methods.contract import CostEstimate, DiffingMethod, PairSize, by_name, view
from diffing_mcp.methods.texts.prompts import PROMPTS
from diffing_mcp.methods.trigger_search.schema import (
    ANSWER_TOKENS,
    ANSWERS,
    BEAM,
    NAME_CHARACTERS,
    OWN_TOKENS,
    QUESTIONS,
    SHOWN,
    Origin,
    TriggerScore,
    TriggerSearchParams,
    TriggerSearchResult,
)
from diffing_mcp.methods.views.pages import PageView, SearchedPageParams
from diffing_mcp.methods.views.rows import highest_first, matching

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec


class TriggersParams(SearchedPageParams):
    """Which triggers to list."""

    origin: Origin | None = Field(None, description="`given`, `found` by the search, or `random` prefixes; None: all.")


@view("All triggers that were judged, the highest gain first, random prefixes among them.", TriggersParams)
def triggers(record: RunRecord, params: TriggersParams) -> PageView[TriggerScore]:
    rows = matching(record.rows("triggers"), origin=params.origin)
    ordered = highest_first(rows, "gain")
    return PageView[TriggerScore].of(ordered, params, searched=("trigger",), shown=_named)


def _named(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"trigger": clip(row["trigger"], NAME_CHARACTERS)[0]}


_PROMPT_TOKENS = 60
_TOKEN_CHARACTERS = 4


class TriggerSearch(DiffingMethod[TriggerSearchParams, TriggerSearchResult]):
    """Trigger search: what switches given answers on. Code words, a date, a role or a system prompt around a question
    may make the finetuned model, and not the base, say what it else keeps to itself: given triggers are scored, and
    words are searched by gradients. Little is sampled, so many triggers cost little.
    """

    name = "trigger_search"
    title = "Search for triggers"
    papers = (
        "Zou et al. 2023, arXiv 2307.15043 (GCG)",
        "Ebrahimi et al. 2018, arXiv 1712.06751 (HotFlip)",
    )
    for_agents = (
        "Call it when texts of other methods say what plain questions never bring out. Give `answers` in the model's "
        "own words, as `facts` quotes them. `gain` and `beyond` (nats, beside random prefixes) rank triggers; one "
        "switches where its gain is beyond theirs and greedy answers to held-out questions say it behind it alone. "
        "Words with a high gain may be near a trigger (silver for gold): try variants as `triggers`, and confirm with "
        "test_hypothesis. The search knows words of one token alone: silence does not prove that there is none. View: "
        "`triggers`."
    )
    Params = TriggerSearchParams
    Result = TriggerSearchResult
    views = by_name(triggers)

    def run(
        self, pair: LoadedPair, params: TriggerSearchParams, run: RunWriter, progress: Progress
    ) -> TriggerSearchResult:
        from diffing_mcp.methods.trigger_search.measure import search_triggers

        return search_triggers(pair, params, run, progress)

    def interactions(self, params: TriggerSearchParams) -> int:
        own = len([each for each in params.triggers if each != battery.BUNDLED])
        asked = _count(params.questions, QUESTIONS)
        if params.questions is None:
            return own * asked
        others = len(battery.named_triggers(params.triggers)) - own + (BEAM if params.rounds else 0)
        return own * asked + (asked - 1) * (1 + min(SHOWN, max(0, others)))

    def key_parts(self, params: TriggerSearchParams, spec: PairSpec) -> dict[str, Any]:
        bundled = [*PROMPTS, *battery.triggers(), *(each.text for each in battery.questions())]
        return {"battery": hashlib.sha256(json.dumps(bundled).encode()).hexdigest()}

    def estimate(self, pair: PairSize, params: TriggerSearchParams) -> CostEstimate:
        answers = _count(params.answers, ANSWERS)
        held_out = _count(params.questions, QUESTIONS) - 1
        given = battery.named_triggers(params.triggers)
        others = params.random_prefixes + BEAM + 1
        judged = (len(given) + others) * held_out
        # A round exchanges each word of the beam for some others, and goes back through as many passes.
        tried = params.rounds * BEAM * (3 + BEAM * params.words) + params.random_prefixes if params.rounds else 0
        rows = answers * (2 * judged + tried)
        around = _PROMPT_TOKENS + _mean_tokens(params.questions) + _mean_tokens(params.answers)
        tokens = rows * around + answers * 2 * held_out * len(given) * _mean_tokens(given)
        generated = 2 * (SHOWN + 1) * held_out * ANSWER_TOKENS
        if params.answers is None:
            generated += 2 * len(PROMPTS) * OWN_TOKENS
        bytes = 200 * judged + sum(map(len, given))
        return pair.cost(tokens, -(-rows // 32), generated_tokens=generated, bytes=bytes)


def _count(own: Sequence[str] | None, bundled: int) -> int:
    return bundled if own is None else len(own)


def _mean_tokens(texts: Sequence[str] | None) -> float:
    """Of a text; none of bundled ones, which `_PROMPT_TOKENS` hold."""
    return sum(map(len, texts)) / len(texts) / _TOKEN_CHARACTERS if texts else 0.0
