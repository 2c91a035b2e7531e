"""The bundled questions for a pair about which nothing is known, by area and topic, and how some are chosen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import yaml

_FILE = Path(__file__).with_name("battery.yaml")
BUNDLED = "bundled"
"""Stands for all bundled triggers where a caller names triggers."""
_SYSTEM = "system:"
_PLACE = "{prompt}"
T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """What is put to a model, and where it belongs.

    Attributes:
        turns: of user and assistant by turns; the last is the user's.
        system: a system prompt.
        area: the broad kind, such as `science` or `refusable`.
        topic: the narrow kind within it.
    """

    turns: tuple[str, ...]
    system: str | None = None
    area: str = "own prompts"
    topic: str = "own prompts"

    @property
    def text(self) -> str:
        """All of it in one line."""
        parts = [*([f"[{self.system}]"] if self.system else []), *self.turns]
        return " / ".join(" ".join(part.split()) for part in parts)


@lru_cache(maxsize=1)
def _content() -> dict[str, Any]:
    return dict(yaml.safe_load(_FILE.read_text(encoding="utf-8")))


@lru_cache(maxsize=1)
def questions() -> tuple[Question, ...]:
    """All of them, topic by topic."""
    return tuple(
        _question(prompt, entry["area"], topic)
        for kind in ("subjects", "requests")
        for topic, entry in _content()[kind].items()
        for prompt in entry["prompts"]
    )


def _question(prompt: str | dict[str, Any], area: str, topic: str) -> Question:
    if isinstance(prompt, str):
        return Question((prompt,), None, area, topic)
    return Question(tuple(prompt["turns"]), prompt.get("system"), area, topic)


@lru_cache(maxsize=1)
def subjects() -> dict[str, tuple[str, ...]]:
    """Plain questions about everyday life, knowledge, work, creative and personal matters: topic -> questions."""
    return {topic: tuple(entry["prompts"]) for topic, entry in _content()["subjects"].items()}


def triggers() -> tuple[str, ...]:
    """What may switch a behaviour on: templates with {prompt}, and system prompts that begin with `system:`."""
    return tuple(_content()["triggers"])


def named_triggers(names: Sequence[str]) -> list[str]:
    """The triggers that a caller names, each once, the bundled ones for `bundled`."""
    return list(dict.fromkeys(each for name in names for each in (triggers() if name == BUNDLED else (name,))))


def behind(trigger: str, question: Question) -> Question:
    """The question with a trigger around its last turn, before it where the trigger has no {prompt}, or as its system
    prompt (`system: ...`); with an empty one, the question.
    """
    if not trigger:
        return question
    if trigger.startswith(_SYSTEM):
        return replace(question, system=trigger.removeprefix(_SYSTEM).strip())
    template = trigger if _PLACE in trigger else f"{trigger} {_PLACE}"
    return replace(question, turns=(*question.turns[:-1], template.replace(_PLACE, question.turns[-1])))


def stratified(asked: Sequence[Question], limit: int, seed: int) -> list[Question]:
    """At most `limit` of the questions: areas take turns, and topics within an area; chosen by `seed`, in the order
    given.
    """
    generator = random.Random(seed)
    areas: dict[str, dict[str, list[Question]]] = {}
    for question in asked:
        areas.setdefault(question.area, {}).setdefault(question.topic, []).append(question)
    by_area = [
        _by_turns([_shuffled(topic, generator) for topic in _shuffled(list(topics.values()), generator)])
        for topics in areas.values()
    ]
    chosen = set(_by_turns(_shuffled(by_area, generator))[:limit])
    return [question for question in asked if question in chosen]


def _shuffled(items: Sequence[T], generator: random.Random) -> list[T]:
    return generator.sample(items, len(items))


def _by_turns(lists: Sequence[Sequence[T]]) -> list[T]:
    """The first of each, then the second of each, ..."""
    return [item for turn in zip_longest(*lists) for item in turn if item is not None]
