"""Reading one direction at all scales, choosing the scale, and judging it. See docs/decisions/patchscope-scale.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffing_mcp.methods.directions.patchscope import IDENTITY_PROMPTS, averaged, patched_log_probs, prepare
from diffing_mcp.methods.directions.vector_sources import gaussian_directions, resolve
from diffing_mcp.methods.patchscope.schema import PatchscopeParams, PatchscopeResult, PatchscopeToken, ScaleRow, Sign
from diffing_mcp.methods.texts.words import EvidenceWord, Vocabulary, vocabulary

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair

SIGNS: tuple[Sign, Sign] = ("promoted", "suppressed")
STORED_TOKENS = 100
NEEDED_WORDS = 2
LEAST_RATIO = 2.0
"""Agreement of a readable direction over that of the best random one. About one random direction of ten reaches it at
some scale.
"""
LEAST_AGREEMENT = 0.15
"""Agreement of a readable direction. Mean differences of a finetune that taught nothing reach 0.08, those of one that
taught a topic 0.24 to 0.75.
"""
NULL_FLOOR = 0.01
"""Agreement below which random directions are not told apart, so that a ratio of two small numbers means nothing."""
WORD_LIFT = 0.005
"""Shared probability from which a word is listed as one that the direction reads as."""
_FIRST_TOKENS = 6
_WORDS_LISTED = 10
_PRIOR_DEGREES = 4.0
"""Weight, in random directions, of the median variance when a token's variance is estimated from few of them."""


@dataclass(frozen=True)
class ScaleReading:
    """A direction and its negative at one scale; first dimension: promoted, suppressed.

    Attributes:
        probability: [2, V] float64, mean over prompts, 0 outside of the intersection.
        z: [2, V] float64 against random directions.
        lift: [2, V] float64, probability beyond the mean of random directions that every prompt gives a token: min over
            prompts.
        agreement: [2] lift summed over content words.
        null_agreement: highest agreement of a random direction, each against the mean of the others.
        entropy: [2] of the mean distribution, nats.
    """

    probability: Tensor
    z: Tensor
    lift: Tensor
    agreement: Tensor
    null_agreement: float
    entropy: Tensor

    def ratio(self, sign: int) -> float:
        """Agreement over that of the best random direction."""
        return float(self.agreement[sign]) / max(NULL_FLOOR, self.null_agreement)


def shared_lift(probabilities: Tensor, expected: Tensor) -> Tensor:
    """[N, P, V] and [P, V] or [N, P, V] -> [N, V]: what every prompt gives a token beyond what is expected of it; 0
    where one gives less.
    """
    return (probabilities - expected).clamp_min(0).amin(dim=1)


def judge_scale(log_probs: Tensor, null_log_probs: Tensor, content: Tensor, intersection_top_k: int) -> ScaleReading:
    """Compare the readings of a direction and its negative [2, P, V] with those of random directions [R, P, V]
    (log-probabilities).
    """
    null = null_log_probs.to(torch.float64).exp()
    total, count = null.sum(dim=0), len(null)
    lift = shared_lift(log_probs.to(torch.float64).exp(), total / count)
    null_lift = torch.stack([shared_lift(row[None], (total - row) / (count - 1))[0] for row in null])
    mean = averaged(log_probs)
    null_logs = averaged(null_log_probs).clamp_min(torch.finfo(torch.float64).tiny).log()
    variance = null_logs.var(dim=0, unbiased=True)
    deviation = (
        (((count - 1) * variance + _PRIOR_DEGREES * variance.median()) / (count - 1 + _PRIOR_DEGREES))
        .sqrt()
        .clamp_min(1e-6)
    )
    logs = mean.clamp_min(torch.finfo(torch.float64).tiny).log()
    return ScaleReading(
        probability=averaged(log_probs, intersection_top_k),
        z=(logs - null_logs.mean(dim=0)) / deviation,
        lift=lift,
        agreement=(lift * content).sum(dim=-1),
        null_agreement=float((null_lift * content).sum(dim=-1).max()),
        entropy=-(mean * logs).sum(dim=-1),
    )


def read_direction(pair: LoadedPair, params: PatchscopeParams, run: RunWriter, progress: Progress) -> PatchscopeResult:
    """Run the method; see its declaration."""
    with pair.side_loaded(params.side):
        vector = resolve(params.vector, pair, run.store, progress)
        common: dict[str, Any] = {"layer": vector.layer, "vector": vector.label, "note": vector.note}
        if vector.norm == 0:
            run.add_table(
                "tokens", {name: [] for name in ("scale", "sign", "token", "probability", "z", "lift", "content")}
            )
            return PatchscopeResult(
                stands_out=False,
                headline="The direction is exactly zero: there is nothing to read.",
                scale=None,
                suppressed_scale=None,
                promoted=[],
                suppressed=[],
                words=[],
                scales=[],
                **common,
            )
        words = vocabulary(pair.tokenizer, pair.vocab_size)
        content = torch.from_numpy(words.content).to(torch.float64)
        prompts = prepare(pair, params.side, vector.layer, params.prompts or IDENTITY_PROMPTS)
        unit = torch.from_numpy(vector.values).to(torch.float64) / vector.norm
        rows = (
            torch.cat(
                [
                    torch.stack([unit, -unit]).float(),
                    gaussian_directions(params.random_directions, pair.d_model, params.seed),
                ]
            )
            * prompts.norm
        )
        scales = sorted(set(params.scales))
        readings: dict[float, ScaleReading] = {}
        for done, scale in enumerate(scales):
            progress(done, len(scales), f"reading at scale {scale:g}")
            log_probs = patched_log_probs(pair, params.side, vector.layer, prompts, rows * scale)
            readings[scale] = judge_scale(log_probs[:2], log_probs[2:], content, params.intersection_top_k)
    run.note("replaced_norm", prompts.norm)
    _store(run, readings, words)
    return _result(readings, words, params, common)


def _result(
    readings: dict[float, ScaleReading], words: Vocabulary, params: PatchscopeParams, common: dict[str, Any]
) -> PatchscopeResult:
    # The smallest scale wins a tie: large ones leave the least of the prompt.
    best = [max(readings, key=lambda scale: (readings[scale].ratio(sign), -scale)) for sign in range(2)]
    chosen = readings[best[0]]
    found = _shared_words(chosen, words)
    strong = [word for word in found if word.score >= 1]
    readable = (
        chosen.ratio(0) >= LEAST_RATIO and float(chosen.agreement[0]) >= LEAST_AGREEMENT and len(strong) >= NEEDED_WORDS
    )
    state = (
        f"agreement {float(chosen.agreement[0]):.3f} at scale {best[0]:g}, random directions up to "
        f"{chosen.null_agreement:.3f}"
    )
    if readable:
        headline = f"The direction reads as {', '.join(word.word for word in strong[:6])} ({state})."
    else:
        headline = (
            "The direction reads as nothing in particular: prompts agree too little on content words ("
            f"{state}; at least {LEAST_AGREEMENT:g}, {LEAST_RATIO:g} times theirs and {NEEDED_WORDS} words are needed)."
        )
    return PatchscopeResult(
        stands_out=readable,
        headline=headline,
        scale=best[0],
        promoted=_tokens(chosen, 0, words, params.list_length),
        suppressed_scale=best[1],
        suppressed=_tokens(readings[best[1]], 1, words, params.list_length),
        words=found if readable else [],
        scales=[
            ScaleRow(
                scale=scale,
                sign="promoted",
                agreement=round(float(reading.agreement[0]), 4),
                null_agreement=round(reading.null_agreement, 4),
                entropy=round(float(reading.entropy[0]), 3),
                tokens=" ".join(repr(row.token) for row in _tokens(reading, 0, words, _FIRST_TOKENS)),
            )
            for scale, reading in readings.items()
        ],
        **common,
    )


def _shared_words(reading: ScaleReading, words: Vocabulary) -> list[EvidenceWord]:
    """Content words by shared lift, variants merged."""
    merged: dict[str, float] = {}
    lift = reading.lift[0].numpy() * words.content
    for index in lift.argsort()[::-1][:STORED_TOKENS]:
        if lift[index] > 0:
            word = words.words[words.word_index[index]]
            merged[word] = merged.get(word, 0.0) + float(lift[index])
    listed = sorted(
        ((word, lift / WORD_LIFT) for word, lift in merged.items() if lift >= WORD_LIFT / 2), key=lambda pair: -pair[1]
    )
    return [EvidenceWord(word=word, score=round(score, 3)) for word, score in listed[:_WORDS_LISTED]]


def _tokens(reading: ScaleReading, sign: int, words: Vocabulary, count: int) -> list[PatchscopeToken]:
    order = [
        int(index)
        for index in reading.probability[sign].argsort(descending=True)[: count + int(words.special.sum())]
        if not words.special[index]
    ]
    return [
        PatchscopeToken(
            token=words.texts[index],
            probability=float(f"{float(reading.probability[sign, index]):.3g}"),
            z=round(float(reading.z[sign, index]), 2),
            content=bool(words.content[index]),
        )
        for index in order[:count]
    ]


def _store(run: RunWriter, readings: dict[float, ScaleReading], words: Vocabulary) -> None:
    """The first tokens of every scale and sign by each of the three orders, and a summary a scale."""
    table: dict[str, list[Any]] = {
        name: [] for name in ("scale", "sign", "token", "probability", "z", "lift", "content")
    }
    summary: dict[str, list[Any]] = {name: [] for name in ("scale", "sign", "agreement", "null_agreement", "entropy")}
    for scale, reading in readings.items():
        for number, sign in enumerate(SIGNS):
            chosen = torch.cat(
                [
                    values[number].topk(min(STORED_TOKENS, values.shape[1])).indices
                    for values in (reading.probability, reading.z, reading.lift)
                ]
            )
            ids = [index for index in chosen.unique().tolist() if not words.special[index]]
            table["scale"] += [scale] * len(ids)
            table["sign"] += [sign] * len(ids)
            table["token"] += [words.texts[index] for index in ids]
            for name, values in (("probability", reading.probability), ("z", reading.z), ("lift", reading.lift)):
                table[name] += values[number, ids].tolist()
            table["content"] += words.content[ids].tolist()
            for name, value in (("scale", scale), ("sign", sign), ("agreement", float(reading.agreement[number]))):
                summary[name].append(value)
            summary["null_agreement"].append(reading.null_agreement)
            summary["entropy"].append(float(reading.entropy[number]))
    run.add_table("tokens", table)
    run.add_table("scales", summary)
