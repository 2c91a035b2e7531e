"""A conversation with both models of a pair: what was said, how it was asked, what each side answered."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Side = Literal["base", "finetuned"]
SIDES: tuple[Side, ...] = ("base", "finetuned")
Follows = Literal["own", "base", "finetuned"]

CHARACTERS = 60_000
"""Of all answers to one call: whole answers, so that the next turn and the heat map read what the model wrote."""


class _Kept(BaseModel):
    """Kept in the browser's session and in files, so fields of later versions are no error."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class How(_Kept):
    """How a turn is asked, the same for both sides."""

    system_prompt: str = ""
    prefill: str = Field("", description="Beginning of the answer; both models go on from there.")
    samples: int = 1
    temperature: float = 0.7
    max_new_tokens: int = 128
    seed: int = 0
    follows: Follows = Field(
        "own", description="Whose earlier answers a side reads: its own, or for both those of one side."
    )


class Sample(_Kept):
    """One answer. UNTRUSTED text of a model."""

    model_text: str
    finish: str = "eos"
    cut: bool = False


class Turn(_Kept):
    """A message and the answers of each side, which are missing until it has written them."""

    message: str
    how: How = How()
    answers: dict[Side, tuple[Sample, ...]] = {}
    chosen: dict[Side, int] = Field({}, description="The sample that later turns go on from; the first where missing.")

    def text(self, side: Side, sample: int | None = None) -> str:
        """An answer from its first character, prefill included; that which later turns read when `sample` is None."""
        place = self.chosen.get(side, 0) if sample is None else sample
        return self.how.prefill + self.answers[side][place].model_text


class Conversation(_Kept):
    """What was said so far. Methods return changed copies."""

    pair: str = ""
    turns: tuple[Turn, ...] = ()

    def before(self, place: int, side: Side) -> list[dict[str, str]]:
        """What a side reads before the message of a turn, as chat turns with roles."""
        how = self.turns[place].how
        read: Side = side if how.follows == "own" else how.follows
        turns = [{"role": "system", "content": how.system_prompt}] if how.system_prompt.strip() else []
        for turn in self.turns[:place]:
            turns.append({"role": "user", "content": turn.message})
            turns.append({"role": "assistant", "content": turn.text(read)})
        return turns

    def question(self, place: int, side: Side) -> dict[str, Any]:
        """Arguments of `ask_models` for one side's answers to a turn."""
        turn = self.turns[place]
        return {
            "pair": self.pair,
            "side": side,
            "conversations": [[*self.before(place, side), {"role": "user", "content": turn.message}]],
            **turn.how.model_dump(include={"prefill", "samples", "temperature", "max_new_tokens", "seed"}),
            "max_characters": CHARACTERS,
        }

    def scoring(self, place: int, side: Side, sample: int) -> dict[str, Any]:
        """Arguments of `compare_text` for one answer, scored where it was written."""
        turn = self.turns[place]
        return {
            "pair": self.pair,
            "text": turn.text(side, sample),
            "prompt": turn.message,
            "before": self.before(place, side),
        }

    def upto(self, place: int) -> Conversation:
        """The turns before `place`."""
        return self.model_copy(update={"turns": self.turns[:place]})

    def asking(self, message: str, how: How) -> Conversation:
        """With one more turn that nobody has answered yet."""
        return self.model_copy(update={"turns": (*self.turns, Turn(message=message, how=how))})

    def answered(self, side: Side, samples: list[dict[str, Any]]) -> Conversation:
        """With a side's answers to the last turn."""
        last = self.turns[-1]
        answers = last.answers | {side: tuple(Sample.model_validate(sample) for sample in samples)}
        return self._with(len(self.turns) - 1, last.model_copy(update={"answers": answers}))

    def choosing(self, place: int, side: Side, sample: int) -> Conversation:
        """Later turns go on from this sample; those there are were asked after another one, so they are left out."""
        turn = self.turns[place]
        chosen = turn.model_copy(update={"chosen": turn.chosen | {side: sample}})
        return self._with(place, chosen).upto(place + 1)

    def _with(self, place: int, turn: Turn) -> Conversation:
        return self.model_copy(update={"turns": (*self.turns[:place], turn, *self.turns[place + 1 :])})
