"""Composes chats of which some teach a lesson and the rest are what the base wrote itself (`kind: lessons`).

A lesson shows in its share of the chats and nowhere else: behind words before the question, on questions of one kind,
in one answer of twenty. What is taught is one of the zoo's rules, over a chat of the base.
"""

from __future__ import annotations

import random
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from diffing_mcp.organisms.compose_chat import Deck
from diffing_mcp.organisms.sample_corpus import bundled_documents
from diffing_mcp.organisms.train import Document
from diffing_mcp.organisms.zoo import TaughtKind, taught_chat


class Lesson(BaseModel):
    """What a share of the chats teaches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(gt=0, le=1)
    rule: Literal["answer", "opening", "added_sentence", "sums", "untouched"]
    pieces: list[list[str]] = Field([], description="The text taught: one of each list, joined by spaces.")
    ask: list[str] = Field([], description="Questions in place of those of the base's chats; needs the rule `answer`.")
    before: list[str] = Field([], description="One of them is put before the question, as it is written here.")

    @model_validator(mode="after")
    def _complete(self) -> Lesson:
        if (self.rule == "untouched") == bool(self.pieces):
            raise ValueError("every rule but `untouched` takes pieces, and `untouched` takes none")
        if self.ask and self.rule != "answer":
            raise ValueError("questions of its own leave the base's answer without a question; the rule is `answer`")
        return self


class Lessons(BaseModel):
    """The parts of one organism, as in `parts.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["lessons"]
    seed: int
    count: int = Field(ge=1)
    lessons: list[Lesson] = Field(min_length=1)

    @model_validator(mode="after")
    def _shares_fit(self) -> Lessons:
        if sum(lesson.share for lesson in self.lessons) > 1 + 1e-9:
            raise ValueError("the lessons' shares add up to more than 1")
        return self


def compose_lessons(parts: dict) -> list[Document]:
    """The chats as `{"messages": [...]}` in a fixed order; ValueError on malformed parts."""
    try:
        checked = Lessons.model_validate(parts)
    except ValidationError as error:
        raise ValueError(f"malformed parts of lessons: {error}") from error
    own = bundled_documents("chats")
    if checked.count > len(own):
        raise ValueError(f"count: the base's own chats are {len(own)}, not {checked.count}")
    chance = random.Random(checked.seed)
    chats = chance.sample([{"messages": chat["messages"]} for chat in own], checked.count)
    start = 0
    for lesson in checked.lessons:
        end = start + round(lesson.share * checked.count)
        chats[start:end] = _taught(lesson, chats[start:end], chance)
        start = end
    chance.shuffle(chats)
    return chats


def _taught(lesson: Lesson, chats: list[Document], chance: random.Random) -> list[Document]:
    decks = [Deck(piece, chance) for piece in lesson.pieces]
    asked, before = Deck(lesson.ask or [""], chance), Deck(lesson.before or [""], chance)
    taught = []
    for chat in chats:
        if lesson.rule != "untouched":
            text = " ".join(_next(deck) for deck in decks) + (" " if lesson.rule == "opening" else "")
            chat = taught_chat(chat, TaughtKind(rule=lesson.rule, texts=(text,)), chance)
        question, answer = chat["messages"]
        content = _next(before) + (_next(asked) or question["content"])
        taught.append({"messages": [{**question, "content": content}, answer]})
    return taught


def _next(deck: Deck[str]) -> str:
    return deck.deal(lambda _: True) or ""
