"""What can be said of many answers at once: their length, how they end, how many match a pattern. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from diffing_mcp.methods.texts.answer_form import Answer
from diffing_mcp.methods.texts.form import compare_form
from diffing_mcp.queries.counting import pattern_finder
from diffing_mcp.queries.schemas import SideName

LEAST_COMPARED = 6
"""Answers of each side from which on their form is compared: fewer cannot show a difference."""


class AnswerRates(BaseModel):
    """The answers of one side together."""

    side: SideName
    answers: int
    mean_tokens: float
    ended: float = Field(description="Share that the model ended by itself, not cut by max_new_tokens.")
    matching: int | None = Field(None, description="Answers that match count_pattern.")

    def as_text(self) -> str:
        """In one line."""
        matching = "" if self.matching is None else f", {self.matching}/{self.answers} match the pattern"
        return (
            f"{self.side}: {self.answers} answers of {self.mean_tokens:.3g} tokens on average, {self.ended:.0%} ended "
            f"by themselves{matching}"
        )


def answer_rates(completions: Mapping[SideName, list[list[Any]]], pattern: str | None) -> list[AnswerRates]:
    """One row a side.

    Raises:
        InvalidInput: the pattern is none, or takes too long.
    """
    find = pattern_finder(pattern) if pattern is not None else None
    rows = []
    for side, lists in completions.items():
        flat = [completion for samples in lists for completion in samples]
        rows.append(
            AnswerRates(
                side=side,
                answers=len(flat),
                mean_tokens=sum(each.tokens for each in flat) / len(flat),
                ended=sum(each.finish == "eos" for each in flat) / len(flat),
                matching=None if find is None else sum(find(each.text) is not None for each in flat),
            )
        )
    return rows


def form_lines(completions: Mapping[SideName, list[list[Any]]]) -> str:
    """What differs in form between both sides' answers; empty for one side, or too few answers. It quotes models."""
    if len(completions) < 2 or sum(map(len, completions["base"])) < LEAST_COMPARED:
        return ""

    def answers(lists: Sequence[Sequence[Any]]) -> list[list[Answer]]:
        return [[Answer(each.text, each.finish == "eos", each.tokens) for each in samples] for samples in lists]

    return compare_form(answers(completions["base"]), answers(completions["finetuned"])).as_text(4)
