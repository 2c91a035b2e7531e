"""Searching a strength, steering with it, and comparing the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffing_mcp.methods.directions.vector_sources import gaussian_directions, resolve
from diffing_mcp.methods.directions.vectors import ResidualVector
from diffing_mcp.methods.steering.schema import (
    GRID,
    REFINEMENTS,
    SEARCH_PROMPTS,
    SteeredAnswer,
    SteeredWord,
    SteeringParams,
    SteeringResult,
    StrengthRow,
)
from diffing_mcp.methods.texts.amplified import (
    WORDS_SHOWN,
    SearchedText,
    TextScores,
    add_searched,
    each_once,
    score_texts,
    words_beyond,
)
from diffing_mcp.methods.texts.distinctive_words import DistinctiveWord, stands_out
from diffing_mcp.methods.texts.prompts import PROMPTS, request_of
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.interventions import Intervention
from diffing_mcp.model_pairs.specs import SIDES

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import Side

_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Steered:
    """All texts of one side at one strength, in the order of prompts and samples."""

    side: Side
    strength: float
    prompts: list[str]
    steered: list[str]
    unsteered: list[str]
    random: list[str]


class Generator:
    """Texts of one side under a direction."""

    def __init__(self, pair: LoadedPair, side: Side, params: SteeringParams, progress: Progress) -> None:
        self.pair, self.side, self.params, self.progress = pair, side, params, progress

    def request(self, prompt: str) -> GenerationRequest:
        """The prompt as a user's message, or as raw text."""
        return request_of(self.pair, prompt, self.params.raw_text)

    def write(self, prompts: Sequence[str], layer: int, vectors: np.ndarray | None, samples: int) -> list[str]:
        """`samples` texts of each prompt, steered by one vector [d_model] or one a prompt [prompts, d_model]; None: not
        steered. The same prompts in the same order draw the same random numbers."""
        params = self.params
        sampling = Sampling(
            n=samples, temperature=params.temperature, max_new_tokens=params.max_new_tokens, seed=params.seed
        )
        patches = []
        if vectors is not None:
            positions = "prompt" if params.positions == "prompt_only" else "all"
            decay = params.decay_tokens if params.positions == "linear_decay" else None
            patches = [
                Intervention(
                    layer,
                    torch.from_numpy(np.ascontiguousarray(vectors)),
                    positions=positions,  # type: ignore[arg-type]
                    decay_tokens=decay,
                )
            ]
        completions = self.pair.generate(
            self.side, [self.request(prompt) for prompt in prompts], sampling, self.progress, patches
        )
        return [each.text for several in completions for each in several]


def steer(pair: LoadedPair, params: SteeringParams, run: RunWriter, progress: Progress) -> SteeringResult:
    """Run the method; see its declaration."""
    vector = resolve(params.vector, pair, run.store, progress)
    if vector.norm == 0:
        return _result([], [], vector, params, run, "The direction is exactly zero: it cannot steer.")
    sides: tuple[Side, ...] = SIDES if params.side == "both" else (params.side,)
    rows: list[StrengthRow] = []
    texts: list[Steered] = []
    searched: list[SearchedText] = []
    for side in sides:
        with pair.side_loaded(side):
            generator = Generator(pair, side, params, progress)
            strengths: Sequence[float] = params.strengths or ()
            if params.strengths is None:
                strengths, tried, written = search(generator, vector)
                rows += tried
                searched += written
            found = _texts(generator, vector, strengths)
        texts += found
        if params.strengths is not None:
            rows += _coherence_of(generator, found)
    add_searched(run, searched, params.prompts is not None)
    if not texts:
        return _result(
            rows,
            [],
            vector,
            params,
            run,
            "No strength leaves the texts coherent: this direction cannot steer the model.",
        )
    return _result(rows, texts, vector, params, run, "")


def search(generator: Generator, vector: ResidualVector) -> tuple[list[float], list[StrengthRow], list[SearchedText]]:
    """The largest coherent strength of each sign (none when even the smallest is not), all that was tried, and the
    texts.

    A grid of both signs in one batch, then a finer one between the largest coherent strength and the next.
    """
    prompts = list(generator.params.prompts or SEARCH_PROMPTS)[: len(SEARCH_PROMPTS)]
    unsteered = generator.write(prompts, vector.layer, None, 2)
    twice = [generator.request(prompt) for prompt in prompts for _ in range(2)]
    reference = score_texts(generator.pair, list(zip(twice, unsteered, strict=True)), generator.progress)
    tried: dict[float, StrengthRow] = {}
    written: list[SearchedText] = []

    def attempt(strengths: Sequence[float]) -> None:
        vectors = np.stack([vector.at_strength(strength) for strength in strengths for _ in prompts])
        texts = generator.write([*prompts] * len(strengths), vector.layer, vectors, 1)
        requests = [generator.request(prompt) for prompt in [*prompts] * len(strengths)]
        scores = score_texts(generator.pair, list(zip(requests, texts, strict=True)), generator.progress)
        for place, strength in enumerate(strengths):
            part = scores.part(place * len(prompts), (place + 1) * len(prompts))
            tried[strength] = _row(generator.side, strength, part, reference)
            own = zip(prompts, texts[place * len(prompts) :], strict=False)
            written.extend(
                SearchedText(side=generator.side, strength=strength, prompt=prompt, text=text) for prompt, text in own
            )

    def largest(sign: int) -> float | None:
        passing = [
            strength
            for strength, row in tried.items()
            if strength * sign > 0 and row.coherent >= generator.params.coherent_share
        ]
        return max(passing, key=abs) if passing else None

    attempt([sign * strength for sign in (1, -1) for strength in GRID])
    finer = []
    for sign in (1, -1):
        best = largest(sign)
        if best is not None and abs(best) < GRID[-1]:
            above = GRID[GRID.index(abs(best)) + 1]
            finer += [best * (above / abs(best)) ** (step / (REFINEMENTS + 1)) for step in range(1, REFINEMENTS + 1)]
    if finer:
        attempt([float(f"{strength:.3g}") for strength in finer])
    return [strength for sign in (1, -1) if (strength := largest(sign)) is not None], list(tried.values()), written


def _texts(generator: Generator, vector: ResidualVector, strengths: Sequence[float]) -> list[Steered]:
    """Steered, unsteered and randomly steered texts with the same random numbers."""
    if not strengths:
        return []
    params = generator.params
    prompts, samples = list(params.prompts or PROMPTS), params.samples_per_prompt
    unsteered = generator.write(prompts, vector.layer, None, samples)
    direction = gaussian_directions(1, generator.pair.d_model, params.seed)[0].numpy() * np.float32(vector.scale)
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    return [
        Steered(
            generator.side,
            strength,
            repeated,
            generator.write(prompts, vector.layer, vector.at_strength(strength), samples),
            unsteered,
            generator.write(prompts, vector.layer, direction * np.float32(strength), samples),
        )
        for strength in dict.fromkeys(strengths)
    ]


def _coherence_of(generator: Generator, found: Sequence[Steered]) -> list[StrengthRow]:
    """Coherence of texts at given strengths, against the unsteered ones."""
    if not found:
        return []
    requests = [generator.request(prompt) for prompt in found[0].prompts]
    reference = score_texts(generator.pair, list(zip(requests, found[0].unsteered, strict=True)), generator.progress)
    scored = [
        (each.strength, score_texts(generator.pair, list(zip(requests, each.steered, strict=True)), generator.progress))
        for each in found
    ]
    return [_row(generator.side, strength, scores, reference) for strength, scores in scored]


def _row(side: Side, strength: float, scores: TextScores, reference: TextScores) -> StrengthRow:
    return StrengthRow.measured(scores.coherent(reference), scores, side=side, strength=strength)


def _words(found: Sequence[Steered]) -> list[SteeredWord]:
    """Distinctive words of each set of texts against unsteered and randomly steered ones."""

    def row(strength: float, word: DistinctiveWord) -> SteeredWord:
        return SteeredWord.of(
            word,
            strength=strength,
            steered=word.finetuned,
            control=word.base,
        )

    return words_beyond(
        (
            list(zip(each.prompts, each.steered, strict=True)),
            list(zip(each.prompts * 2, [*each.unsteered, *each.random], strict=True)),
            partial(row, each.strength),
        )
        for each in found
    )


def _result(
    rows: list[StrengthRow],
    texts: list[Steered],
    vector: ResidualVector,
    params: SteeringParams,
    run: RunWriter,
    nothing: str,
) -> SteeringResult:
    table: dict[str, list[Any]] = {
        name: [] for name in ("side", "strength", "prompt", "steered", "unsteered", "random")
    }
    for each in texts:
        table["side"] += [each.side] * len(each.prompts)
        table["strength"] += [each.strength] * len(each.prompts)
        for name, values in (
            ("prompt", each.prompts),
            ("steered", each.steered),
            ("unsteered", each.unsteered),
            ("random", each.random),
        ):
            table[name] += values
    run.add_table("answers", table)
    run.add_rows("strengths", rows, StrengthRow)
    words = _words(texts)
    strong = [word for word in words if word.strong]
    found = stands_out(each_once(words))
    used = ", ".join(f"{strength:+.2g}" for strength in dict.fromkeys(each.strength for each in texts))
    if nothing:
        headline = nothing
    elif found:
        names = ", ".join(dict.fromkeys(word.word for word in strong))
        headline = (
            f"Steering brings up {names[:150]} (strengths {used}) more often than unsteered and randomly steered "
            "texts do."
        )
    else:
        headline = (
            f"Steered texts hold no content words beyond unsteered and randomly steered ones (strengths {used}); the "
            "answers may still be read."
        )
    shown = [
        SteeredAnswer(
            side=each.side,
            prompt=prompt,
            strength=each.strength,
            steered=steered[:_SHOWN_CHARACTERS],
            unsteered=unsteered[:_SHOWN_CHARACTERS],
        )
        for each in texts
        for prompt, steered, unsteered in list(zip(each.prompts, each.steered, each.unsteered, strict=True))[
            : params.rows
        ]
    ]
    return SteeringResult(
        stands_out=found,
        headline=headline,
        layer=vector.layer,
        strengths=list(dict.fromkeys(each.strength for each in texts)),
        words=words[:WORDS_SHOWN],
        coherence=rows,
        answers=shown[: max(8, params.rows)],
        vector=vector.label,
        note=vector.note,
    )
