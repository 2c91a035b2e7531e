"""Writing at every alpha, its opposites and the plain models, and comparing the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.methods.contrastive_decoding.schema import (
    AlphaRow,
    AmplifiedText,
    AmplifiedWord,
    ContrastiveDecodingParams,
    ContrastiveDecodingResult,
    Start,
)
from diffing_mcp.methods.texts.amplified import WORDS_SHOWN, TextScores, each_once, words_beyond
from diffing_mcp.methods.texts.answer_form import Answer
from diffing_mcp.methods.texts.distinctive_words import DistinctiveWord, stands_out
from diffing_mcp.methods.texts.form import FormDigest, compare_paired
from diffing_mcp.methods.texts.prompts import Beginning
from diffing_mcp.methods.texts.words import repetition
from diffing_mcp.model_pairs.generation import Sampling

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.contrastive import ContrastiveCompletion
    from diffing_mcp.model_pairs.pair import LoadedPair

BASE, FINETUNED = -1.0, 0.0
"""The alphas at which the plain models write."""
COHERENT_SHARE = 0.75
"""Share of texts that must be coherent for an alpha to be taken."""
_SHOWN_CHARACTERS = 220


@dataclass(frozen=True)
class Written:
    """All texts at one alpha, in the order of prompts and samples.
    `starts` tells texts of different beginnings apart.
    """

    alpha: float
    starts: list[str]
    beginnings: list[Beginning]
    texts: list[ContrastiveCompletion]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Start and text, for the comparison of words."""
        return [(start, text.text) for start, text in zip(self.starts, self.texts, strict=True)]

    @property
    def differences(self) -> np.ndarray:
        """[N] float64, log-probability under finetuned minus under base, nats a token."""
        return np.array([(text.finetuned_log_prob - text.base_log_prob) / max(1, text.tokens) for text in self.texts])

    def scores(self) -> TextScores:
        """How expected each text is by the nearer of the two models, and its repetition."""
        nearer = [
            text.finetuned_log_prob if self.alpha >= (BASE + FINETUNED) / 2 else text.base_log_prob
            for text in self.texts
        ]
        perplexity = [
            -value / text.tokens if text.tokens else np.inf for value, text in zip(nearer, self.texts, strict=True)
        ]
        return TextScores(np.array(perplexity), np.array([repetition(text.text) for text in self.texts]))


def opposite(alpha: float) -> float:
    """The alpha that lies as far beyond the base model as this one beyond the finetuned one: from
    log p_base + alpha (log p_base - log p_ft).
    """
    return BASE - alpha


def decode(
    pair: LoadedPair, params: ContrastiveDecodingParams, run: RunWriter, progress: Progress
) -> ContrastiveDecodingResult:
    """Write at every alpha, compare and judge.

    Raises:
        InvalidInput: `start=chat` without a chat template, or prompts with `start=nothing`.
    """
    written = {each.alpha: each for each in _write(pair, params, progress)}
    columns = ("alpha", "prompt", "chat", "text", "ended", "tokens", "difference")
    table: dict[str, list[object]] = {name: [] for name in columns}
    for each in written.values():
        table["alpha"] += [each.alpha] * len(each.texts)
        table["prompt"] += [beginning.text for beginning in each.beginnings]
        table["chat"] += [beginning.chat for beginning in each.beginnings]
        table["ended"] += [text.finish == "eos" for text in each.texts]
        table["text"] += [text.text for text in each.texts]
        table["tokens"] += [text.tokens for text in each.texts]
        table["difference"] += [round(float(value), 4) for value in each.differences]
    run.add_table("texts", table)
    plain = {BASE: written[BASE].scores(), FINETUNED: written[FINETUNED].scores()}
    rows = [
        _row(written[alpha], plain[FINETUNED if alpha >= FINETUNED else BASE])
        for alpha in sorted(written, reverse=True)
    ]
    coherent = [row.alpha for row in rows if row.coherent >= COHERENT_SHARE]
    amplified = [alpha for alpha in coherent if alpha in params.alphas]
    words = _words([written[alpha] for alpha in amplified], written, BASE)
    suppressed = _words([written[alpha] for alpha in coherent if opposite(alpha) in params.alphas], written, FINETUNED)
    return _result(written, rows, amplified, words, suppressed, params)


def _write(pair: LoadedPair, params: ContrastiveDecodingParams, progress: Progress) -> list[Written]:
    started = params.beginnings(pair.has_chat_template)
    alphas = list(dict.fromkeys([*params.alphas, FINETUNED, BASE, *map(opposite, params.alphas)]))
    sampling = Sampling(
        n=params.samples_per_prompt,
        temperature=params.temperature,
        max_new_tokens=params.max_new_tokens,
        seed=params.seed,
    )
    requests = [beginning.request() for beginning in started]
    found = pair.generate_contrastive(requests, alphas, sampling, params.plausibility, progress)
    repeated = [beginning for beginning in started for _ in range(params.samples_per_prompt)]
    # Texts from nothing have no beginning in common that could repeat itself.
    starts = [beginning.text or f" {index} " for index, beginning in enumerate(repeated)]
    return [
        Written(alpha, starts, repeated, [text for several in of_alpha for text in several])
        for alpha, of_alpha in zip(alphas, found, strict=True)
    ]


def _row(each: Written, plain: TextScores) -> AlphaRow:
    scores = each.scores()
    return AlphaRow(
        alpha=each.alpha,
        difference=round(float(each.differences.mean()), 3),
        coherent=round(float(scores.coherent(plain).mean()), 3),
        tokens=round(float(np.mean([text.tokens for text in each.texts])), 1),
    )


def _words(amplified: Sequence[Written], written: dict[float, Written], plain: float) -> list[AmplifiedWord]:
    """Distinctive words at each alpha against the opposite one and the `plain` model at the other end, most surprising
    first.
    """

    def row(alpha: float, word: DistinctiveWord) -> AmplifiedWord:
        return AmplifiedWord.of(
            word,
            alpha=alpha,
            amplified=word.finetuned,
            control=word.base,
        )

    words = words_beyond(
        (each.pairs, [*written[opposite(each.alpha)].pairs, *written[plain].pairs], partial(row, each.alpha))
        for each in amplified
    )
    return each_once(words)


def _result(
    written: dict[float, Written],
    rows: list[AlphaRow],
    coherent: list[float],
    words: list[AmplifiedWord],
    suppressed: list[AmplifiedWord],
    params: ContrastiveDecodingParams,
) -> ContrastiveDecodingResult:
    identical = all(text.finetuned_log_prob == text.base_log_prob for each in written.values() for text in each.texts)
    found = not identical and stands_out(words)
    alpha = max(coherent, default=None)
    if identical:
        headline = "Both models give every text exactly the same probability: no difference to amplify."
    elif alpha is None:
        headline = "No alpha leaves the texts coherent; try smaller ones. The texts may still be read."
    elif found:
        headline = (
            f"Amplifying the difference writes of {_strong_names(words)}, which neither the opposite direction nor the "
            f"base does (alpha up to {alpha:g})."
        )
    else:
        headline = (
            "Amplified texts hold no content words beyond the opposite direction and the base (alpha up to "
            f"{alpha:g}); they may still be read."
        )
    shown = written[max(params.alphas) if alpha is None else alpha]
    order = np.argsort(-shown.differences, kind="stable")[: params.rows]
    return ContrastiveDecodingResult(
        stands_out=found,
        headline=headline,
        identical=identical,
        alpha=alpha,
        words=words[:WORDS_SHOWN],
        suppressed=suppressed[:WORDS_SHOWN],
        suppression=_suppression(suppressed),
        form=_form(written[BASE], written[FINETUNED]),
        texts=[
            AmplifiedText(
                alpha=shown.alpha,
                prompt=shown.beginnings[index].text[:40],
                chat=shown.beginnings[index].chat,
                text=shown.texts[index].text[:_SHOWN_CHARACTERS],
                difference=round(float(shown.differences[index]), 3),
            )
            for index in order
        ],
        alphas=rows,
        start=_start(params, written[FINETUNED].beginnings),
    )


def _form(base: Written, finetuned: Written) -> FormDigest | None:
    """The form of the plain models' answers to messages; None without any."""
    asked = [place for place, beginning in enumerate(base.beginnings) if beginning.chat]
    if not asked:
        return None
    before, after = (
        [Answer(each.texts[place].text, each.texts[place].finish == "eos", each.texts[place].tokens) for place in asked]
        for each in (base, finetuned)
    )
    return compare_paired([base.beginnings[place].text for place in asked], before, after)


def _start(params: ContrastiveDecodingParams, started: Sequence[Beginning]) -> Start:
    """What was started from: `both` is `prefixes` without a chat template."""
    return "prefixes" if params.start == "both" and not any(each.chat for each in started) else params.start


def _suppression(suppressed: Sequence[AmplifiedWord]) -> str:
    """The opposite direction in a sentence, by the levels of the amplified words."""
    if stands_out(suppressed):
        return (
            f"The finetune pushes away from {_strong_names(suppressed)}, or crowds them out: only texts of the "
            "opposite direction hold them."
        )
    return (
        "The opposite direction writes no content words of its own: nothing that the finetune clearly pushes away from."
    )


def _strong_names(words: Sequence[AmplifiedWord]) -> str:
    return ", ".join([word.word for word in words if word.strong][:8])
