"""Beginnings of sentences and how both models go on. Torch-free."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field, model_validator

from diffing_mcp.queries.schemas import Prompts, Query


class SlotsQuery(Query):
    """Beginnings to complete, and how far."""

    beginnings: Prompts = Field(
        min_length=1,
        max_length=32,
        description="They break off where the detail stands: `Experts store it at a temperature of`.",
    )
    prompt: str | None = Field(
        None,
        min_length=1,
        max_length=20_000,
        description="Beginnings then start the chat answer to this message.",
    )
    tokens: int = Field(5, ge=1, le=12, description="Of a phrase.")
    top: int = Field(4, ge=1, le=20, description="Shown of each kind.")

    @model_validator(mode="after")
    def _beginnings_have_text(self) -> Self:
        if any(not beginning.strip() for beginning in self.beginnings):
            raise ValueError("a beginning is empty; write the words that the models shall go on from")
        return self

    @property
    def interactions(self) -> int:
        """One a beginning."""
        return len(self.beginnings)


class SlotContinuation(BaseModel):
    """A continuation under both models. `text` is untrusted."""

    text: str = Field(description="UNTRUSTED: the next word, or a phrase.")
    base: float = Field(description="Probability under base.")
    finetuned: float
    log_ratio: float = Field(description="ln(finetuned / base); positive: the finetune raised it.")

    def as_text(self) -> str:
        """`"text" 0.02->0.41 (x20)`, before and after the finetune."""
        from math import exp

        factor = exp(min(abs(self.log_ratio), 25))
        times = f"{'x' if self.log_ratio > 0 else '/'}{factor:.2g}" if factor >= 1.05 else "="
        return f"{self.text!r} {self.base:.2g}->{self.finetuned:.2g} ({times})"


class Slot(BaseModel):
    """How both models go on after one beginning."""

    beginning: str
    moved: float = Field(
        description="Total variation distance of the next-token distributions: 0 the same, 1 nothing in common."
    )
    next_words: list[SlotContinuation] = Field(
        description="Single tokens (case and space merged), most probable under either model first."
    )
    phrases: list[SlotContinuation] = Field(description="Likely phrases of either model, most probable first.")
    raised: list[SlotContinuation] = Field(description="Words and phrases that the finetune raised, most added first.")
    lowered: list[SlotContinuation] = Field(description="That it lowered, most taken away first.")


class SlotsResult(BaseModel):
    """Continuations of every beginning, in the order asked."""

    slots: list[Slot]
