"""The references' side of a comparison: a pair read by transformers and peft alone, text by text, in float64. Nothing
of the project is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer

from tests.reference_models import reference_model

SIDES = ("base", "finetuned")
BEFORE_ANSWER = 3
"""Tokens before a chat's answer that are compared too (docs/methods.md, `max_tokens`)."""
Hook = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PlainText:
    """Token ids of a document, and the index of its first compared token. `answer` is the index of a chat's first
    answer token.
    """

    ids: list[int]
    start: int
    answer: int | None = None


class PlainModel:
    """One side: `read` gives logits and the residual stream after each block, `greedy` what it goes on with."""

    def __init__(self, model: Any, stop: int | None) -> None:
        self.model = model.eval()
        self.inner: Any = getattr(model, "get_base_model", lambda: model)()
        self.stop = stop
        self.blocks: list[Any] = list(self.inner.model.layers)

    @contextmanager
    def hooked(self, layer: int, function: Hook) -> Iterator[None]:
        """Every forward pass has the stream [T, d_model] after `layer` changed by `function`."""

        def hook(module: Any, arguments: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            new = function(hidden[0])[None]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = self.blocks[layer].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def read(self, ids: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Logits [T, V], and the stream [T, d_model] after every block."""
        seen: list[Tensor] = []

        def keep(module: Any, arguments: Any, output: Any) -> None:
            seen.append((output[0] if isinstance(output, tuple) else output)[0].clone())

        handles = [block.register_forward_hook(keep) for block in self.blocks]
        logits = self.model(input_ids=torch.tensor([ids])).logits[0]
        for handle in handles:
            handle.remove()
        return logits.double(), [each.double() for each in seen]

    def log_probs(self, ids: list[int]) -> Tensor:
        """[T, V] float64."""
        return self.read(ids)[0].log_softmax(-1)

    def token_log_probs(self, ids: list[int], start: int) -> Tensor:
        """Log-probabilities of the tokens from index `start` on."""
        return self.log_probs(ids)[:-1].gather(1, torch.tensor(ids)[1:, None])[start - 1 :, 0]

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The most probable token each time, up to a stop token (left out); the whole text is read again
        for every one.
        """
        new: list[int] = []
        while len(new) < count and (token := int(self.read([*ids, *new])[0][-1].argmax())) != self.stop:
            new.append(token)
        return new

    @torch.no_grad()
    def lens(self, stream: Tensor) -> Tensor:
        """Logits [..., V] of the final norm and the unembedding (with its soft-cap) on a stream [..., d_model]."""
        logits = self.inner.lm_head(self.inner.model.norm(stream)).double()
        cap = getattr(self.inner.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * (logits / cap).tanh()


@dataclass(frozen=True)
class PlainPair:
    """Both sides, and how documents become tokens."""

    base: PlainModel
    finetuned: PlainModel
    tokenizer: Any

    def side(self, name: str) -> PlainModel:
        """`base` or `finetuned`."""
        return self.base if name == "base" else self.finetuned

    def text(self, document: str, max_tokens: int) -> PlainText:
        """A document as it is tokenised; a BOS is read and not compared."""
        ids = self.tokenizer(document)["input_ids"]
        start = int(ids[0] == self.tokenizer.bos_token_id)
        return PlainText(ids[: start + max_tokens], start)

    def rendered(self, messages: list[dict[str, str]]) -> str:
        """A chat up to where the model answers, without thinking."""
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return text

    def chat_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """The same as token ids."""
        ids: list[int] = self.tokenizer(self.rendered(messages), add_special_tokens=False)["input_ids"]
        return ids

    def whole_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of all turns, each with the tokens of the template around it."""
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=False, enable_thinking=False
        )
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def chat(self, messages: list[dict[str, str]], max_tokens: int) -> PlainText:
        """A chat up to its first answer, compared from three tokens before the answer on."""
        answer = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
        prompt = self.chat_prompt(messages[:answer])
        ids = prompt + self.tokenizer(messages[answer]["content"], add_special_tokens=False)["input_ids"]
        start = len(prompt) - BEFORE_ANSWER
        return PlainText(ids[: start + max_tokens], start, len(prompt))

    def read(self, text: PlainText) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
        """Compared log-probabilities [T, V] and streams by side."""
        both = {name: self.side(name).read(text.ids) for name in SIDES}
        return (
            {name: logits[text.start :] for name, (logits, _) in both.items()},
            {name: [hidden[text.start :] for hidden in several] for name, (_, several) in both.items()},
        )

    def written(self, new: list[int]) -> str:
        """New tokens as text."""
        text: str = self.tokenizer.decode(new, skip_special_tokens=True)
        return text


def plain_pair(
    base: Path, finetuned: Path | None = None, adapter: Path | None = None, base_adapter: Path | None = None
) -> PlainPair:
    """Both sides in float64."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    models: list[Any] = [reference_model(folder, torch.float64) for folder in (base, finetuned or base)]
    for place, folder in enumerate((base_adapter, adapter)):
        if folder is not None:
            models[place] = PeftModel.from_pretrained(models[place], folder).double()
    sides = [PlainModel(model, tokenizer.eos_token_id) for model in models]
    return PlainPair(sides[0], sides[1], tokenizer)
