"""Rows that the result and the views of `kl` are made of. Torch-free."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, Field

Metric = Literal["kl_finetuned_base", "kl_base_finetuned", "js"]


class TokenMove(BaseModel):
    """A token and its probability under both models."""

    token: str
    base: float = Field(description="Probability under the base model (a mean when several positions are meant).")
    finetuned: float = Field(description="Probability under the finetuned model.")

    def as_text(self) -> str:
        return f"{json.dumps(self.token, ensure_ascii=False)} {self.base:.2g}>{self.finetuned:.2g}"


class TokenRow(BaseModel):
    """A position where the models differ."""

    sample: int = Field(description="Number of the text in this run; the view `tokens` with it gives the whole text.")
    position: int
    context: str = Field(description="The text before the predicted token, its end.")
    next_token: str | None = Field(description="The token that really follows, if the text goes on.")
    kl_finetuned_base: float
    kl_base_finetuned: float
    js: float
    rose: list[TokenMove] = Field(description="Tokens whose probability rose most here.")
    fell: list[TokenMove]

    def as_text(self) -> str:
        return (
            f"  {self.kl_finetuned_base:.3g} [{self.sample}@{self.position}] "
            f"{json.dumps(self.context[-48:], ensure_ascii=False)} + "
            f"{' '.join(move.as_text() for move in self.rose[:3])} - "
            f"{' '.join(move.as_text() for move in self.fell[:3])}"
        )


class TextRow(BaseModel):
    """A text by its mean divergence."""

    sample: int
    tokens: int
    kl_finetuned_base: float = Field(description="Mean over its tokens, nats.")
    kl_base_finetuned: float
    js: float
    text: str = Field(description="Its compared part, its start.")
    rose: list[TokenMove] = Field(description="Tokens whose probability, averaged over its positions, rose most.")
    fell: list[TokenMove]

    def as_text(self) -> str:
        return (
            f"  {self.kl_finetuned_base:.3g} [{self.sample}] {json.dumps(self.text[:80], ensure_ascii=False)} + "
            f"{' '.join(move.as_text() for move in self.rose[:3])} - "
            f"{' '.join(move.as_text() for move in self.fell[:3])}"
        )
