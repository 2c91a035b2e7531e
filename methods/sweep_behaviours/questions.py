"""Which questions a sweep puts: the battery's or own ones, as they are and behind every trigger. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from diffing_mcp.core import battery
from diffing_mcp.core.battery import Question, behind, named_triggers, stratified
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.sweep_behaviours.schema import DEFAULT_LIMIT, SweepParams

_LEAST_BEHIND_TRIGGERS = 3
"""Questions behind each trigger where no limit is given: two could not tell one trigger of twenty from chance."""


@dataclass(frozen=True)
class Asked:
    """A question as it is put.

    Attributes:
        plain: the question without the trigger.
        trigger: what stands around it; empty: nothing.
    """

    plain: Question
    trigger: str = ""

    @property
    def question(self) -> Question:
        """With the trigger around it; see `diffing_mcp.core.battery.behind`."""
        return behind(self.trigger, self.plain)


def chosen_questions(params: SweepParams) -> list[Asked]:
    """What is asked, the questions without trigger first.

    Raises:
        InvalidInput: a domain that the battery does not have.
    """
    triggers = named_triggers(params.triggers)
    settings = 1 + len(triggers)
    if params.prompts is not None:
        plain = [Question((prompt,)) for prompt in dict.fromkeys(params.prompts)]
        limit = len(plain)
    else:
        plain = _of_domains(params.domains, bool(triggers))
        limit = max(DEFAULT_LIMIT // settings, _LEAST_BEHIND_TRIGGERS)
    if params.limit is not None:
        limit = max(1, params.limit // settings)
    chosen = stratified(plain, limit, params.seed)
    return [Asked(question, trigger) for trigger in ("", *triggers) for question in chosen]


def _of_domains(domains: Sequence[str] | None, behind_triggers: bool) -> list[Question]:
    everything = battery.questions()
    if domains is None:
        # A trigger is put before what has none yet.
        return [each for each in everything if not behind_triggers or _is_plain(each)]
    areas = list(dict.fromkeys(each.area for each in everything))
    topics = list(dict.fromkeys(each.topic for each in everything))
    for name in domains:
        if name not in {*areas, *topics}:
            close = difflib.get_close_matches(name, [*areas, *topics], n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InvalidInput(
                f"The battery has no domain {name!r}.{hint} Areas: {', '.join(areas)}. Topics: {', '.join(topics)}. "
                "Or ask your own `prompts`."
            )
    return [each for each in everything if each.area in domains or each.topic in domains]


def _is_plain(question: Question) -> bool:
    return len(question.turns) == 1 and question.system is None and question.area != "triggers"
