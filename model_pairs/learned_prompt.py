"""Learned tokens in front of every text (prompt tuning, p-tuning, prefix tuning)."""

from __future__ import annotations

import copy
from typing import Any

import torch


class LearnedPrompt:
    """Keys and values of learned tokens in front of every text (prompt tuning, p-tuning, prefix tuning), put into each
    pass that starts a text.

    Positions, masks and hidden states of a caller are those of the text alone.
    """

    def __init__(self, cache: Any, tokens: int, kind: str) -> None:
        self.cache, self.tokens, self.kind = cache, tokens, kind

    def __call__(
        self, module: Any, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The hook before the model's forward."""
        if arguments:
            named, arguments = {"input_ids": arguments[0], **named}, ()
        ids, mask, past = named["input_ids"], named.get("attention_mask"), named.get("past_key_values")
        if past is None or past.get_seq_length() == 0:
            past = copy.deepcopy(self.cache)
            past.batch_repeat_interleave(ids.shape[0])
        named = {**named, "past_key_values": past}
        if mask is not None:
            named["attention_mask"] = torch.cat([mask.new_ones(mask.shape[0], self.tokens), mask], dim=1)
        if named.get("position_ids") is not None:
            named["position_ids"] = named["position_ids"] + self.tokens
        return arguments, named
