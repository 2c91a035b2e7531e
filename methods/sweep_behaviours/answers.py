"""The answers of a sweep, and how they are stored. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from diffing_mcp.core.text import clip
from diffing_mcp.methods.sweep_behaviours.questions import Asked
from diffing_mcp.methods.sweep_behaviours.schema import BothAnswers
from diffing_mcp.methods.texts.answer_form import Answer

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter

Writer = Literal["base", "base again", "finetuned"]
WRITERS: tuple[Writer, ...] = ("base", "base again", "finetuned")
ANSWERS = "answers"
"""Name of the stored table: a row a question, writer and sample."""


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer, with its mean log-probability under both models, nats a token; NaN for an empty one."""

    text: str
    ended: bool
    tokens: int
    base: float
    finetuned: float


@dataclass(frozen=True)
class Answered:
    """A question with the answers of the base, of the base once more, and of the finetuned model."""

    asked: Asked
    replies: dict[Writer, list[ScoredAnswer]]

    @property
    def unexpected(self) -> float:
        """How much less than the finetuned model the base expects the finetuned answers, nats a token. Any further
        training raises it.
        """
        return _mean([reply.finetuned - reply.base for reply in self.replies["finetuned"]])

    @property
    def excess(self) -> float:
        """How much less the base expects the finetuned answers than its own, drawn with the same random numbers, nats a
        token.
        """
        return self._less_expected("finetuned", "base")

    @property
    def sampling(self) -> float:
        """How much less the base expects one sample of its own answers than another: what chance gives."""
        return self._less_expected("base again", "base")

    def answers(self, writer: Writer) -> list[Answer]:
        """For the digest of form."""
        return [Answer(reply.text, reply.ended, reply.tokens) for reply in self.replies[writer]]

    def example(self, characters: int) -> BothAnswers:
        """The first answers, in one line each and cut."""
        base, finetuned = (
            clip(" ".join(self.replies[writer][0].text.split()), characters)[0] for writer in ("base", "finetuned")
        )
        return BothAnswers(question=clip(self.asked.question.text, characters)[0], base=base, finetuned=finetuned)

    def _less_expected(self, writer: Writer, than: Writer) -> float:
        """0 where one of them wrote nothing: an empty answer has no mean to compare."""
        written, usual = (_known([reply.base for reply in self.replies[each]]) for each in (writer, than))
        return _mean(usual) - _mean(written) if written and usual else 0.0


def _mean(values: Sequence[float]) -> float:
    """Without those of empty answers; 0 where all are empty."""
    known = _known(values)
    return float(np.mean(known)) if known else 0.0


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not np.isnan(value)]


def store(run: RunWriter, answered: Sequence[Answered], clusters: Sequence[Sequence[int]]) -> None:
    """Write the table of all answers."""
    rows = [
        {
            "index": index,
            "area": each.asked.plain.area,
            "topic": each.asked.plain.topic,
            "trigger": each.asked.trigger,
            "question": each.asked.question.text,
            "writer": writer,
            "sample": sample,
            "text": reply.text,
            "ended": reply.ended,
            "tokens": reply.tokens,
            "log_prob_base": reply.base,
            "log_prob_finetuned": reply.finetuned,
            "unexpected": each.unexpected,
            "clusters": list(clusters[index]),
        }
        for index, each in enumerate(answered)
        for writer in WRITERS
        for sample, reply in enumerate(each.replies[writer])
    ]
    run.add_table(ANSWERS, {name: [row[name] for row in rows] for name in rows[0]})
