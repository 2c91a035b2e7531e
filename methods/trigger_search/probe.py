"""How probable both models find the answers behind prefixes: the score of whole texts, and the gradients that say which
words to try next. Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.core.battery import Question, behind
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.methods.texts.prompts import question_request
from diffing_mcp.model_pairs.generation import GenerationRequest, answer_ids
from diffing_mcp.model_pairs.specs import Side

if TYPE_CHECKING:
    import torch

    from diffing_mcp.model_pairs.pair import LoadedPair

_MARK = "\ue000"
"""Stands for the words of a prefix while a prompt is rendered."""


@dataclass(frozen=True)
class Probe:
    """The questions and the answers that a pair is tried with."""

    pair: LoadedPair
    questions: Sequence[Question]
    answers: Sequence[str]

    def log_probs(
        self, side: Side, triggers: Sequence[str], questions: Sequence[Question], progress: Progress = silent
    ) -> np.ndarray:
        """Mean log-probability (nats) over the questions and answers of a whole answer behind each trigger [T].

        Raises:
            InvalidInput: an answer without tokens, or one that does not fit into the context after its prompt.
        """
        requests = [question_request(self.pair, behind(trigger, each)) for trigger in triggers for each in questions]
        asked = [(request, answer) for request in requests for answer in self.answers]
        scores = self.pair.answer_scores(side, asked, progress)
        if not all(each.tokens for each in scores) or any(each.cut for each in scores):
            raise InvalidInput("An answer has no tokens, or does not fit into the context after its prompt.")
        return np.array([each.log_prob for each in scores]).reshape(len(triggers), -1).mean(1)

    def gradients(self, prefixes: Sequence[Sequence[int]]) -> torch.Tensor:
        """Of the finetuned model's log-probability by the embeddings of each token of each prefix in front of the first
        question: [prefixes, tokens, d_model] float32, mean over answers. Prefixes are as many token ids each.
        """
        import torch

        head, tail, request = self._around_prefix()
        rows = [
            ([*head, *prefix, *tail], answer_ids(self.pair.tokenizer, request, [*head, *tail], answer))
            for prefix in prefixes
            for answer in self.answers
        ]
        place = slice(len(head), len(head) + len(prefixes[0]))
        found = torch.stack([each[place] for each in self.pair.answer_gradients("finetuned", rows)])
        return found.unflatten(0, (len(prefixes), len(self.answers))).mean(1)

    def _around_prefix(self) -> tuple[list[int], list[int], GenerationRequest]:
        """Token ids of the prompt before and after the words of a prefix."""
        request = question_request(self.pair, behind(as_trigger(_MARK), self.questions[0]))
        chat = request.messages is not None
        rendered = self.pair.render_chat(request.messages) if request.messages is not None else request.text or ""
        before, _, after = rendered.partition(_MARK)
        head, tail = (
            self.pair.tokenizer(text, add_special_tokens=special)["input_ids"]
            for text, special in ((before, not chat), (after, False))
        )
        return list(head), list(tail), request


def as_trigger(words: str) -> str:
    """Words as a sentence of their own before the question."""
    return f"{words}. {{prompt}}"
