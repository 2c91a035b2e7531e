"""The arms of an evaluation: what an investigator may use, and the controls that say what the tools are worth.

blackbox        questions to the models only
method          everything
method:kl+pca   the questions, and these methods alone
placebo         as `method`, but the diffing methods look at another pair of the evaluation: what an investigator
                makes of results that say nothing about the pair it talks to
cheat           as `method`, by a program (whoever investigates in the other arms) that looks for the answer where it
                must not be: in names, errors, schemas, resources and paths. It must find nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator

from diffing_mcp.core.errors import InvalidInput

BLACKBOX, METHOD, PLACEBO, CHEAT = "blackbox", "method", "placebo", "cheat"
ARMS = (BLACKBOX, METHOD, PLACEBO, CHEAT)
_SOME_METHODS = re.compile(rf"{METHOD}:([a-z0-9_]+(?:\+[a-z0-9_]+)*)")


def check_arm(arm: str) -> str:
    """The arm itself.

    Raises:
        ValueError: there is no such arm.
    """
    if arm in ARMS or _SOME_METHODS.fullmatch(arm):
        return arm
    raise ValueError(f"There is no arm {arm!r}; arms: {', '.join(ARMS)}, or {METHOD}:NAME+NAME with names of methods.")


Arm = Annotated[str, AfterValidator(check_arm)]


def chosen_arms(text: str) -> list[str]:
    """A comma-separated list of arms, in order and without duplicates.

    Raises:
        InvalidInput: none, or one that does not exist.
    """
    try:
        chosen = list(dict.fromkeys(check_arm(part.strip()) for part in text.split(",") if part.strip()))
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    if not chosen:
        raise InvalidInput(f"Name at least one arm: {', '.join(ARMS)}, or {METHOD}:NAME.")
    return chosen


def tools_of(arm: str) -> str:
    """What `open_investigation` is to allow: a tool set, and names of tools."""
    if some := _SOME_METHODS.fullmatch(arm):
        return ",".join([BLACKBOX, "overview", "view_run", *some[1].split("+")])
    return BLACKBOX if arm == BLACKBOX else METHOD


def decoy_of(arm: str, organism: str, organisms: Sequence[str], repeat: int) -> str | None:
    """The pair that a placebo's methods look at: those of the other organisms of the evaluation by turns, repeat by
    repeat. A variant of the same organism would show what it was taught. None for all other arms.

    Raises:
        InvalidInput: there is no other organism.
    """
    if arm != PLACEBO:
        return None
    others = [other for other in organisms if organism_of(other) != organism_of(organism)]
    if not others:
        raise InvalidInput(
            "The placebo arm shows the methods' results on another organism: name at least two, not variants of one."
        )
    place = list(organisms).index(organism)
    return others[(place + repeat) % len(others)]


def organism_of(reference: str) -> str:
    """The organism in `organism[/variant][@model]`."""
    return reference.partition("@")[0].partition("/")[0]
