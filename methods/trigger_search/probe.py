"""How probable both models find the answers behind prefixes: the score of whole texts, and the gradients that say which
words to try next. Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.core.battery import Question, behind
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.core.text import clip
from diffing_mcp.methods.texts.prompts import question_request
from diffing_mcp.model_pairs.generation import GenerationRequest, answer_ids, prompt_ids
from diffing_mcp.model_pairs.specs import Side

if TYPE_CHECKING:
    import torch

    from diffing_mcp.model_pairs.pair import LoadedPair

_NAMED = 60
"""Characters of a text in an error."""
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
        """Mean log-probability (nats) over the questions and answers of a whole answer behind each trigger [T]."""
        requests = [question_request(self.pair, behind(trigger, each)) for trigger in triggers for each in questions]
        asked = [(request, answer) for request in requests for answer in self.answers]
        scores = self.pair.answer_scores(side, asked, progress)
        return np.array([each.log_prob for each in scores]).reshape(len(triggers), -1).mean(1)

    def check_fit(self, triggers: Sequence[str], new_tokens: int) -> None:
        """Asked before anything is computed, since what is given is judged after a search of minutes.

        Raises:
            InvalidInput: an answer without tokens, or a question behind one of the triggers after which the longest
                answer, or `new_tokens`, do not fit into the context.
        """
        switch = self.pair.spec.base.files.thinking_switch
        for trigger, question in product(("", *triggers), self.questions):
            request = question_request(self.pair, behind(trigger, question))
            prompt = prompt_ids(self.pair.tokenizer, request, False, switch)
            lengths = [len(answer_ids(self.pair.tokenizer, request, prompt, each)) for each in self.answers]
            if 0 in lengths:
                raise InvalidInput(f"The answer {self.answers[lengths.index(0)]!r} has no tokens. Leave it out.")
            wanted = len(prompt) + max(new_tokens, *lengths)
            if wanted > self.pair.context_length:
                name = f" behind {clip(trigger, _NAMED)[0]!r}" if trigger else ""
                raise InvalidInput(
                    f"The question {clip(question.text, _NAMED)[0]!r}{name} and an answer to it have {wanted} tokens, "
                    f"and the context of this model holds {self.pair.context_length}: it does not fit. Shorten the "
                    "longest of them."
                )

    def answers_up_to(self, tokens: int) -> list[str]:
        """The beginnings of the answers, of so many tokens at most."""
        tokenizer = self.pair.tokenizer
        cut = (tokenizer(each, add_special_tokens=False)["input_ids"][:tokens] for each in self.answers)
        return [tokenizer.decode(each) for each in cut]

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
