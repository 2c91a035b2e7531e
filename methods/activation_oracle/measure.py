"""Takes activations of both sides, has the verbalizer answer questions on them, and compares the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.activation_oracle.asking import ask, residual_streams
from diffing_mcp.methods.activation_oracle.schema import (
    CONTEXT,
    ActivationOracleParams,
    ActivationOracleResult,
    AnswerGroup,
    Kind,
    Mode,
    OracleAnswer,
    OracleWord,
)
from diffing_mcp.methods.activation_oracle.verbalizers import choose_verbalizer
from diffing_mcp.methods.directions.vector_sources import resolve
from diffing_mcp.methods.texts.distinctive_words import distinctive_words
from diffing_mcp.model_pairs.generation import Sampling
from diffing_mcp.model_pairs.layers import LayerRef, resolve_layer
from diffing_mcp.model_pairs.specs import SIDES, Side

if TYPE_CHECKING:
    from torch import Tensor

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair

_AT_ONCE = 16
"""Contexts of a pass."""
_EXAMPLES = 4
_CHARACTERS = 120
_WORDS_SHOWN = 12
_LEAST_SURPRISE_SHOWN = 1.3


@dataclass(frozen=True)
class _Span:
    """Tokens [start, stop) of a context that one answer is about."""

    context: int
    mode: Mode
    start: int
    stop: int


def read(
    pair: LoadedPair, params: ActivationOracleParams, run: RunWriter, progress: Progress
) -> ActivationOracleResult:
    """Run the method; see its declaration.

    Raises:
        InvalidInput: empty contexts, a layer out of range, or an unknown verbalizer.
        NotTheSame: a verbalizer that was made for another model.
    """
    verbalizer = choose_verbalizer(params.verbalizer, pair.spec.base.files.id)
    if not 0 <= params.injection_layer < pair.num_layers:
        raise InvalidInput(
            f"injection_layer {params.injection_layer} is out of range: this model has layers 0 to "
            f"{pair.num_layers - 1}."
        )
    kinds: dict[Kind, list[Tensor]]
    if params.vector is not None:
        vector = resolve(params.vector, pair, run.store, progress)
        layer = resolve_layer(vector.layer, pair.num_layers)
        values = torch.from_numpy(vector.values)[None]
        spans = [_Span(0, "token", 0, 1)] * params.samples
        kinds = {"vector": [values] * len(spans), "opposite": [-values] * len(spans)} if bool(values.any()) else {}
        lengths, identical = [1], not kinds
    else:
        layer = resolve_layer(params.layer, pair.num_layers)
        hidden = _activations(pair, params, layer.absolute, progress)
        lengths = [len(rows) for rows in hidden["base"]]
        spans = [span for context, length in enumerate(lengths) for span in _spans(context, length, params)]
        identical = all(torch.equal(one, other) for one, other in zip(hidden["base"], hidden["finetuned"], strict=True))
        kinds = {side: [hidden[side][span.context][span.start : span.stop] for span in spans] for side in SIDES}
        if not identical:
            kinds["difference"] = [one - other for one, other in zip(kinds["finetuned"], kinds["base"], strict=True)]
    sampling = Sampling(temperature=params.temperature, max_new_tokens=params.max_new_tokens, seed=params.seed)
    answers: list[OracleAnswer] = []
    for number, (kind, vectors) in enumerate(kinds.items()):

        def part(
            done: float, total: float | None = None, message: str = "", number: int = number, kind: str = kind
        ) -> None:
            progress(number + (done / total if total else 0.0), len(kinds), f"asking about {kind} activations")

        asked = [(question, several) for question in params.questions for several in vectors]
        texts = ask(pair, verbalizer, asked, layer.absolute, params.injection_layer, params.coefficient, sampling, part)
        for index, ((question, _), text) in enumerate(zip(asked, texts, strict=True)):
            span = spans[index % len(spans)]
            position = span.stop - 1 - lengths[span.context]
            answers.append(
                OracleAnswer(
                    kind=kind, mode=span.mode, question=question, context=span.context, position=position, answer=text
                )
            )
    run.add_rows("answers", answers, OracleAnswer)
    return _result(answers, params, layer, identical, verbalizer.adapter is None)


def _spans(context: int, length: int, params: ActivationOracleParams) -> list[_Span]:
    """What the answers on one context are about; the first token, an attention sink, is left out where there are
    others.
    """
    first = 1 if length > 1 else 0
    spans: list[_Span] = []
    if "token" in params.modes:
        spans += [
            _Span(context, "token", index, index + 1)
            for index in range(max(first, length - params.token_positions), length)
        ]
    if "segment" in params.modes:
        width = min(params.segment_length, length - first)
        starts = torch.linspace(first, length - width, params.samples).round().int().tolist()
        spans += [_Span(context, "segment", start, start + width) for start in starts]
    if "sequence" in params.modes:
        spans += [_Span(context, "sequence", first, length)] * params.samples
    return spans


def _activations(
    pair: LoadedPair, params: ActivationOracleParams, layer: int, progress: Progress
) -> dict[Side, list[Tensor]]:
    """Residual stream [T, d_model] float32 of every context under both sides, on the CPU."""
    contexts = params.contexts or (CONTEXT,)
    if any(not text.strip() for text in contexts):
        raise InvalidInput("contexts must hold texts that are not empty; leave it out for the neutral one.")
    if params.format == "chat" and pair.has_chat_template:
        rendered = [pair.render_chat([ChatMessage(role="user", content=text)]) for text in contexts]
        ids = [pair.tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered]
    else:
        ids = [pair.tokenizer(text)["input_ids"] for text in contexts]
    result: dict[Side, list[Tensor]] = {}
    for side in SIDES:
        with pair.side_loaded(side):
            result[side] = residual_streams(pair, side, ids, layer, _AT_ONCE, progress)
    return result


def _result(
    answers: Sequence[OracleAnswer],
    params: ActivationOracleParams,
    layer: LayerRef,
    identical: bool,
    self_verbalised: bool,
) -> ActivationOracleResult:
    by_kind: dict[Kind, list[OracleAnswer]] = {}
    for each in answers:
        by_kind.setdefault(each.kind, []).append(each)
    compared: Kind = "opposite" if params.vector is not None else "base"
    words: list[OracleWord] = []
    if not identical:
        for kind, several in by_kind.items():
            if kind != compared:
                words += _words(kind, several, by_kind[compared])
    found = [row for row in words if row.strong and row.kind == "finetuned"]
    leads = [row.word for row in words if row.kind in ("difference", "vector")]
    return ActivationOracleResult(
        stands_out=bool(found),
        headline=_headline(identical, [row.word for row in found], leads, params.vector is not None),
        identical=identical,
        self_verbalised=self_verbalised,
        groups=[
            AnswerGroup(kind=kind, question=question, answers=len(texts), examples=_most_frequent(texts))
            for question in params.questions
            for kind, several in by_kind.items()
            if (texts := [each.answer for each in several if each.question == question])
        ],
        words=words,
        layer=layer.absolute,
        relative_layer=layer.relative,
        answers=len(next(iter(by_kind.values()), [])),
    )


def _words(kind: Kind, answers: Sequence[OracleAnswer], compared: Sequence[OracleAnswer]) -> list[OracleWord]:
    """Distinctive words of the answers; what stands in the question does not count, and a strong word comes from
    several places.
    """

    def texts(several: Sequence[OracleAnswer]) -> list[tuple[str, str]]:
        return [(f"{each.question} {each.context} {each.mode} {each.position}", each.answer) for each in several]

    rows = [
        row
        for row in distinctive_words(texts(answers), texts(compared))
        if row.strong or row.surprise >= _LEAST_SURPRISE_SHOWN
    ]
    return [
        OracleWord(
            kind=kind, word=row.word, count=row.finetuned, compared=row.base, surprise=row.surprise, strong=row.strong
        )
        for row in rows[:_WORDS_SHOWN]
    ]


def _headline(identical: bool, found: Sequence[str], leads: Sequence[str], is_vector: bool) -> str:
    if identical:
        return (
            "The vector is zero: there is nothing to ask about."
            if is_vector
            else "Both models have exactly the same activations: no difference."
        )
    hint = f"; leads to check: {', '.join(leads[:6])}" if leads else ""
    if found:
        return (
            "Answers on finetuned activations name what answers on base activations do not: "
            f"{', '.join(found[:6])}{hint}."
        )
    if is_vector:
        return (
            f"Answers on a direction are leads, never findings{hint}."
            if leads
            else "The answers on the vector and on its opposite share their words."
        )
    return f"Nothing stands out: answers on finetuned and base activations do not differ beyond chance{hint}."


def _most_frequent(texts: Sequence[str]) -> list[str]:
    counts = Counter(text for text in texts if text)
    return [
        text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…" for text, _ in counts.most_common(_EXAMPLES)
    ]
