"""Batched, seeded generation: requests become token ids, rows of similar length share a batch, and only the new text comes back.

Sampling is by inverse CDF with one stream of uniform numbers a row, seeded by (seed, request, sample): the same call gives the same
text, and the two sides of a pair draw the same numbers, so equal models give equal answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_pairs.chat import ChatMessage, render_chat
from model_pairs.forward_count import ForwardCount
from model_pairs.interventions import Intervention, applied
from organisms.errors import InvalidInput
from organisms.progress import Progress, silent

if TYPE_CHECKING:
    from model_pairs.loading import ResidentModel

_ANCHOR_TOKENS = 4
_TOP_P_CANDIDATES = 1024


class GenerationRequest(BaseModel):
    """One prompt: a conversation for the chat template, or raw text without any template."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[ChatMessage, ...] | None = None
    text: str | None = Field(None, description="Raw text to continue; special tokens such as BOS are added as the tokenizer does.")
    prefill: str = Field("", description="Beginning of the answer; the completion goes on after it and does not repeat it.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.messages is None) == (self.text is None):
            raise ValueError("a request has either `messages` or `text`")
        return self


class Sampling(BaseModel):
    """How to sample. Temperature 0 takes the most probable token each time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(1, ge=1, le=1024, description="Completions of each request.")
    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the smallest set of tokens with at least this probability.")
    max_new_tokens: int = Field(128, ge=1, le=32768)
    seed: int = Field(0, ge=0, lt=2**63)
    thinking: bool = Field(False, description="Let a model with a thinking switch think.")


class Completion(BaseModel):
    """One completion: the new text alone, why it ended (`eos`: a stop token; `length`: max_new_tokens) and its number of tokens."""

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
        return int.from_bytes(hashlib.sha256(f"{seed}/{self.request}/{self.sample}".encode()).digest()[:8], "little") >> 1


def prompt_ids(tokenizer: Any, request: GenerationRequest, thinking: bool, thinking_switch: bool) -> list[int]:
    """Token ids of a request up to where the model goes on. Raises InvalidInput for an empty prompt or a conversation that cannot be rendered."""
    if request.messages is not None:
        text = render_chat(tokenizer, request.messages, request.prefill, thinking, thinking_switch)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer((request.text or "") + request.prefill)["input_ids"]
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise InvalidInput("The prompt is empty, and this model has no beginning-of-sequence token to start from. Give it some text.")
    return list(ids)


def new_text(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Text of the new tokens alone. The last prompt tokens are decoded with them and cut off again, which keeps a leading space or a
    character whose bytes begin in the prompt right; where that does not come out even, the new tokens are decoded alone."""
    alone = tokenizer.decode(new, skip_special_tokens=True)
    anchor = list(prompt[-_ANCHOR_TOKENS:])
    before = tokenizer.decode(anchor, skip_special_tokens=True)
    both = tokenizer.decode([*anchor, *new], skip_special_tokens=True)
    if before and both.startswith(before) and both[len(before) :].strip() == alone.strip():
        return both[len(before) :]
    return alone


def rows_of(
    tokenizer: Any, requests: Sequence[GenerationRequest], sampling: Sampling, context_length: int, thinking_switch: bool = False
) -> list[Row]:
    """All sequences of these requests. Raises InvalidInput when a prompt and its answer do not fit in the context, with both numbers."""
    rows: list[Row] = []
    for index, request in enumerate(requests):
        ids = prompt_ids(tokenizer, request, sampling.thinking, thinking_switch)
        if len(ids) + sampling.max_new_tokens > context_length:
            raise InvalidInput(
                f"Prompt {index} has {len(ids)} tokens and max_new_tokens is {sampling.max_new_tokens}; this model's context holds "
                f"{context_length} tokens together. Shorten the prompt or lower max_new_tokens."
            )
        rows.extend(Row(ids, index, sample) for sample in range(sampling.n))
    return rows


def batches_of(rows: Sequence[Row], max_new_tokens: int, max_rows: int, max_tokens: int) -> list[list[Row]]:
    """Rows of similar prompt length together, at most `max_rows` and `max_tokens` (prompt and new tokens) a batch; longest first."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -len(row.prompt)):
        if batches:
            last = batches[-1]
            width = len(last[0].prompt) + max_new_tokens
            if len(last) < max_rows and (len(last) + 1) * width <= max_tokens:
                last.append(row)
                continue
        batches.append([row])
    return batches


def choose_tokens(scores: torch.Tensor, temperature: float, top_p: float, uniform: torch.Tensor) -> torch.Tensor:
    """Next token of each row: scores [B, V], uniform numbers [B] in [0, 1) -> [B]. Inverse CDF in the order of the vocabulary
    (with top_p: in the order of falling probability)."""
    if temperature == 0:
        return scores.argmax(-1)
    probabilities = torch.softmax(scores.float() / temperature, dim=-1)
    order = None
    if top_p < 1:
        count = min(_TOP_P_CANDIDATES, probabilities.shape[-1])
        values, order = probabilities.topk(count, dim=-1)
        if bool((values.sum(-1) < top_p).any()):
            values, order = probabilities.sort(dim=-1, descending=True)
        # A token stays when those before it do not reach top_p yet: the first always stays.
        probabilities = values.masked_fill(values.cumsum(-1) - values >= top_p, 0)
    cumulative = probabilities.double().cumsum(-1)
    threshold = uniform.to(cumulative).unsqueeze(-1) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, threshold, right=True).clamp_max(cumulative.shape[-1] - 1)
    return (chosen if order is None else order.gather(-1, chosen)).squeeze(-1)


def left_padded(batch: Sequence[Row], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt ids and attention mask [B, S] of a batch, padded on the left."""
    width = max(len(row.prompt) for row in batch)
    ids = torch.tensor([[pad] * (width - len(row.prompt)) + row.prompt for row in batch], device=device)
    mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in batch], device=device)
    return ids, mask


def uniform_numbers(batch: Sequence[Row], sampling: Sampling, device: torch.device) -> torch.Tensor:
    """The random numbers [B, max_new_tokens] float64 in [0, 1) that each row is sampled with."""
    rows = [
        torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(row.seed(sampling.seed)), dtype=torch.float64) for row in batch
    ]
    return torch.stack(rows).to(device if device.type != "mps" else "cpu")


def completion_of(stop_ids: frozenset[int], reader: Any, row: Row, ids: Sequence[int]) -> Completion:
    """The completion that new token ids are, up to the first stop token."""
    stop = next((index for index, token in enumerate(ids) if token in stop_ids), None)
    kept = ids if stop is None else ids[:stop]
    return Completion(text=new_text(reader, row.prompt, kept), finish="length" if stop is None else "eos", tokens=len(kept))


def new_tokens(stop_ids: frozenset[int], ids: Sequence[int]) -> int:
    """How many of a row's new token ids were generated: those up to its stop token, which counts; what follows is padding."""
    return next((index + 1 for index, token in enumerate(ids) if token in stop_ids), len(ids))


def batch_limits(device: torch.device) -> tuple[int, int]:
    """Most rows, and most tokens, of a batch in generation."""
    return (64, 16384) if device.type == "cpu" else (256, 131072)


def generate(
    resident: ResidentModel,
    tokenizer: Any,
    requests: Sequence[GenerationRequest],
    sampling: Sampling,
    progress: Progress = silent,
    interventions: Sequence[Intervention] = (),
    thinking_switch: bool = False,
    reader: Any | None = None,
    stop_ids: frozenset[int] | None = None,
    count: ForwardCount | None = None,
) -> list[list[Completion]]:
    """`sampling.n` completions of each request, in the order of the requests. The caller holds `resident.lock` and has switched the adapter.

    Vectors [len(requests), d_model] of an intervention give each request its own vector, and [len(requests), K, d_model] one for each of its
    `PromptTokens`. `reader` is the tokenizer that decodes the answers, when it knows more tokens than the one that makes the prompts.
    `stop_ids` take the place of the model's own. Progress counts generated tokens against the most there can be; `count` counts what was run.

    Raises:
        InvalidInput: a prompt longer than the context, an empty one, or a conversation that cannot be rendered.
        Cancelled: between two tokens, when progress says so.
    """
    rows = rows_of(tokenizer, requests, sampling, resident.context_length, thinking_switch)
    for intervention in interventions:
        if intervention.vector.ndim > 1 and intervention.vector.shape[0] != len(requests):
            raise InvalidInput(f"There are {intervention.vector.shape[0]} vectors for {len(requests)} requests.")
    stops = resident.stop_ids if stop_ids is None else stop_ids
    batches = batches_of(rows, sampling.max_new_tokens, *batch_limits(resident.device))
    results: list[list[Completion | None]] = [[None] * sampling.n for _ in requests]
    total = float(len(rows) * sampling.max_new_tokens)
    done = 0.0
    progress(done, total, "generating")
    for batch in batches:
        new = _generate_batch(resident, tokenizer, batch, sampling, interventions, progress, done, total, stops)
        if count is not None:
            count.add_generation([len(row.prompt) for row in batch], [new_tokens(stops, ids) for ids in new])
        for row, ids in zip(batch, new, strict=True):
            results[row.request][row.sample] = completion_of(stops, reader or tokenizer, row, ids)
        done += len(batch) * sampling.max_new_tokens
        progress(done, total, "generating")
    return [[completion for completion in completions if completion is not None] for completions in results]


def _generate_batch(
    resident: ResidentModel,
    tokenizer: Any,
    batch: Sequence[Row],
    sampling: Sampling,
    interventions: Sequence[Intervention],
    progress: Progress,
    done: float,
    total: float,
    stop_ids: frozenset[int],
) -> list[list[int]]:
    """New token ids of each row (with the stop token, if one came, and padding after it)."""
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

    pad = tokenizer.pad_token_id
    ids, mask = left_padded(batch, pad, resident.device)
    width = ids.shape[1]
    uniform = uniform_numbers(batch, sampling, resident.device)

    class Choose(LogitsProcessor):
        """Leaves one token possible in each row: the sampled one."""

        step = 0

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            numbers = uniform[:, self.step].to(scores.device)
            chosen = choose_tokens(scores, sampling.temperature, sampling.top_p, numbers)
            self.step += 1
            return torch.full_like(scores, float("-inf")).scatter_(1, chosen.unsqueeze(1), 0.0)

    class Report(StoppingCriteria):
        """Reports each token, and never stops by itself (progress raises when the work is cancelled)."""

        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            progress(done + (input_ids.shape[1] - width) * len(batch), total, "generating")
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    rows = torch.tensor([row.request for row in batch])
    chosen = [each.of_rows(rows) for each in interventions]
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    with torch.inference_mode(), applied(resident, chosen, mask):
        output = resident.transformer.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=LogitsProcessorList([Choose()]),
            stopping_criteria=StoppingCriteriaList([Report()]),
        )
    return output[:, width:].tolist()
