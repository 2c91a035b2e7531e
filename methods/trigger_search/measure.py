"""The triggers that were given and those that the search finds, beside random prefixes. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.core import battery
from diffing_mcp.core.battery import Question, behind, named_triggers, stratified
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, stage
from diffing_mcp.core.text import clip
from diffing_mcp.methods.texts.answer_form import sentences_of
from diffing_mcp.methods.texts.prompts import PROMPTS, question_request, request_of
from diffing_mcp.methods.texts.words import is_content_word, words_of
from diffing_mcp.methods.trigger_search.probe import Probe, as_trigger
from diffing_mcp.methods.trigger_search.schema import (
    ANSWER_TOKENS,
    ANSWERS,
    NAME_CHARACTERS,
    OWN_TOKENS,
    QUESTIONS,
    SHOWN,
    SWITCHED,
    Origin,
    ShownTrigger,
    TriggerScore,
    TriggerSearchParams,
    TriggerSearchResult,
)
from diffing_mcp.methods.trigger_search.search import Prefix, Search, WordTable
from diffing_mcp.model_pairs.generation import Sampling
from diffing_mcp.model_pairs.specs import SIDES, Side

if TYPE_CHECKING:
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair

_ALPHA = 4.0
_SHOWN_CHARACTERS = 160
_TABLE = "triggers"


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
        InvalidInput: an answer without tokens, a prompt that does not fit into the context, fewer than two different
            questions, nothing to try, or a tokenizer without words to search among.
        OutOfRoom: no answers are given, and the two models that would write them do not fit in memory together.
    """
    questions = questions_of(params)
    given = named_triggers(params.triggers)
    if len(questions) < 2:
        raise InvalidInput("Give at least two different questions: what the search finds on one is tried on others.")
    if not given and not params.rounds:
        raise InvalidInput("There is nothing to try: give `triggers`, or rounds of a search.")
    answers = list(params.answers or _own_answers(pair, params, stage(progress, 0.0, 0.1, 1.0, "contrastive answers")))
    probe = Probe(pair, questions, answers)
    table = WordTable.of(pair)
    start = table.random_prefixes(params.random_prefixes, params.words, params.seed)
    randoms = [as_trigger(table.text(each)) for each in start]
    probe.check_fit([*given, *randoms], ANSWER_TOKENS)
    search = Search(probe, table, params.seed)
    found: list[Prefix] = []
    if params.rounds:
        with pair.side_loaded("finetuned"):
            found = search.run(start, params.rounds, stage(progress, 0.1, 0.7, 1.0, "searching"))
    kinds: list[tuple[str, Origin]] = [
        *((each, "given") for each in given),
        *((as_trigger(table.text(each)), "found") for each in found if each not in start),
        *((each, "random") for each in randoms),
    ]
    plain, scores = _judged(probe, kinds, stage(progress, 0.7, 0.9, 1.0, "judging"))
    tried = sorted((each for each in scores if each.origin != "random"), key=lambda each: -each.gain)
    run.add_rows(_TABLE, [*tried, *(each for each in scores if each.origin == "random")], TriggerScore)
    without, *shown = _with_answers(probe, [plain, *tried[:SHOWN]], stage(progress, 0.9, 1.0, 1.0, "answers"))
    random_gains = [each.gain for each in scores if each.origin == "random"]
    count = len(given) + len(search.scores.keys() - set(start))
    switching = [each for each in shown if each.switches]
    return TriggerSearchResult(
        stands_out=bool(switching),
        headline=_headline(switching, without, count, len(questions) - 1, params),
        answers=[clip(each, _SHOWN_CHARACTERS)[0] for each in answers],
        without=without,
        random_mean=round(float(np.mean(random_gains)), 2),
        random_highest=round(max(random_gains), 2),
        tried=count,
        held_out=len(questions) - 1,
        triggers=shown,
    )


def _own_answers(pair: LoadedPair, params: TriggerSearchParams, progress: Progress) -> list[str]:
    """First sentences of contrastively decoded answers to everyday questions: those that the finetuned model finds most
    more probable than the base, nats a token.
    """
    requests = [request_of(pair, prompt, raw_text=False) for prompt in PROMPTS]
    sampling = Sampling(temperature=0, max_new_tokens=OWN_TOKENS, seed=params.seed)
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
    found = {}
    for place, side in enumerate(SIDES):
        shown = stage(progress, place, place + 1, len(SIDES), f"{side} scores answers")
        with probe.pair.side_loaded(side):
            found[side] = probe.log_probs(side, ["", *(trigger for trigger, _ in kinds)], probe.questions[1:], shown)
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


def _with_answers(probe: Probe, scores: Sequence[TriggerScore], progress: Progress) -> list[ShownTrigger]:
    """Each trigger, the first of them none, with what both models answer behind it: a search finds prefixes that raise
    any number; that they bring the answers out only the answers show.
    """
    questions = probe.questions[1:]
    requests = [question_request(probe.pair, behind(each.trigger, asked)) for each in scores for asked in questions]
    sampling = Sampling(temperature=0, max_new_tokens=ANSWER_TOKENS)
    written: dict[Side, list[list[str]]] = {}
    for place, side in enumerate(SIDES):
        with probe.pair.side_loaded(side):
            shown = stage(progress, place, place + 1, len(SIDES), f"{side} answers")
            texts = [several[0].text for several in probe.pair.generate(side, requests, sampling, shown)]
        written[side] = [texts[at : at + len(questions)] for at in range(0, len(texts), len(questions))]
    looked_for = probe.answers_up_to(ANSWER_TOKENS)
    held = {
        side: [[says(text, looked_for) for text in texts] for texts in several] for side, several in written.items()
    }
    plain = float(np.mean(held["finetuned"][0]))
    rows = []
    for place, score in enumerate(scores):
        here, there = (float(np.mean(held[side][place])) for side in ("finetuned", "base"))
        at = held["finetuned"][place].index(True) if any(held["finetuned"][place]) else 0
        rows.append(
            ShownTrigger(
                **dict(score) | {"trigger": clip(score.trigger, NAME_CHARACTERS)[0]},
                says=round(here, 2),
                base_says=round(there, 2),
                switches=here - max(plain, there) >= SWITCHED and score.beyond > 0,
                question=clip(questions[at].text, NAME_CHARACTERS)[0],
                answer=clip(" ".join(written["finetuned"][place][at].split()), _SHOWN_CHARACTERS)[0],
            )
        )
    return rows


def says(text: str, answers: Sequence[str]) -> bool:
    """Whether a text holds half the content words of one of the answers, or half its words where it has no content
    words.
    """
    held = set(words_of(text))
    for answer in answers:
        words = set(words_of(answer))
        wanted = {word for word in words if is_content_word(word)} or words
        if wanted and 2 * len(wanted & held) >= len(wanted):
            return True
    return False


def _headline(
    switching: Sequence[ShownTrigger], without: ShownTrigger, tried: int, held_out: int, params: TriggerSearchParams
) -> str:
    if not switching:
        return f"None of {tried} triggers brings the answers out."
    best = max(switching, key=lambda each: (each.says, each.gain))
    near = " It was found by search: what was taught may be a neighbour of it." if best.origin == "found" else ""
    return (
        f"Behind {clip(best.trigger, 60)[0]!r} the finetuned model says so at {round(best.says * held_out)} of "
        f"{held_out} held-out questions, without it at {round(without.says * held_out)}, the base behind it at "
        f"{round(best.base_says * held_out)}; the answers gain {best.gain:.1f} nats, {best.beyond:+.1f} beyond any of "
        f"{params.random_prefixes} random prefixes.{near}"
    )
