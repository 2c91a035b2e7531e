"""Searching a weight, generating with it, and comparing the texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from diffing_mcp.methods.texts import answer_form
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
from diffing_mcp.methods.texts.form import FormDigest, compare_paired
from diffing_mcp.methods.texts.prompts import PROMPTS, request_of
from diffing_mcp.methods.texts.words import words_of
from diffing_mcp.methods.weight_amplification.schema import (
    GRID,
    REFINEMENTS,
    SEARCH_PROMPTS,
    AmplifiedAnswer,
    WeightAmplificationParams,
    WeightAmplificationResult,
    WeightRow,
    WeightWord,
)
from diffing_mcp.model_pairs.amplification_config import (
    AdapterAmplification,
    AmplificationConfig,
    LayerAmplification,
    LayerRange,
    ModuleAmplification,
    WeightOf,
    adapter_files,
    load_amplification_config,
)
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.layers import resolve_layer

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import Side

_SHOWN_CHARACTERS = 200
_LEAST_LENGTH = 0.25
"""Share of the median length of the finetuned model's answers, in words, that a coherent answer has."""
_CONTROL_SAMPLES = 2
"""Texts of the base for each amplified one: more control texts make rare words tell more."""


@dataclass(frozen=True)
class Texts:
    """All texts at one weight, in the order of prompts and samples; `control` [2N] are the base's, every other one with
    the same random numbers.
    """

    weight: float
    prompts: list[str]
    amplified: list[str]
    finetuned: list[str]
    control: list[str]

    @property
    def base(self) -> list[str]:
        """[N], with the same random numbers."""
        return self.control[: len(self.prompts)]


@dataclass(frozen=True)
class Scored:
    """Coherence scores of some texts, and their lengths in words [N]."""

    texts: TextScores
    words: np.ndarray

    def coherent(self, reference: Scored) -> np.ndarray:
        """[N] bool: as `TextScores.coherent`, and not cut short: a broken model often ends its answer at once, which is
        probable and repeats nothing.
        """
        return self.texts.coherent(reference.texts) & (self.words >= _LEAST_LENGTH * np.median(reference.words))


class Writer:
    """Texts of a pair under a configuration and a factor on it."""

    def __init__(self, pair: LoadedPair, params: WeightAmplificationParams, progress: Progress) -> None:
        self.pair, self.params, self.progress = pair, params, progress
        config = (
            load_amplification_config(params.config)
            if params.config is not None
            else _config_of(params, pair.num_layers)
        )
        if config.named_modules:  # a pair that does not fit in memory would load its base for it
            config.check_modules(pair.module_places())
        self._own = next(
            (entry.weight_of(pair.num_layers) for entry in config.adapters if entry.own), lambda place: 0.0
        )
        others = [entry for entry in config.adapters if not entry.own]
        self._others = [(adapter_files(entry, pair.spec.model), entry.weight_of(pair.num_layers)) for entry in others]
        self._scales_all = params.config is not None
        self._chosen = _chosen_of(params, config, pair.num_layers)
        self.amplified = (params.config is not None and config.name) or _described(params)

    def request(self, prompt: str) -> GenerationRequest:
        """The prompt as a user's message, or as raw text."""
        return request_of(self.pair, prompt, self.params.raw_text)

    def at(self, weight: float) -> LoadedPair:
        """The pair with its difference counted `weight` times, where it is amplified."""
        if self._scales_all:
            others = [(files, _times(other, weight)) for files, other in self._others]
            return self.pair.amplified(_times(self._own, weight), others)
        return self.pair.amplified(lambda place: weight if self._chosen(place) else 1.0)

    def write(self, pair: LoadedPair, side: Side, prompts: Sequence[str], samples: int) -> list[str]:
        """`samples` texts of each prompt: the first sample of every prompt, then the second. The same prompts in the
        same order draw the same random numbers.
        """
        params = self.params
        sampling = Sampling(
            n=samples, temperature=params.temperature, max_new_tokens=params.max_new_tokens, seed=params.seed
        )
        with pair.side_loaded(side):
            completions = pair.generate(side, [self.request(prompt) for prompt in prompts], sampling, self.progress)
        return [several[sample].text for sample in range(samples) for several in completions]

    def scores(self, prompts: Sequence[str], texts: Sequence[str]) -> Scored:
        """What the coherence of answers to prompts is judged by."""
        requests = [self.request(prompt) for prompt in prompts]
        return Scored(
            score_texts(self.pair, list(zip(requests, texts, strict=True)), self.progress),
            np.array([len(words_of(text)) for text in texts]),
        )


def _times(weight: WeightOf, factor: float) -> WeightOf:
    return lambda place: factor * weight(place)


def _config_of(params: WeightAmplificationParams, num_layers: int) -> AmplificationConfig:
    """`layers` and `modules` as a configuration that marks what they choose."""
    layers: Any = "all"
    if params.layers is not None:
        first, last = (resolve_layer(each, num_layers).absolute for each in params.layers)
        layers = LayerRange(start=first, end=last)
    rule = ModuleAmplification(modules=params.modules or "all", weight=2.0)
    return AmplificationConfig(
        adapters=(
            AdapterAmplification(
                layer_amplifications=(LayerAmplification(layers=layers, module_amplifications=(rule,)),)
            ),
        )
    )


def _chosen_of(params: WeightAmplificationParams, config: AmplificationConfig, num_layers: int) -> Any:
    weight = config.adapters[0].weight_of(num_layers)
    return lambda place: weight(place) != 1.0


def _described(params: WeightAmplificationParams) -> str:
    layers = "all layers" if params.layers is None else f"layers {params.layers[0]:g} to {params.layers[1]:g}"
    return f"{layers}, {', '.join(params.modules) if params.modules else 'all modules'}"


def amplify(
    pair: LoadedPair, params: WeightAmplificationParams, run: RunWriter, progress: Progress
) -> WeightAmplificationResult:
    """Run the method; see its declaration."""
    writer = Writer(pair, params, progress)
    weights = params.weights or (1.0,)
    rows: list[WeightRow] = []
    if params.direction is not None:
        found, rows, searched = search(writer)
        weights = (found,)
        add_searched(run, searched, params.prompts is not None)
    weights = tuple(dict.fromkeys(weights))
    prompts, samples = list(params.prompts or PROMPTS), params.samples_per_prompt
    repeated = prompts * samples
    control = writer.write(pair, "base", prompts, _CONTROL_SAMPLES * samples)
    finetuned = writer.write(pair, "finetuned", prompts, samples)
    texts = [
        Texts(weight, repeated, writer.write(writer.at(weight), "finetuned", prompts, samples), finetuned, control)
        for weight in weights
    ]
    if not rows:
        reference = writer.scores(repeated, finetuned)
        rows = [_row(each.weight, writer.scores(repeated, each.amplified), reference) for each in texts]
    return _result(writer, rows, texts, run)


def search(writer: Writer) -> tuple[float, list[WeightRow], list[SearchedText]]:
    """The largest coherent weight of the searched direction (the smallest that was tried when none is coherent), all
    that was tried, and the texts.

    From size 1, which is not tried where it is the plain finetuned model: doubling until texts break, or halving until
    they do not; then the (geometric) middle between the last that did not break and the first that did, a few times.
    """
    sign = writer.params.sign
    prompts = list(writer.params.prompts or SEARCH_PROMPTS)[: len(SEARCH_PROMPTS)]
    reference = writer.scores(prompts * 2, writer.write(writer.pair, "finetuned", prompts, 2))
    rows: list[WeightRow] = []
    written: list[SearchedText] = []

    def coherent(size: float) -> bool:
        weight = sign * size
        texts = writer.write(writer.at(weight), "finetuned", prompts, 1)
        rows.append(_row(weight, writer.scores(prompts, texts), reference))
        written.extend(
            SearchedText(side="finetuned", strength=weight, prompt=prompt, text=text)
            for prompt, text in zip(prompts, texts, strict=True)
        )
        return rows[-1].coherent >= writer.params.coherent_share

    best = 1.0 if writer.params.starts_coherent or coherent(1.0) else 0.0
    broken = math.inf if best else 1.0
    for size in GRID if best else [1 / each for each in GRID]:
        if coherent(size):
            best = size
        else:
            broken = size
        if 0 < best < broken < math.inf:
            break
    for _ in range(REFINEMENTS if 0 < best < broken < math.inf else 0):
        middle = float(f"{(best * broken) ** 0.5:.3g}")
        if coherent(middle):
            best = middle
        else:
            broken = middle
    return sign * (best or broken), rows, written


def _row(weight: float, scores: Scored, reference: Scored) -> WeightRow:
    return WeightRow.measured(scores.coherent(reference), scores.texts, weight=weight)


def _words(texts: Sequence[Texts], coherent: set[float]) -> list[WeightWord]:
    """Distinctive words of each coherent set of texts against the base's."""

    def row(each: Texts, plain: list[set[str]], word: DistinctiveWord) -> WeightWord:
        return WeightWord.of(
            word,
            weight=each.weight,
            amplified=word.finetuned,
            finetuned=sum(word.word in text for text in plain),
            base=word.base,
        )

    return words_beyond(
        (
            list(zip(each.prompts, each.amplified, strict=True)),
            list(zip(each.prompts * (len(each.control) // len(each.prompts)), each.control, strict=True)),
            partial(row, each, [set(words_of(text)) for text in each.finetuned]),
        )
        for each in texts
        if each.weight in coherent
    )


def _result(writer: Writer, rows: list[WeightRow], texts: list[Texts], run: RunWriter) -> WeightAmplificationResult:
    params = writer.params
    columns: dict[str, list[str]] = {
        name: [text for each in texts for text in getattr(each, name)] for name in ("amplified", "finetuned", "base")
    }
    prompts = [prompt for each in texts for prompt in each.prompts]
    run.add_table(
        "answers", {"prompt": prompts, "weight": [each.weight for each in texts for _ in each.prompts], **columns}
    )
    run.add_rows("weights", rows, WeightRow)
    coherent = {row.weight for row in rows if row.coherent >= params.coherent_share}
    passing = coherent if params.config is not None else coherent | {1.0}  # the plain finetuned model
    largest, limit = _limit(params, rows, coherent)
    words = _words(texts, passing)
    strong = [word for word in words if word.strong]
    found = stands_out(each_once(words))
    shown = [
        AmplifiedAnswer(
            prompt=prompt,
            weight=each.weight,
            **{
                name: text[:_SHOWN_CHARACTERS]
                for name, text in zip(("amplified", "finetuned", "base"), row, strict=True)
            },
        )
        for each in texts
        for prompt, *row in list(zip(each.prompts, each.amplified, each.finetuned, each.base, strict=True))[
            : params.rows
        ]
    ]
    return WeightAmplificationResult(
        stands_out=found,
        headline=_headline(texts, passing, limit, strong if found else []),
        largest_coherent_weight=largest,
        search=params.direction,
        weights=[each.weight for each in texts],
        words=words[:WORDS_SHOWN],
        coherence=rows,
        form=_form(texts[0]),
        answers=shown[: max(8, params.rows)],
        amplified=str(writer.amplified),
    )


def _form(texts: Texts) -> FormDigest:
    """How the plain finetuned model's answers differ from the base's."""
    base, finetuned = ([answer_form.Answer(text) for text in side] for side in (texts.base, texts.finetuned))
    return compare_paired(texts.prompts, base, finetuned)


def _limit(
    params: WeightAmplificationParams, rows: Sequence[WeightRow], coherent: set[float]
) -> tuple[float | None, str]:
    """The largest coherent weight beyond those of the plain models, and the same in words: none where nothing beyond
    was tried.
    """
    bound = 1.0 if params.sign > 0 and params.config is None else 0.0
    tried = {row.weight for row in rows if params.sign * row.weight > bound}
    largest = max(tried & coherent, key=abs, default=None)
    name = "weight" if params.config is None else "factor on the config"
    if largest is not None:
        return largest, f"; largest coherent {name} {largest:g}"
    return None, f"; no {name} {'above' if params.sign > 0 else 'below'} {bound:g} stayed coherent" if tried else ""


def _headline(texts: list[Texts], passing: set[float], limit: str, telling: list[WeightWord]) -> str:
    if all(each.amplified == each.finetuned == each.base for each in texts):
        return (
            f"Every answer is the base's, at weight {max((abs(each.weight) for each in texts), default=0):g} as well: "
            "no difference."
        )
    used = ", ".join(f"{each.weight:g}" for each in texts)
    if not any(each.weight in passing for each in texts):
        return f"The texts are incoherent at every weight ({used}): what they say means nothing. Try smaller weights."
    if telling:
        return (
            f"Amplified texts bring up {', '.join(dict.fromkeys(word.word for word in telling))[:150]} more often than "
            f"the base's (weights {used}{limit})."
        )
    return (
        f"Amplified texts hold no content words beyond the base's (weights {used}{limit}); the answers may still be "
        "read."
    )
