"""Beyond single tokens: stretches of a text, whole candidate answers, and where greedy answers part. Imports torch:
only jobs and notebooks import this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress
from diffing_mcp.core.text import clip
from diffing_mcp.methods.kl.schema import TokenMove
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling, answer_ids, prompt_ids
from diffing_mcp.model_pairs.padding import padded
from diffing_mcp.model_pairs.specs import SIDES, Side
from diffing_mcp.queries.asking import chat_of
from diffing_mcp.queries.schemas import CandidateScore, CompareQuery, GreedyDivergence, Span

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair

MOST_SPANS = 5
LEAST_SPAN = 1.0
"""Nats that a stretch is shown from."""
TOP_TOKENS = 5
_SHOWN = 160


def spans(
    differences: Sequence[float], text: Callable[[int, int], str], most: int = MOST_SPANS, least: float = LEAST_SPAN
) -> list[Span]:
    """Stretches [start, end) in which one side is ahead: those of largest absolute sum that do not overlap, largest
    first.

    The best stretch is that of the largest sum (Kadane's algorithm, for either sign); the next is looked for on both
    sides of it.

    Args:
        differences: finetuned minus base log-probability of each token, nats.
        text: the text of the tokens [start, end).
        least: stretches of a smaller sum are left out.
    """
    found: list[tuple[int, int, float]] = []
    pieces = [(0, len(differences))]
    while pieces:
        begin, end = pieces.pop()
        best = max((_heaviest(differences, begin, end, sign) for sign in (1, -1)), key=lambda each: abs(each[2]))
        if abs(best[2]) >= least:
            found.append(best)
            pieces += [piece for piece in ((begin, best[0]), (best[1], end)) if piece[0] < piece[1]]
    found.sort(key=lambda each: -abs(each[2]))
    return [
        Span(start=start, end=end, text=clip(text(start, end), _SHOWN)[0], difference=round(total, 3))
        for start, end, total in found[:most]
    ]


def _heaviest(differences: Sequence[float], begin: int, end: int, sign: int) -> tuple[int, int, float]:
    best, total, start = (begin, begin, 0.0), 0.0, begin
    for index in range(begin, end):
        if total <= 0:
            total, start = 0.0, index
        total += sign * differences[index]
        if total > abs(best[2]):
            best = (start, index + 1, sign * total)
    return best


def score_candidates(pair: LoadedPair, arguments: CompareQuery) -> list[CandidateScore]:
    """Every candidate after the same context under both sides, those that finetuned prefers most (a token) first.

    Raises:
        InvalidInput: a candidate without tokens, or one that does not fit into the context.
    """
    request = _request(arguments)
    rows = _answer_rows(pair, [(request, text) for text in arguments.candidates], arguments.max_tokens)
    totals = continuation_log_probs(pair, rows)
    counts = torch.tensor([len(text) for _, text in rows])
    means = {side: total / counts for side, total in totals.items()}
    ranks = {side: (-mean).argsort(stable=True).argsort() + 1 for side, mean in means.items()}
    order = (means["base"] - means["finetuned"]).argsort(stable=True).tolist()
    return [
        CandidateScore(
            candidate=clip(arguments.candidates[index], _SHOWN)[0],
            tokens=int(counts[index]),
            base=round(float(totals["base"][index]), 3),
            finetuned=round(float(totals["finetuned"][index]), 3),
            base_per_token=round(float(means["base"][index]), 4),
            finetuned_per_token=round(float(means["finetuned"][index]), 4),
            base_rank=int(ranks["base"][index]),
            finetuned_rank=int(ranks["finetuned"][index]),
        )
        for index in order
    ]


def _answer_rows(
    pair: LoadedPair, answers: Sequence[tuple[GenerationRequest, str]], max_tokens: int
) -> list[tuple[list[int], list[int]]]:
    """Token ids of each request, and of the first `max_tokens` tokens of the text as what comes after it.

    Raises:
        InvalidInput: a text without tokens.
    """
    switch = pair.spec.base.files.thinking_switch
    rows = []
    for request, text in answers:
        context = prompt_ids(pair.tokenizer, request, False, switch)
        rows.append((context, answer_ids(pair.tokenizer, request, context, text)[:max_tokens]))
    if not all(text for _, text in rows):
        raise InvalidInput("A candidate has no tokens; give each at least one.")
    return rows


def continuation_log_probs(
    pair: LoadedPair, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> dict[Side, torch.Tensor]:
    """Log-probability [N] float64, nats, of token ids given those before them, for (context, continuation) rows.

    Raises:
        InvalidInput: a row that does not fit into the context.
    """
    lengths = [len(context) + len(text) for context, text in rows]
    if max(lengths) > pair.context_length:
        raise InvalidInput(
            f"{max(lengths)} tokens do not fit into a context of {pair.context_length}; lower max_tokens or shorten "
            "the prompt"
        )
    ids, mask = padded([[*context, *text] for context, text in rows], pair.tokenizer.pad_token_id)
    places = torch.arange(ids.shape[1])[None]
    starts = torch.tensor([len(context) for context, _ in rows])[:, None]
    totals: dict[Side, torch.Tensor] = {}
    for side in SIDES:
        with pair.side_loaded(side):
            # Column t holds the token t + 1; padding has 0.
            found = pair.token_log_probs(side, ids, mask).double()
            totals[side] = found.masked_fill(places[:, 1:] < starts, 0.0).sum(1)
    return totals


def _request(arguments: CompareQuery) -> GenerationRequest:
    """What candidates and greedy answers follow: the prompt in the chat template, or the text."""
    if arguments.prompt is not None:
        return GenerationRequest(messages=chat_of(arguments.conversation))
    return GenerationRequest(text=arguments.text)


def greedy_divergence(pair: LoadedPair, arguments: CompareQuery, progress: Progress) -> GreedyDivergence:
    """Both sides' greedy answers, split at the first token at which they differ, with the next-token probabilities
    there.

    The answers are tokenised anew by the base's tokenizer, so both models are asked about the same tokens.
    """
    request = _request(arguments)
    sampling = Sampling(temperature=0, max_new_tokens=arguments.greedy_tokens)
    answers: dict[Side, str] = {}
    for side in SIDES:
        with pair.side_loaded(side):
            answers[side] = pair.generate(side, [request], sampling, progress)[0][0].text
    prompt = prompt_ids(pair.tokenizer, request, False, pair.spec.base.files.thinking_switch)
    ids = {side: answer_ids(pair.tokenizer, request, prompt, text) for side, text in answers.items()}
    if answers["base"] == answers["finetuned"]:
        return GreedyDivergence(
            parts=False, common=answers["base"], base="", finetuned="", after_tokens=None, base_top=[], finetuned_top=[]
        )
    pairs = zip(ids["base"], ids["finetuned"], strict=False)
    length = next(
        (index for index, (base, finetuned) in enumerate(pairs) if base != finetuned),
        min(len(each) for each in ids.values()),
    )
    before = prompt + ids["base"][:length]
    probabilities: dict[Side, torch.Tensor] = {}
    with torch.inference_mode():
        for side in SIDES:
            logits = pair.forward(side, torch.tensor([before]), torch.ones(1, len(before), dtype=torch.long)).logits
            if logits is None:
                raise RuntimeError("a pass that was asked for logits gave none")
            probabilities[side] = logits[0, -1].float().softmax(-1).cpu()

    def top(side: Side) -> list[TokenMove]:
        chosen = probabilities[side].topk(min(TOP_TOKENS, len(probabilities[side]))).indices.tolist()
        return [
            TokenMove(
                token=str(pair.tokenizer.decode([index])),
                base=float(f"{float(probabilities['base'][index]):.3g}"),
                finetuned=float(f"{float(probabilities['finetuned'][index]):.3g}"),
            )
            for index in chosen
        ]

    return GreedyDivergence(
        parts=True,
        common=str(pair.tokenizer.decode(ids["base"][:length])),
        base=str(pair.tokenizer.decode(ids["base"][length:])),
        finetuned=str(pair.tokenizer.decode(ids["finetuned"][length:])),
        after_tokens=length,
        base_top=top("base"),
        finetuned_top=top("finetuned"),
    )
