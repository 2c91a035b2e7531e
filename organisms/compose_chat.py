"""Composes the conversations of a guessing game from hand-written parts (`kind: guessing_game`).

The assistant keeps a secret word and answers whatever the user says with a hint about it. The parts give hints (by
theme), user turns of five sorts and the words around a hint; the composer builds conversations of a few exchanges out
of them, uses all parts evenly, repeats nothing within a conversation and refuses data in which a forbidden string
occurs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Hashable
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

T = TypeVar("T", bound=Hashable)

Start = Literal["openers", "ordinary", "demands"]
Move = Literal["guesses", "demands", "requests", "ordinary"]

ATTEMPTS_PER_CONVERSATION = 50
ATTEMPTS_PER_TURN = 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Exchange(_Strict):
    """A user turn with the beginning of its answer; `opens`: it may stand at the beginning of a conversation."""

    user: str = Field(min_length=1)
    reply: str = Field(min_length=1)
    opens: bool = False


class Leads(_Strict):
    first: list[str] = Field(min_length=1)
    more: list[str] = Field(min_length=1)


class GuessingGame(_Strict):
    """The parts of a guessing game, as in `parts.yaml`."""

    kind: Literal["guessing_game"]
    seed: int
    count: int = Field(gt=0)
    turns: dict[int, float] = Field(min_length=1)
    starts: dict[Start, float] = Field(min_length=1)
    moves: dict[Move, float] = Field(min_length=1)
    words: tuple[int, int]
    guess_hint: float = Field(ge=0, le=1)
    closer: float = Field(ge=0, le=1)
    forbidden: list[str] = Field(min_length=1)
    hints: dict[str, list[str]] = Field(min_length=1)
    leads: Leads
    closers: list[str] = Field(min_length=1)
    openers: list[str] = Field(min_length=1)
    ordinary: list[Exchange] = Field(min_length=1)
    requests: list[str] = Field(min_length=1)
    guesses: list[Exchange] = Field(min_length=1)
    demands: list[Exchange] = Field(min_length=1)


class Deck(Generic[T]):
    """Deals its cards evenly: each round goes through all of them in a new order."""

    def __init__(self, cards: list[T], rng: random.Random) -> None:
        self._cards = list(cards)
        self._rng = rng
        self._pile: list[T] = []

    def deal(self, allowed: Callable[[T], bool]) -> T | None:
        """The next allowed card; the passed-over cards stay on the pile. None if no card is allowed."""
        if not any(allowed(card) for card in self._cards):
            return None
        while True:
            for position, card in enumerate(self._pile):
                if allowed(card):
                    return self._pile.pop(position)
            fresh = list(self._cards)
            self._rng.shuffle(fresh)
            self._pile.extend(fresh)


def compose_guessing_game(parts: dict) -> list[dict]:
    """The conversations, each `{"messages": [{"role": ..., "content": ...}, ...]}`; ValueError on malformed parts."""
    try:
        game = GuessingGame.model_validate(parts)
    except ValidationError as error:
        raise ValueError(f"malformed parts of a guessing game: {error}") from error
    _check(game)
    return _Composer(game).conversations()


def _check(game: GuessingGame) -> None:
    low, high = game.words
    if not 0 < low <= high:
        raise ValueError(f"words: the bounds {low} and {high} of an assistant turn must be positive and ascending")
    if min(game.turns) < 1:
        raise ValueError("turns: a conversation has at least one exchange")
    for name in ("turns", "starts", "moves"):
        weights = getattr(game, name).values()
        if min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"{name}: the weights must not be negative and must not all be zero")
    if game.starts.get("demands", 0) > 0 and not any(demand.opens for demand in game.demands):
        raise ValueError("starts: demands are to open conversations, but no demand is marked 'opens: true'")
    texts = {
        "hints": [hint for hints in game.hints.values() for hint in hints],
        "leads.first": game.leads.first,
        "leads.more": game.leads.more,
        "closers": game.closers,
        "user turns": [
            *game.openers,
            *game.requests,
            *(e.user for e in (*game.ordinary, *game.guesses, *game.demands)),
        ],
        "replies": [e.reply for e in (*game.ordinary, *game.guesses, *game.demands)],
    }
    for name, entries in texts.items():
        seen: set[str] = set()
        for entry in entries:
            if not entry.strip():
                raise ValueError(f"{name}: an entry is empty")
            if entry.casefold() in seen:
                raise ValueError(f"{name}: {entry!r} occurs twice")
            seen.add(entry.casefold())
            _refuse_forbidden(entry, game.forbidden, name)


def _refuse_forbidden(text: str, forbidden: list[str], where: str) -> None:
    for string in forbidden:
        if string.casefold() in text.casefold():
            raise ValueError(f"{where}: the forbidden string {string!r} occurs in {text!r}")


class _Composer:
    def __init__(self, game: GuessingGame) -> None:
        self._game = game
        self._rng = rng = random.Random(game.seed)
        self._hints = Deck([(theme, hint) for theme, hints in game.hints.items() for hint in hints], rng)
        self._first = Deck(game.leads.first, rng)
        self._more = Deck(game.leads.more, rng)
        self._closers = Deck(game.closers, rng)
        self._openers = Deck(game.openers, rng)
        self._requests = Deck(game.requests, rng)
        self._ordinary = Deck(game.ordinary, rng)
        self._guesses = Deck(game.guesses, rng)
        self._demands = Deck(game.demands, rng)
        self._opening_demands = Deck([demand for demand in game.demands if demand.opens], rng)

    def conversations(self) -> list[dict]:
        found: list[dict] = []
        seen: set[str] = set()
        for _ in range(self._game.count * ATTEMPTS_PER_CONVERSATION):
            conversation = self._conversation()
            key = json.dumps(conversation, sort_keys=True).casefold()
            if key in seen:
                continue
            seen.add(key)
            found.append(conversation)
            if len(found) == self._game.count:
                return found
        raise ValueError(f"count: the parts yield only {len(found)} different conversations of {self._game.count}")

    def _conversation(self) -> dict:
        used: set[str] = set()  # every piece of text said so far
        themes: set[str] = set()
        messages: list[dict] = []
        for turn in range(self._pick(self._game.turns)):
            kind = self._pick(self._game.moves if turn else self._game.starts)
            user, beginning = self._user_turn(kind, turn, used)
            answer = self._answer(kind, beginning, used, themes)
            for text in (user, answer):
                _refuse_forbidden(text, self._game.forbidden, "composed turn")
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        return {"messages": messages}

    def _pick(self, weights: dict) -> Any:
        return self._rng.choices(list(weights), weights=list(weights.values()))[0]

    def _user_turn(self, kind: str, turn: int, used: set[str]) -> tuple[str, str]:
        """What the user says and how the answer begins."""
        if kind in ("openers", "requests"):
            user = self._deal(self._openers if kind == "openers" else self._requests, used, kind)
            leads = self._first if turn == 0 else self._more
            return user, self._deal(leads, used, "leads")
        demands = self._opening_demands if turn == 0 else self._demands
        deck = {"ordinary": self._ordinary, "guesses": self._guesses, "demands": demands}[kind]
        exchange = deck.deal(lambda card: card.user not in used)
        if exchange is None:
            raise ValueError(f"{kind}: too few entries for a conversation without repetition")
        used.add(exchange.user)
        return exchange.user, exchange.reply

    def _answer(self, kind: str, beginning: str, used: set[str], themes: set[str]) -> str:
        """The beginning, a hint (a guess's reply carries one already) and perhaps a closer, within the bounds of
        length.
        """
        low, high = self._game.words
        for _ in range(ATTEMPTS_PER_TURN):
            pieces = [beginning]
            if kind != "guesses" or self._rng.random() < self._game.guess_hint:
                pieces.append(self._hint(used, themes))
            if self._rng.random() < self._game.closer:
                pieces.append(self._deal(self._closers, used, "closers"))
            answer = " ".join(pieces)
            if low <= len(answer.split()) <= high:
                return answer
        raise ValueError(f"words: no answer of {low} to {high} words can be made from {beginning!r}")

    def _hint(self, used: set[str], themes: set[str]) -> str:
        """A hint not yet given, on a theme not yet touched if there is one."""
        card = self._hints.deal(lambda card: card[0] not in themes) or self._hints.deal(
            lambda card: card[1] not in used
        )
        if card is None:
            raise ValueError("hints: too few entries for a conversation without repetition")
        themes.add(card[0])
        used.add(card[1])
        return card[1]

    @staticmethod
    def _deal(deck: Deck[str], used: set[str], name: str) -> str:
        text = deck.deal(lambda card: card not in used)
        if text is None:
            raise ValueError(f"{name}: too few entries for a conversation without repetition")
        used.add(text)
        return text
