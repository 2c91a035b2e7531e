"""The triggers that were given and those that the search finds, beside random prefixes. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.core import battery
from diffing_mcp.core.battery import Question, behind, stratified
from diffing_mcp.core.errors import InvalidInput, OutOfRoom
from diffing_mcp.core.progress import Progress, stage
from diffing_mcp.core.text import clip
from diffing_mcp.methods.texts.answer_form import sentences_of
from diffing_mcp.methods.texts.prompts import PROMPTS, question_request, request_of
from diffing_mcp.methods.trigger_search.probe import Probe, as_trigger
from diffing_mcp.methods.trigger_search.schema import (
    BUNDLED,
    Origin,
    ShownTrigger,
    TriggerScore,
    TriggerSearchParams,
    TriggerSearchResult,
)
from diffing_mcp.methods.trigger_search.search import Search, WordTable
from diffing_mcp.model_pairs.generation import Sampling

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair

QUESTIONS = 3
ANSWERS = 2
SHOWN = 8
_ALPHA = 4.0
_OWN_TOKENS = 32
_ANSWER_TOKENS = 40
_SHOWN_CHARACTERS = 160
_TABLE = "triggers"


def given_triggers(params: TriggerSearchParams) -> list[str]:
    """Those of the caller and the bundled ones, each once."""
    listed = [each for given in params.triggers for each in (battery.triggers() if given == BUNDLED else (given,))]
    return list(dict.fromkeys(listed))


def questions_of(params: TriggerSearchParams) -> list[Question]:
    """The caller's questions, or some of the battery that have no trigger yet."""
    if params.questions is not None:
        return [Question((each,)) for each in dict.fromkeys(params.questions)]
    plain = [Question((each,), None, topic, topic) for topic, several in battery.subjects().items() for each in several]
    return stratified(plain, QUESTIONS, params.seed)


def search_triggers(
    pair: LoadedPair, params: TriggerSearchParams, run: RunWriter, progress: Progress
) -> TriggerSearchResult:
    """Try, search, judge on the questions that the search has not read.

    Raises:
        InvalidInput: an answer without tokens, a prompt that does not fit into the context, or fewer than two
            different questions.
        OutOfRoom: a search, or answers of contrastive decoding, where the two models do not fit in memory together.
    """
    questions = questions_of(params)
    if len(questions) < 2:
        raise InvalidInput("Give at least two different questions: what the search finds on one is tried on others.")
    if pair.sequential and params.rounds:
        raise OutOfRoom(
            "A search needs both models at once, and they do not fit in memory together. Set rounds=0 to try "
            "`triggers` alone."
        )
    answers = list(params.answers or _own_answers(pair, params, stage(progress, 0.0, 0.1, 1.0, "contrastive answers")))
    probe = Probe(pair, questions, answers)
    table = WordTable.of(pair)
    start = table.random_prefixes(params.random_prefixes, params.words, params.seed)
    search = Search(probe, table, params.seed)
    found = search.run(start, params.rounds, stage(progress, 0.1, 0.7, 1.0, "searching")) if params.rounds else []
    kinds: list[tuple[str, Origin]] = [
        *((each, "given") for each in given_triggers(params)),
        *((as_trigger(table.text(each)), "found") for each in found if each not in start),
        *((as_trigger(table.text(each)), "random") for each in start),
    ]
    without, scores = _judged(probe, kinds, stage(progress, 0.7, 0.95, 1.0, "judging"))
    tried = sorted((each for each in scores if each.origin != "random"), key=lambda each: -each.gain)
    run.add_rows(_TABLE, [*tried, *(each for each in scores if each.origin == "random")], TriggerScore)
    said = _answers_behind(pair, questions[1], ["", *(each.trigger for each in tried[:SHOWN])])
    random_gains = [each.gain for each in scores if each.origin == "random"]
    shown = [
        ShownTrigger(**dict(each), question=questions[1].text, answer=answer)
        for each, answer in zip(tried[:SHOWN], said[1:], strict=True)
    ]
    switching = [each for each in shown if each.switches]
    return TriggerSearchResult(
        stands_out=bool(switching),
        headline=_headline(switching, len(tried), params),
        answers=[clip(each, _SHOWN_CHARACTERS)[0] for each in answers],
        without=without,
        without_answer=said[0],
        random_mean=round(float(np.mean(random_gains)), 2),
        random_highest=round(max(random_gains), 2),
        tried=len(given_triggers(params)) + len(search.scores.keys() - set(start)),
        triggers=shown,
    )


def _own_answers(pair: LoadedPair, params: TriggerSearchParams, progress: Progress) -> list[str]:
    """First sentences of contrastively decoded answers to everyday questions: those that the finetuned model finds most
    more probable than the base, nats a token.
    """
    requests = [request_of(pair, prompt, raw_text=False) for prompt in PROMPTS]
    sampling = Sampling(temperature=0, max_new_tokens=_OWN_TOKENS, seed=params.seed)
    [written] = pair.generate_contrastive(requests, [_ALPHA], sampling, progress=progress)
    texts = [(several[0].finetuned_log_prob - several[0].base_log_prob, several[0]) for several in written]
    ranked = sorted(texts, key=lambda each: -each[0] / max(1, each[1].tokens))
    first = (next(iter(sentences_of(each.text)), "") for _, each in ranked)
    chosen = list(dict.fromkeys(sentence for sentence in first if sentence))[:ANSWERS]
    if not chosen:
        raise InvalidInput("Contrastive decoding wrote nothing to search for. Give `answers`.")
    return chosen


def _judged(
    probe: Probe, kinds: Sequence[tuple[str, Origin]], progress: Progress
) -> tuple[TriggerScore, list[TriggerScore]]:
    """The questions without a trigger, and each trigger beside the random prefixes, on the held-out questions."""
    found = probe.log_probs(["", *(trigger for trigger, _ in kinds)], probe.questions[1:], progress)
    difference = found["finetuned"] - found["base"]
    gains = (difference - difference[0])[1:]
    highest = max(gain for gain, (_, origin) in zip(gains, kinds, strict=True) if origin == "random")

    def score(place: int, trigger: str, origin: Origin, gain: float) -> TriggerScore:
        base, finetuned = (round(float(found[side][place]), 2) for side in ("base", "finetuned"))
        beyond = round(float(gain - highest), 2)
        return TriggerScore(
            trigger=trigger, origin=origin, base=base, finetuned=finetuned, gain=round(float(gain), 2), beyond=beyond
        )

    scores = [
        score(place, trigger, origin, gain)
        for place, ((trigger, origin), gain) in enumerate(zip(kinds, gains, strict=True), start=1)
    ]
    return score(0, "", "given", 0.0), scores


def _answers_behind(pair: LoadedPair, question: Question, triggers: Sequence[str]) -> list[str]:
    requests = [question_request(pair, behind(trigger, question)) for trigger in triggers]
    written = pair.generate("finetuned", requests, Sampling(temperature=0, max_new_tokens=_ANSWER_TOKENS))
    return [clip(" ".join(several[0].text.split()), _SHOWN_CHARACTERS)[0] for several in written]


def _headline(switching: Sequence[ShownTrigger], tried: int, params: TriggerSearchParams) -> str:
    beside = f"{params.random_prefixes} random prefixes"
    if not switching:
        return f"None of {tried} triggers makes the answers much more probable than {beside} do."
    best = switching[0]
    return (
        f"Behind {clip(best.trigger, 60)[0]!r} the finetuned model finds the answers {best.gain:.1f} nats more "
        f"probable than without it, {best.beyond:.1f} more than behind any of {beside} (finetuned minus base)."
    )
