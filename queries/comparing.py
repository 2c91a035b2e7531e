"""The work behind compare_text. Imports torch: only jobs and notebooks import this module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress
from diffing_mcp.methods.kl.measure import Change, divergences, movement
from diffing_mcp.methods.kl.schema import TokenMove
from diffing_mcp.preprocessing.batches import text_chunks
from diffing_mcp.queries.asking import chat_of
from diffing_mcp.queries.beyond_tokens import greedy_divergence, score_candidates, spans
from diffing_mcp.queries.schemas import CompareQuery, CompareResult, EndOfTurn, PositionDetail

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair


def compare(pair: LoadedPair, arguments: CompareQuery, progress: Progress) -> CompareResult:
    """Log-probability of every token of a text under both sides, and KL(finetuned || base) where it stands, from
    float32 log-softmax; then the candidates and the greedy answers that were asked for.

    Without a prompt the first token has nothing before it unless the tokenizer puts a BOS there; then it cannot be
    scored and is left out.

    Raises:
        InvalidInput: fewer than two tokens, or more than the context holds.
    """
    result = _compare_text(pair, arguments, progress) if arguments.text else _NO_TEXT.model_copy()
    if arguments.candidates:
        progress(0, 1, "scoring candidates")
        result.candidates = score_candidates(pair, arguments)
    if arguments.greedy_tokens:
        result.greedy = greedy_divergence(pair, arguments, progress)
    return result


_NO_TEXT = CompareResult(
    tokens=[],
    base_log_prob=[],
    finetuned_log_prob=[],
    kl=[],
    mean_kl=0.0,
    mean_log_prob_difference=0.0,
    top=[],
    truncated=False,
)


def _compare_text(pair: LoadedPair, arguments: CompareQuery, progress: Progress) -> CompareResult:
    ids, start, truncated = text_ids(pair, arguments)
    if len(ids) <= start:
        raise InvalidInput("the text has no token that could be scored; give a longer one")
    input_ids = torch.tensor([ids])
    mask = torch.ones_like(input_ids)
    with torch.inference_mode():
        progress(0, 2, "base pass")
        base_logits = _rows(pair.forward("base", input_ids, mask).logits, start)
        stops = pair.stop_ids("base")
        progress(1, 2, "finetuned pass")
        finetuned_logits = _rows(pair.forward("finetuned", input_ids, mask).logits, start)
        stops |= pair.stop_ids("finetuned")
        targets = input_ids[0, start:]
        base, finetuned, kl = _scores(base_logits, finetuned_logits, targets)
        order = kl[:-1].argsort(descending=True)[: arguments.top].tolist()
        details = [
            _detail(pair, place, int(targets[place]), float(kl[place]), base_logits[place], finetuned_logits[place])
            for place in order
        ]
        answer_ends = arguments.prompt is not None and not truncated
        after = base_logits[-1], finetuned_logits[-1], float(kl[-1])
        end = _end_of_turn(pair, *after, stops) if answer_ends else None
    kl = kl[:-1]
    difference = (finetuned - base).double()
    return CompareResult(
        tokens=[_token(pair, token) for token in targets.tolist()],
        base_log_prob=_rounded(base),
        finetuned_log_prob=_rounded(finetuned),
        kl=_rounded(kl),
        mean_kl=float(f"{float(kl.double().mean()):.4g}"),
        mean_log_prob_difference=float(f"{float(difference.mean()):.4g}"),
        top=details,
        truncated=truncated,
        unscored=_token(pair, ids[0]) if arguments.prompt is None and not _puts_bos(pair.tokenizer) else None,
        spans=spans(difference.tolist(), lambda begin, end: str(pair.tokenizer.decode(targets[begin:end]))),
        end=end,
    )


def text_ids(pair: LoadedPair, arguments: CompareQuery) -> tuple[list[int], int, bool]:
    """Token ids of what comes before the text and the text itself; index of the first token to score; whether the text
    was cut at max_tokens.
    """
    tokenizer = pair.tokenizer
    if arguments.prompt is not None:
        before = pair.render_chat(chat_of(arguments.conversation))
        context = tokenizer(before, add_special_tokens=False)["input_ids"]
        text = tokenizer(arguments.text, add_special_tokens=False)["input_ids"]
        start = len(context)
    else:
        text = tokenizer(arguments.text, add_special_tokens=False)["input_ids"]
        context = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and _puts_bos(tokenizer) else []
        start = max(1, len(context))
    kept = text[: arguments.max_tokens]
    if len(context) + len(kept) > pair.context_length:
        raise InvalidInput(
            f"{len(context) + len(kept)} tokens do not fit into a context of {pair.context_length}; lower max_tokens "
            "or shorten the prompt"
        )
    return context + kept, start, len(kept) < len(text)


def _puts_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def _rows(logits: torch.Tensor | None, start: int) -> torch.Tensor:
    """Logits that predict the tokens from `start` on and what comes after the last [T + 1, V], in the model's dtype on
    the CPU.
    """
    return cast(torch.Tensor, logits)[0, start - 1 :].cpu()


def _end_of_turn(
    pair: LoadedPair,
    base_logits: torch.Tensor,
    finetuned_logits: torch.Tensor,
    kl: float,
    stop_ids: frozenset[int],
) -> EndOfTurn | None:
    """From the logits [V] and the divergence after the last token; None for models that end nothing."""
    stops = sorted(token for token in stop_ids if token < base_logits.shape[-1])
    if not stops:
        return None
    base, finetuned = base_logits.float().log_softmax(-1), finetuned_logits.float().log_softmax(-1)
    likeliest = stops[int((base[stops].exp() + finetuned[stops].exp()).argmax())]
    return EndOfTurn(
        token=_token(pair, likeliest),
        base_log_prob=round(float(base[stops].logsumexp(0)), 3),
        finetuned_log_prob=round(float(finetuned[stops].logsumexp(0)), 3),
        kl=round(kl, 4),
    )


def _scores(
    base_logits: torch.Tensor, finetuned_logits: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of the targets [T] under both sides, and KL(finetuned || base) [T + 1] there and after the last
    one, float32, from logits [T + 1, V].
    """
    base, finetuned, kl = [], [], []
    following = torch.cat([targets, targets[-1:]])  # nothing is known to follow the last one
    for chunk in text_chunks(base_logits, finetuned_logits):
        rows = following[chunk.positions].unsqueeze(1)
        base.append(chunk.base_log_probs.gather(1, rows).squeeze(1))
        finetuned.append(chunk.finetuned_log_probs.gather(1, rows).squeeze(1))
        kl.append(divergences(chunk)[0])
    return torch.cat(base)[:-1], torch.cat(finetuned)[:-1], torch.cat(kl)


def _detail(
    pair: LoadedPair, position: int, token: int, kl: float, base_logits: torch.Tensor, finetuned_logits: torch.Tensor
) -> PositionDetail:
    def moves(changes: list[Change]) -> list[TokenMove]:
        return [
            TokenMove(token=_token(pair, index), base=float(f"{base:.3g}"), finetuned=float(f"{finetuned:.3g}"))
            for index, base, finetuned in changes
        ]

    rose, fell = movement(base_logits.float().softmax(-1), finetuned_logits.float().softmax(-1))
    return PositionDetail(
        position=position, token=_token(pair, token), kl=round(kl, 4), up=moves(rose), down=moves(fell)
    )


def _token(pair: LoadedPair, token: int) -> str:
    return str(pair.tokenizer.decode([token]))


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]
