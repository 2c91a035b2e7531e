"""Losses with directions changed, in two sweeps over the text: one on the model that gives the projections, one on the
model that is changed; their intervals and ranks among nulls, and when an effect stands out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.causal_effect.schema import CausalEffectParams, CausalEffectResult, EffectRow
from diffing_mcp.methods.directions.vector_sources import gaussian_directions, resolve
from diffing_mcp.methods.directions.vectors import ResidualVector
from diffing_mcp.model_pairs.forward import next_token_log_probs
from diffing_mcp.model_pairs.interventions import Intervention, projection
from diffing_mcp.model_pairs.padding import padded
from diffing_mcp.preprocessing.corpora import load_corpus
from diffing_mcp.preprocessing.corpus_pass import logit_batch_tokens, plan_batches
from diffing_mcp.preprocessing.text_sources import corpus_part
from diffing_mcp.preprocessing.tokenize import tokenize

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import Side

_POOL_FROM = 5
"""First position whose activations make difference directions: before it are attention sinks."""
_POOL_SAMPLES = 16
RESAMPLES = 1000
LEAST_CHANGE = 0.05
"""Nats a token. Directions along which two models differ always do a little: 0.001 and 0.03 in finetunes that taught
nothing, 0.09 to 0.3 in those that taught something. A share of the gap says little by itself: one of the former carries
more than half of a gap of 0.05."""
LEAST_SHARE = 0.1
"""Part of the gap between the models that a direction must carry."""
LEAST_SAMPLES = 6
"""Samples from which on an interval over them can tell: that fewer agree in the sign of an effect happens by chance in
more than one case of twenty."""
LARGEST_P = 0.05
"""Rank among either null. Ranks cannot go below 1 / (1 + nulls), so fewer than 19 nulls of a kind never
make a finding.
"""


@dataclass(frozen=True)
class Candidate:
    """A direction, or a subspace, to be changed: an orthonormal basis [k, d_model] float32 after `layer`."""

    kind: str
    label: str
    layer: int
    basis: Tensor
    note: str = ""


@dataclass(frozen=True)
class Text:
    """Token ids, and the index of the first token whose loss counts."""

    ids: list[int]
    first: int


def measure(pair: LoadedPair, params: CausalEffectParams, run: RunWriter, progress: Progress) -> CausalEffectResult:
    """Run the method; see its declaration."""
    target: Side = "finetuned" if params.direction == "base_to_ft" else "base"
    other: Side = "base" if target == "finetuned" else "finetuned"
    vectors = [resolve(source, pair, run.store, progress) for source in params.vectors]
    texts = _texts(pair, params)
    candidates = _tested(vectors, params.subspace)
    for layer in sorted({candidate.layer for candidate in candidates}):
        size = next(len(candidate.basis) for candidate in candidates if candidate.layer == layer)
        candidates += _nulls(pair, params, texts, layer, size)
    batches = _batches(pair, texts)
    passes = 1 + len(candidates)
    total = (1 + passes) * len(texts)
    done = 0

    def step(rows: int) -> None:
        nonlocal done
        progress(done, total, "measuring losses")
        done += rows

    projections: list[list[Tensor]] = []
    other_nats, target_nats = np.zeros(len(texts)), np.zeros(len(texts))
    changed = np.zeros((len(candidates), len(texts)))
    layers = sorted({candidate.layer for candidate in candidates})
    budget = logit_batch_tokens(pair)
    with pair.side_loaded(other):
        for batch in batches:
            step(len(batch))
            ids, mask = padded([texts[index].ids for index in batch], pair.tokenizer.pad_token_id)
            output = pair.forward(other, ids, mask, layers=layers)
            other_nats[batch] = _nats(output.logits, ids, mask, [texts[index] for index in batch])
            projections.append([_projections(output.hidden[each.layer], each.basis) for each in candidates])
    with pair.side_loaded(target):
        for batch, given in zip(batches, projections, strict=True):
            chosen = [texts[index] for index in batch]
            ids, mask = padded([text.ids for text in chosen], pair.tokenizer.pad_token_id)
            step(len(batch))
            target_nats[batch] = _nats(pair.forward(target, ids, mask).logits, ids, mask, chosen)
            for group in _groups(candidates, ids.numel(), budget):
                step(len(batch) * len(group))
                patches = _patches(
                    [candidates[index] for index in group], [given[index] for index in group], len(batch), params.mode
                )
                logits = pair.forward(
                    target, ids.repeat(len(group), 1), mask.repeat(len(group), 1), interventions=patches
                ).logits
                nats = _nats(logits, ids.repeat(len(group), 1), mask.repeat(len(group), 1), chosen * len(group))
                changed[np.ix_(group, batch)] = nats.reshape(len(group), len(batch))
    counts = np.array([len(text.ids) - text.first for text in texts], dtype=np.float64)
    identical = bool(np.array_equal(other_nats, target_nats))
    if identical and params.mode == "patch":
        changed[:] = target_nats  # equal models have equal projections; what is left is rounding
    _store(run, candidates, changed, target_nats, other_nats, counts)
    return _result(candidates, changed, target_nats, other_nats, counts, identical, params)


def _texts(pair: LoadedPair, params: CausalEffectParams) -> list[Text]:
    if params.texts is None:
        chosen = corpus_part(params)
        corpus = tokenize(load_corpus(chosen), pair, chosen)
        starts = zip(corpus.ids, corpus.content_start, corpus.assistant_start, strict=True)
        texts = [Text(ids, max(1, start if answer is None else answer)) for ids, start, answer in starts]
    else:
        texts = [
            Text(list(pair.tokenizer(text)["input_ids"])[: min(params.max_tokens, pair.context_length)], 1)
            for text in params.texts
        ]
    kept = [text for text in texts if len(text.ids) > text.first]
    if not kept:
        raise InvalidInput("No text has two tokens or more (in a chat: an answer); give longer ones.")
    return kept


def _tested(vectors: Sequence[ResidualVector], subspace: bool) -> list[Candidate]:
    if all(vector.norm == 0 for vector in vectors):
        raise InvalidInput(
            "Every direction is exactly zero (the models do not differ there): there is nothing to change."
        )
    moving = [vector for vector in vectors if vector.norm > 0]
    units = [torch.from_numpy(vector.values).to(torch.float64) / vector.norm for vector in moving]
    if not subspace:
        return [
            Candidate("tested", vector.label, vector.layer, unit.float()[None], vector.note)
            for vector, unit in zip(moving, units, strict=True)
        ]
    if len({vector.layer for vector in moving}) > 1:
        raise InvalidInput(
            "A subspace lies in one layer; these directions are of layers "
            f"{', '.join(str(each.layer) for each in moving)}."
        )
    basis = orthonormal(torch.stack(units))
    note = "; ".join(sorted({vector.note for vector in moving if vector.note}))
    return [
        Candidate("tested", f"subspace of {len(moving)} directions, rank {len(basis)}", moving[0].layer, basis, note)
    ]


def orthonormal(directions: Tensor) -> Tensor:
    """Orthonormal basis [rank, d_model] float32 of the span of directions [k, d_model]; dependent ones (to 1e-6) are
    dropped.
    """
    _, sizes, right = torch.linalg.svd(directions.to(torch.float64), full_matrices=False)
    return right[sizes > 1e-6 * sizes[0]].float()


def _nulls(
    pair: LoadedPair, params: CausalEffectParams, texts: Sequence[Text], layer: int, size: int
) -> list[Candidate]:
    """Gaussian directions, and differences of random base activations of these texts, as many dimensions as the tested
    candidates.
    """
    count = params.random_directions
    gaussian = gaussian_directions(count * size, pair.d_model, params.seed).reshape(count, size, -1)
    generator = torch.Generator().manual_seed(params.seed + 1)
    chosen = [texts[index] for index in torch.randperm(len(texts), generator=generator)[:_POOL_SAMPLES].tolist()]
    ids, mask = padded([text.ids for text in chosen], pair.tokenizer.pad_token_id)
    with pair.side_loaded("base"):
        hidden = pair.forward("base", ids, mask, layers=[layer], logits=False).hidden[layer].to("cpu", torch.float64)
    start = _POOL_FROM if int(mask.sum(1).max()) > _POOL_FROM + 1 else 0
    pool = hidden[:, start:][mask[:, start:].bool()]
    if len(pool) < 2:
        raise InvalidInput("The texts have too few tokens to draw null directions from; give longer ones.")
    first, second = (torch.randint(len(pool), (count * size,), generator=generator) for _ in range(2))
    second = torch.where(first == second, (second + 1) % len(pool), second)
    differences = (pool[first] - pool[second]).reshape(count, size, -1)
    nulls = [("random", gaussian[index]) for index in range(count)] + [
        ("difference", differences[index]) for index in range(count)
    ]
    return [
        Candidate(kind, f"{kind} {number % count}", layer, orthonormal(basis))
        for number, (kind, basis) in enumerate(nulls)
        if bool(basis.any())
    ]


def _batches(pair: LoadedPair, texts: Sequence[Text]) -> list[list[int]]:
    return plan_batches([len(text.ids) for text in texts], logit_batch_tokens(pair))


def _groups(candidates: Sequence[Candidate], tokens: int, budget: int) -> list[list[int]]:
    """Indices of candidates that share a forward: of one layer and size, as many as the budget of tokens holds."""
    most = max(1, budget // tokens)
    kinds: dict[tuple[int, int], list[int]] = {}
    for index, candidate in enumerate(candidates):
        kinds.setdefault((candidate.layer, len(candidate.basis)), []).append(index)
    return [same[start : start + most] for same in kinds.values() for start in range(0, len(same), most)]


def _projections(hidden: Tensor, basis: Tensor) -> Tensor:
    """[k, B, S] float32 on the CPU."""
    return torch.stack([projection(hidden, direction)[..., 0] for direction in basis.to(hidden.device)]).cpu()


def _patches(group: Sequence[Candidate], given: Sequence[Tensor], rows: int, mode: str) -> list[Intervention]:
    """One intervention a basis vector, for `rows` texts under each candidate."""
    patches = []
    for place in range(len(group[0].basis)):
        vectors = torch.stack([candidate.basis[place] for candidate in group]).repeat_interleave(rows, dim=0)
        targets = torch.cat([values[place] for values in given])
        if mode == "patch":
            patches.append(Intervention(group[0].layer, vectors, mode="project", targets=targets))
        else:
            patches.append(Intervention(group[0].layer, vectors, mode="remove"))
    return patches


def _nats(logits: Tensor | None, ids: Tensor, mask: Tensor, texts: Sequence[Text]) -> np.ndarray:
    """Summed negative log-probability of the tokens that count, a row, float64."""
    if logits is None:
        raise RuntimeError("a forward pass with logits gave none")
    log_probs = next_token_log_probs(logits, ids, mask).to(torch.float64)
    return np.array(
        [-float(log_probs[row, text.first - 1 : len(text.ids) - 1].sum()) for row, text in enumerate(texts)]
    )


def _store(
    run: RunWriter,
    candidates: Sequence[Candidate],
    changed: np.ndarray,
    target: np.ndarray,
    other: np.ndarray,
    counts: np.ndarray,
) -> None:
    for name, values in (("changed_nats", changed), ("target_nats", target), ("other_nats", other), ("tokens", counts)):
        run.add_array(name, values)
    change = [per_token(row - target, counts) for row in changed]
    run.add_table(
        "candidates",
        {
            "kind": [each.kind for each in candidates],
            "label": [each.label for each in candidates],
            "layer": [each.layer for each in candidates],
            "loss_change": change,
        },
    )


def _result(
    candidates: Sequence[Candidate],
    changed: np.ndarray,
    target: np.ndarray,
    other: np.ndarray,
    counts: np.ndarray,
    identical: bool,
    params: CausalEffectParams,
) -> CausalEffectResult:
    effects = [per_token(row - target, counts) for row in changed]
    gap, gap_interval = per_token(other - target, counts), interval(other - target, counts, params.seed)
    rows = []
    for index, candidate in enumerate(candidates):
        if candidate.kind != "tested":
            continue
        nulls = {
            kind: [
                effect
                for effect, each in zip(effects, candidates, strict=True)
                if (each.kind, each.layer) == (kind, candidate.layer)
            ]
            for kind in ("random", "difference")
        }
        low, high = interval(changed[index] - target, counts, params.seed)
        part = share(effects[index], gap, gap_interval)
        rows.append(
            EffectRow(
                vector=candidate.label,
                layer=candidate.layer,
                loss_change=round(effects[index], 6),
                low=round(low, 6),
                high=round(high, 6),
                share_of_gap=None if part is None else round(part, 4),
                p_random=rank_p(effects[index], nulls["random"]),
                p_difference=rank_p(effects[index], nulls["difference"]),
                largest_null=round(
                    max((abs(effect) for several in nulls.values() for effect in several), default=0.0), 6
                ),
                note=candidate.note,
            )
        )
    stands_out, headline = judge(rows, gap, identical, params.mode, len(counts))
    return CausalEffectResult(
        stands_out=stands_out,
        headline=headline,
        rows=rows,
        gap=round(gap, 6),
        gap_low=round(gap_interval[0], 6),
        gap_high=round(gap_interval[1], 6),
        target_loss=round(per_token(target, counts), 6),
        samples=len(counts),
        tokens=int(counts.sum()),
        identical=identical,
    )


def per_token(nats: np.ndarray, tokens: np.ndarray) -> float:
    """Sum over sum: nats a token."""
    return float(nats.sum() / tokens.sum())


def interval(nats: np.ndarray, tokens: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap of `per_token` over samples; the estimate itself when there is one sample."""
    drawn = np.random.default_rng(seed).integers(0, len(nats), size=(RESAMPLES, len(nats)))
    low, high = np.quantile(nats[drawn].sum(axis=1) / tokens[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def rank_p(effect: float, nulls: Sequence[float]) -> float:
    """(1 + nulls at least as large in size) / (1 + nulls)."""
    return (1 + sum(abs(null) >= abs(effect) for null in nulls)) / (1 + len(nulls))


def share(effect: float, gap: float, gap_interval: tuple[float, float]) -> float | None:
    """Effect over gap; None when the gap's interval holds 0 or the gap is zero."""
    low, high = gap_interval
    return None if gap == 0 or low <= 0 <= high else effect / gap


def judge(rows: Sequence[EffectRow], gap: float, identical: bool, mode: str, samples: int) -> tuple[bool, str]:
    """Whether some direction carries a part of the change, and the headline."""
    if identical:
        return False, "Both models give every text exactly the same loss: there is nothing for a direction to carry."
    strong = [row for row in rows if _carries(row, mode)]
    best = max(strong or rows, key=lambda row: abs(row.loss_change))
    action = "Carrying over" if mode == "patch" else "Removing"
    share = "" if best.share_of_gap is None else f", {100 * best.share_of_gap:.0f} % of the gap of {gap:+.3f}"
    state = (
        f"{action} {best.vector} changes the loss by {best.loss_change:+.4f} nats a token{share}; null directions by "
        f"up to {best.largest_null:.4f}"
    )
    if strong and samples < LEAST_SAMPLES:
        return False, f"{samples} texts are too few to be sure ({LEAST_SAMPLES} are needed). {state}."
    return bool(strong), f"{state}." if strong else f"No direction carries a clear part of the change. {state}."


def _carries(row: EffectRow, mode: str) -> bool:
    """Whether a direction's effect is large, certain, and beyond the nulls; carried over, also a part of the gap."""
    return (
        abs(row.loss_change) >= LEAST_CHANGE
        and not row.low <= 0 <= row.high
        and max(row.p_random, row.p_difference) <= LARGEST_P
        and (mode == "ablate" or (row.share_of_gap is not None and row.share_of_gap >= LEAST_SHARE))
    )
