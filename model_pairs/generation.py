"""Batched, seeded generation: requests become token ids, rows of similar length share a batch, and only the new text
comes back.

Sampling is by inverse CDF with one stream of uniform numbers a row, seeded by (seed, request, sample): the same call
gives the same text, and the two sides of a pair draw the same numbers, so equal models give equal answers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffing_mcp.core.chat import ChatMessage, render_chat
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.model_pairs.decoding import Reader, choose_tokens, decode
from diffing_mcp.model_pairs.forward_count import ForwardCount
from diffing_mcp.model_pairs.interventions import Intervention
from diffing_mcp.model_pairs.room import cost_of, devices_of, free_bytes, most_rows

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.resident import ResidentModel
    from diffing_mcp.model_pairs.sides import SideInMemory

_ANCHOR_TOKENS = 4
_SHOWN_EVERY_SECONDS = 0.5
_BEFORE = ("\n", "a", "1")
"""Texts before a text that is cut as what stands in the middle: one of them grows together with no token of it."""

Written = Callable[[int, int, str], None]
"""Told now and then how far an answer is: request, sample, text so far."""


class GenerationRequest(BaseModel):
    """One prompt: a conversation for the chat template, or raw text without any template."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[ChatMessage, ...] | None = None
    text: str | None = Field(
        None,
        description="Raw text to continue; special tokens such as BOS are added as the tokenizer does (`special`).",
    )
    special: bool = Field(True, description="Whether the tokenizer adds special tokens to raw text.")
    ids: tuple[int, ...] | None = Field(
        None, description="Token ids of `text`, special ones too, where no text is cut into them (half a character)."
    )
    prefill: str = Field(
        "", description="Beginning of the answer; the completion goes on after it and does not repeat it."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.messages is None) == (self.text is None):
            raise ValueError("a request has either `messages` or `text`")
        if self.ids is not None and self.text is None:
            raise ValueError("`ids` are those of `text`")
        return self


class Sampling(BaseModel):
    """How to sample. Temperature 0 takes the most probable token each time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(1, ge=1, le=1024, description="Completions of each request.")
    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the smallest set of tokens with at least this probability."
    )
    max_new_tokens: int = Field(128, ge=1, le=32768)
    seed: int = Field(0, ge=0, lt=2**63)
    thinking: bool = Field(False, description="Let a model with a thinking switch think.")


class Completion(BaseModel):
    """One completion: the new text alone, why it ended (`eos`: a stop token; `length`: max_new_tokens) and its number
    of tokens.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    finish: Literal["eos", "length"]
    tokens: int


@dataclass(frozen=True)
class Row:
    """One sequence to generate: prompt ids, and where its completion belongs."""

    prompt: list[int]
    request: int
    sample: int

    def seed(self, seed: int) -> int:
        """63 bits from (seed, request, sample)."""
        return (
            int.from_bytes(hashlib.sha256(f"{seed}/{self.request}/{self.sample}".encode()).digest()[:8], "little") >> 1
        )


def prompt_ids(tokenizer: Any, request: GenerationRequest, thinking: bool, thinking_switch: bool) -> list[int]:
    """Token ids of a request up to where the model goes on. Raises InvalidInput for an empty prompt or a conversation
    that cannot be rendered.
    """
    if request.messages is not None:
        text = render_chat(tokenizer, request.messages, request.prefill, thinking, thinking_switch)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    elif request.ids is not None:
        ids = [*request.ids, *tokenizer(request.prefill, add_special_tokens=False)["input_ids"]]
    else:
        ids = tokenizer((request.text or "") + request.prefill, add_special_tokens=request.special)["input_ids"]
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise InvalidInput(
            "The prompt is empty, and this model has no beginning-of-sequence token to start from. Give it some text."
        )
    return list(ids)


def new_text(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Text of the new tokens alone. The last prompt tokens are decoded with them and cut off again, which keeps a
    leading space or a character whose bytes begin in the prompt right; where that does not come out even, the new
    tokens are decoded alone."""
    alone = tokenizer.decode(new, skip_special_tokens=True)
    anchor = list(prompt[-_ANCHOR_TOKENS:])
    before = tokenizer.decode(anchor, skip_special_tokens=True)
    both = tokenizer.decode([*anchor, *new], skip_special_tokens=True)
    if before and both.startswith(before) and both[len(before) :].strip() == alone.strip():
        return both[len(before) :]
    return alone


def answer_ids(tokenizer: Any, request: GenerationRequest, prompt: Sequence[int], text: str) -> list[int]:
    """Token ids of a text that goes on after a request, whose `prompt` these ids are.

    Some tokenizers (Llama 2, Mistral, Phi 3) put a space before whatever they are given. In the middle of a text there
    is none, so there the first way to cut it counts of which it is the `new_text`. After a chat template models expect
    that space.
    """
    alone = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if (request.messages is not None and not request.prefill) or new_text(tokenizer, prompt, alone) == text:
        return alone
    for before in _BEFORE:
        first, whole = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in (before, before + text))
        inside = list(whole[len(first) :])
        if whole[: len(first)] == first and new_text(tokenizer, prompt, inside) == text:
            return inside
    return alone


def rows_of(
    tokenizer: Any,
    requests: Sequence[GenerationRequest],
    sampling: Sampling,
    context_length: int,
    thinking_switch: bool = False,
) -> list[Row]:
    """All sequences of these requests. Raises InvalidInput when a prompt and its answer do not fit in the context, with
    both numbers.
    """
    rows: list[Row] = []
    for index, request in enumerate(requests):
        ids = prompt_ids(tokenizer, request, sampling.thinking, thinking_switch)
        if len(ids) + sampling.max_new_tokens > context_length:
            raise InvalidInput(
                f"Prompt {index} has {len(ids)} tokens and max_new_tokens is {sampling.max_new_tokens}; this model's "
                f"context holds {context_length} tokens together. Shorten the prompt or lower max_new_tokens."
            )
        rows.extend(Row(ids, index, sample) for sample in range(sampling.n))
    return rows


def batches_of(rows: Sequence[Row], most: Callable[[int], int], unpadded: bool = False) -> list[list[Row]]:
    """Rows of similar prompt length together (`unpadded`: of equal length), longest first, those with the same prompt
    side by side; `most` says how many rows a batch may have whose longest prompt has so many tokens.
    """
    batches: list[list[Row]] = []
    allowed = 0
    for row in sorted(rows, key=lambda row: (-len(row.prompt), row.prompt)):
        fits = batches and not (unpadded and len(row.prompt) < len(batches[-1][0].prompt))
        if fits and len(batches[-1]) < allowed:
            batches[-1].append(row)
        else:
            batches.append([row])
            allowed = most(len(row.prompt))
    return batches


def batches_for(residents: Sequence[ResidentModel], rows: Sequence[Row], max_new_tokens: int) -> list[list[Row]]:
    """The rows in batches that fit in the free memory when each of the models reads them (one that reads them twice
    counts twice).

    Raises:
        OutOfRoom: not even the longest row alone fits.
    """
    costs = [cost_of(resident) for resident in residents]
    free = min(free_bytes(devices_of(resident)) for resident in residents)
    max_rows, max_tokens = batch_limits(residents[0].device)

    def most(prompt: int) -> int:
        return min(
            most_rows(costs, prompt, max_new_tokens, free), max_rows, max(1, max_tokens // (prompt + max_new_tokens))
        )

    # Padding would stand between learned tokens and a prompt, and windows of attention count it: a short prompt beside
    # a long one loses sight of what was learned.
    return batches_of(rows, most, unpadded=any(resident.prompt is not None for resident in residents))


def first_alike(batch: Sequence[Row], vectors: bool = False) -> list[int]:
    """For each row the first one of the batch with the same prompt, which need not be read again; where requests have
    `vectors` of their own, the first one of the same request.
    """
    first: dict[Any, int] = {}
    return [
        first.setdefault((tuple(row.prompt), row.request if vectors else None), place)
        for place, row in enumerate(batch)
    ]


def completion_of(stop_ids: frozenset[int], reader: Any, row: Row, ids: Sequence[int]) -> Completion:
    """The completion that new token ids are, up to the first stop token."""
    stop = next((index for index, token in enumerate(ids) if token in stop_ids), None)
    kept = ids if stop is None else ids[:stop]
    return Completion(
        text=new_text(reader, row.prompt, kept), finish="length" if stop is None else "eos", tokens=len(kept)
    )


def new_tokens(stop_ids: frozenset[int], ids: Sequence[int]) -> int:
    """How many of a row's new token ids were generated: those up to its stop token, which counts; what follows is
    padding.
    """
    return next((index + 1 for index, token in enumerate(ids) if token in stop_ids), len(ids))


def batch_limits(device: torch.device) -> tuple[int, int]:
    """Most rows, and most tokens (prompt and new), of a batch in generation, where memory allows them."""
    return (64, 16384) if device.type == "cpu" else (256, 131072)


def generate(
    side: SideInMemory,
    tokenizer: Any,
    requests: Sequence[GenerationRequest],
    sampling: Sampling,
    progress: Progress = silent,
    interventions: Sequence[Intervention] = (),
    thinking_switch: bool = False,
    reader: Any | None = None,
    stop_ids: frozenset[int] | None = None,
    count: ForwardCount | None = None,
    written: Written | None = None,
) -> list[list[Completion]]:
    """`sampling.n` completions of each request, in the order of the requests.

    Vectors [len(requests), d_model] of an intervention give each request its own vector, and [len(requests), K,
    d_model] one for each of its `PromptTokens`. `reader` is the tokenizer that decodes the answers, when it knows more
    tokens than the one that makes the prompts. `stop_ids` (None: the model's own) end an answer. Progress counts
    generated tokens against the most there can be; `count` counts what was run; `written` is told of answers while they
    are written.

    Raises:
        InvalidInput: a prompt longer than the context, an empty one, or a conversation that cannot be rendered.
        OutOfRoom: one completion alone takes more memory than is free.
        Cancelled: between two tokens, when progress says so.
    """
    resident = side.resident
    rows = rows_of(tokenizer, requests, sampling, resident.context_length, thinking_switch)
    interventions = (*side.steering, *interventions)
    for intervention in interventions:
        if intervention.vector.ndim > 1 and intervention.vector.shape[0] != len(requests):
            raise InvalidInput(f"There are {intervention.vector.shape[0]} vectors for {len(requests)} requests.")
    stops = resident.stop_ids if stop_ids is None else stop_ids
    results: list[list[Completion | None]] = [[None] * sampling.n for _ in requests]
    total, done = float(len(rows) * sampling.max_new_tokens), 0.0

    def choose(logits: Sequence[torch.Tensor], rows: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        return choose_tokens(logits[0], sampling.temperature, sampling.top_p, uniform)

    batches = batches_for([resident], rows, sampling.max_new_tokens)
    progress(done, total, "generating")
    for batch in batches:
        of_rows = torch.tensor([row.request for row in batch])
        alike = first_alike(batch, any(each.differs_by_row for each in interventions))
        reading = Reader(side, [each.of_rows(of_rows) for each in interventions])
        report = reporting(progress, done, total, len(batch))
        if written is not None:
            report = _telling(report, written, batch, stops, reader or tokenizer)
        new = decode(
            [reading],
            [row.prompt for row in batch],
            alike,
            choose,
            uniform_numbers(batch, sampling),
            stops,
            tokenizer.pad_token_id,
            report,
        )
        if count is not None:
            count.add_generation(
                [len(batch[place].prompt) for place in set(alike)], [new_tokens(stops, ids) for ids in new]
            )
        for row, ids in zip(batch, new, strict=True):
            results[row.request][row.sample] = completion_of(stops, reader or tokenizer, row, ids)
        done += len(batch) * sampling.max_new_tokens
        progress(done, total, "generating")
    return [[completion for completion in completions if completion is not None] for completions in results]


def uniform_numbers(batch: Sequence[Row], sampling: Sampling) -> torch.Tensor:
    """The random numbers [B, max_new_tokens] float64 in [0, 1) that each row is sampled with."""
    rows = [
        torch.rand(
            sampling.max_new_tokens,
            generator=torch.Generator().manual_seed(row.seed(sampling.seed)),
            dtype=torch.float64,
        )
        for row in batch
    ]
    return torch.stack(rows)


def reporting(progress: Progress, done: float, total: float, rows: int) -> Callable[[torch.Tensor], None]:
    """What reports the new ids [B, tokens] of one batch of `rows`, `done` of `total` tokens having come before it."""
    return lambda new: progress(done + new.shape[1] * rows, total, "generating")


def _telling(
    report: Callable[[torch.Tensor], None], written: Written, batch: Sequence[Row], stops: frozenset[int], reader: Any
) -> Callable[[torch.Tensor], None]:
    """`report` that, every so often, tells the texts of its batch as well."""
    told = time.monotonic()

    def both(new: torch.Tensor) -> None:
        nonlocal told
        report(new)
        if time.monotonic() - told >= _SHOWN_EVERY_SECONDS:
            for row, ids in zip(batch, new.tolist(), strict=True):
                # The bytes of the last character may not all be there yet.
                written(row.request, row.sample, completion_of(stops, reader, row, ids).text.rstrip("\ufffd"))
            told = time.monotonic()

    return both
