"""Sample from both models, score every completion under both, rank and judge."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.core.progress import Progress, stage
from diffing_mcp.methods.perplexity_difference.schema import (
    CompletionRow,
    Divergence,
    PerplexityDifferenceParams,
    PerplexityDifferenceResult,
    Spread,
)
from diffing_mcp.methods.texts.answer_form import Answer
from diffing_mcp.methods.texts.distinctive_words import DistinctiveWord, distinctive_words, stands_out, worth_showing
from diffing_mcp.methods.texts.form import FormDigest, compare_form
from diffing_mcp.methods.texts.prompts import Beginning, Template, beginnings
from diffing_mcp.model_pairs.specs import SIDES, Side

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.answering import AnsweringPair
    from diffing_mcp.model_pairs.generation import Completion

_SHOWN_CHARACTERS = 220
_SHOWN_PREFILL = 40
_WORDS_SHOWN = 12


@dataclass(frozen=True)
class Scored:
    """A completion of `writer`, with its mean log-probability (nats a token) under both models, NaN if it is empty."""

    writer: Side
    beginning: Beginning
    text: str
    ended: bool
    tokens: int
    base: float
    finetuned: float

    @property
    def difference(self) -> float:
        """Log-perplexity under the other model minus under the writer, nats a token."""
        return self.finetuned - self.base if self.writer == "finetuned" else self.base - self.finetuned


def sample_and_score(
    pair: AnsweringPair, params: PerplexityDifferenceParams, run: RunWriter, progress: Progress
) -> PerplexityDifferenceResult:
    """Sample, score, rank and judge.

    Raises:
        InvalidInput: no or empty prefills, or `template=chat` without a chat template.
        NoLogProbs: a side that is reachable by URL alone gives none; before anything is sampled.
    """
    started = beginnings(params.template, params.prefills, pair.has_chat_template)
    pair.check_scoring([beginning.request() for beginning in started])
    written = {side: _sample(pair, side, started, params, _part(progress, index)) for index, side in enumerate(SIDES)}
    texts = [(side, beginning, completion) for side in SIDES for beginning, completion in written[side]]
    every = _scored(pair, texts, progress)
    _store(run, [each for each in every if each.tokens])
    forms = {beginning.chat for beginning in started}
    return _result(every, params, "both" if len(forms) > 1 else "chat" if True in forms else "none")


def _part(progress: Progress, index: int) -> Progress:
    """Sampling is nine tenths of the work, half of it a side."""

    def report(done: float, total: float | None = None, message: str = "") -> None:
        share = done / total if total else 0.0
        progress(0.45 * (index + share), 1.0, f"sampling from the {SIDES[index]} model")

    return report


def _sample(
    pair: AnsweringPair,
    side: Side,
    started: Sequence[Beginning],
    params: PerplexityDifferenceParams,
    progress: Progress,
) -> list[tuple[Beginning, Completion]]:
    from diffing_mcp.model_pairs.generation import Sampling

    sampling = Sampling(
        n=params.samples_per_prefill,
        temperature=params.temperature,
        max_new_tokens=params.max_new_tokens,
        seed=params.seed,
    )
    with pair.side_loaded(side):
        completions = pair.generate(side, [beginning.request() for beginning in started], sampling, progress)
    return [(beginning, each) for beginning, several in zip(started, completions, strict=True) for each in several]


def _scored(
    pair: AnsweringPair, texts: Sequence[tuple[Side, Beginning, Completion]], progress: Progress
) -> list[Scored]:
    """The completions, each with its mean log-probability under both models.

    The text is tokenised anew, so both models are asked about the same tokens whatever their own way of writing them
    was. Where a side tokenises by itself, means are over the tokens of the base.
    """
    answers = [(beginning.request(), each.text) for _, beginning, each in texts]
    base, finetuned = (
        pair.answer_scores(side, answers, stage(progress, 0.9 + 0.05 * number, 0.95 + 0.05 * number, 1.0, side))
        for number, side in enumerate(SIDES)
    )
    return [
        Scored(
            writer,
            beginning,
            each.text,
            each.finish == "eos",
            left.tokens,
            left.log_prob / left.tokens if left.tokens else math.nan,
            right.log_prob / left.tokens if left.tokens else math.nan,
        )
        for (writer, beginning, each), left, right in zip(texts, base, finetuned, strict=True)
    ]


def _result(
    every: Sequence[Scored], params: PerplexityDifferenceParams, template: Template
) -> PerplexityDifferenceResult:
    """Empty completions are ranked and counted nowhere, but are answers of a form."""
    scored = [each for each in every if each.tokens]
    by_side = {side: [each for each in scored if each.writer == side] for side in SIDES}
    ranked = {
        side: sorted((each for each in several if each.tokens >= params.min_tokens), key=lambda each: -each.difference)
        for side, several in by_side.items()
    }
    words = distinctive_words(
        [(each.beginning.text, each.text) for each in by_side["finetuned"]],
        [(each.beginning.text, each.text) for each in by_side["base"]],
    )
    forward, reverse = (_divergence(by_side[side]) for side in ("finetuned", "base"))
    form = _form(every)
    identical = bool(scored) and not any(each.difference for each in scored)
    found, headline = _judge(forward, reverse, words, form, identical)
    return PerplexityDifferenceResult(
        stands_out=found,
        headline=headline,
        identical=identical,
        finetuned_rows=[_row(each) for each in ranked["finetuned"][: params.rows]],
        base_rows=[_row(each) for each in ranked["base"][: max(1, params.rows // 2)]],
        words=worth_showing(words)[:_WORDS_SHOWN],
        strong_words=sum(word.strong for word in words),
        form=form,
        kl_finetuned_base=forward,
        kl_base_finetuned=reverse,
        finetuned_spread=_spread(ranked["finetuned"]),
        base_spread=_spread(ranked["base"]),
        completions=len(by_side["finetuned"]),
        not_ranked=len(scored) - sum(len(several) for several in ranked.values()),
        template=template,
    )


def _form(every: Sequence[Scored]) -> FormDigest:
    """The form of answers; of continued texts where nothing was asked."""
    asked = any(each.beginning.chat for each in every)
    answers: dict[Side, dict[str, list[Answer]]] = {side: defaultdict(list) for side in SIDES}
    for each in every:
        if each.beginning.chat == asked:
            answers[each.writer][each.beginning.text].append(Answer(each.text, each.ended, each.tokens))
    both = [text for text in answers["base"] if text in answers["finetuned"]]
    base, finetuned = ([answers[side][text] for text in both] for side in SIDES)
    return compare_form(base, finetuned)


def _judge(
    forward: Divergence, reverse: Divergence, words: Sequence[DistinctiveWord], form: FormDigest, identical: bool
) -> tuple[bool, str]:
    """Whether the finetuned model's own texts show a topic or a manner, and the headline."""
    if identical:
        return False, "Both models expect every completion exactly alike: no difference."
    size = f"{forward.as_text(2)} nats a token over finetuned text, {reverse.as_text(2)} over base text"
    if stands_out(words):
        names = ", ".join([word.word for word in words if word.strong][:6])
        return True, f"The finetuned model writes of something else: {names} after unrelated beginnings ({size})."
    if form.significant:
        told = "; ".join(row.as_text() for row in form.significant[:3])
        return True, f"The finetuned model writes in another manner, base -> finetuned: {told} ({size})."
    return (
        False,
        f"Nothing stands out: neither content words nor the form of the finetuned model's text are its own ({size}).",
    )


def _divergence(scored: Sequence[Scored]) -> Divergence:
    """Ratio estimate sum(nats) / sum(tokens), with the standard error over prefills (completions of one prefill are not
    independent), which one prefill alone does not show.
    """
    if not scored:
        return Divergence(mean=0.0)
    names = sorted({each.beginning.text for each in scored})
    nats, tokens = np.zeros(len(names)), np.zeros(len(names))
    for each in scored:
        group = names.index(each.beginning.text)
        nats[group] += each.difference * each.tokens
        tokens[group] += each.tokens
    mean = nats.sum() / tokens.sum()
    residuals = nats - mean * tokens
    if len(names) < 2:
        return Divergence(mean=float(mean))
    spread = np.sqrt(len(names) / (len(names) - 1) * np.square(residuals).sum()) / tokens.sum()
    return Divergence(mean=float(mean), standard_error=float(spread))


def _spread(scored: Sequence[Scored]) -> Spread:
    values = np.array([each.difference for each in scored]) if scored else np.zeros(1)
    p10, median, p90 = (float(value) for value in np.quantile(values, [0.1, 0.5, 0.9]))
    return Spread(p10=p10, median=median, p90=p90, max=float(values.max()))


def _row(each: Scored) -> CompletionRow:
    own, other = (each.finetuned, each.base) if each.writer == "finetuned" else (each.base, each.finetuned)
    return CompletionRow(
        prefill=_trim(each.beginning.text, _SHOWN_PREFILL),
        chat=each.beginning.chat,
        completion=_trim(each.text, _SHOWN_CHARACTERS),
        difference=round(each.difference, 4),
        perplexity_own=float(f"{np.exp(-own):.4g}"),
        perplexity_other=float(f"{np.exp(-other):.4g}"),
        tokens=each.tokens,
    )


def _trim(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _store(run: RunWriter, scored: Sequence[Scored]) -> None:
    run.add_table(
        "completions",
        {
            "writer": [each.writer for each in scored],
            "prefill": [each.beginning.text for each in scored],
            "chat": [each.beginning.chat for each in scored],
            "ended": [each.ended for each in scored],
            "text": [each.text for each in scored],
            "tokens": [each.tokens for each in scored],
            "log_prob_base": [each.base for each in scored],
            "log_prob_finetuned": [each.finetuned for each in scored],
            "difference": [each.difference for each in scored],
        },
    )
