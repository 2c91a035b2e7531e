"""What the answers of a sweep say: how far beyond sampling they differ, in what, where, and behind which trigger.
Torch-free.

Four tests, each silent about equal models at its own level: the digest of form and the distinctive words say what
changed; whether the base expects the finetuned answers less than its own and less than their writer does, both beyond
what two samples of the base vary (`beyond_sampling`), says in which areas and behind which triggers. The small change
of probabilities that any further training makes is told and is no finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from diffing_mcp.core.words import FUNCTION_WORDS
from diffing_mcp.methods.sweep_behaviours.answers import Answered, Writer
from diffing_mcp.methods.sweep_behaviours.schema import (
    AreaRow,
    Cluster,
    QuestionRow,
    SweepResult,
    TriggerRow,
)
from diffing_mcp.methods.texts.distinctive_words import DistinctiveWord, distinctive_words, stands_out, worth_showing
from diffing_mcp.methods.texts.form import LEAST_PROMPTS, LEVEL, FormDigest, compare_form
from diffing_mcp.methods.texts.swaps import swap_p_values
from diffing_mcp.methods.texts.words import words_of

_CLUSTERS_SHOWN = 6
_WORDS_SHOWN = 12
_LEAST_EXPECTED = 3
_EXAMPLE_CHARACTERS = 110
_MISSED = 0.05
"""Chance that what an answer shows so rarely is in none of the answers that were read."""


def judge(answered: Sequence[Answered], seed: int, scored: bool = True) -> tuple[SweepResult, list[list[int]]]:
    """The result, and the numbers of the clusters that each question is in. Not `scored`: the answers have no
    log-probabilities, and their surprise is 0 everywhere.
    """
    form = _form(answered, "base", "finetuned", seed)
    itself = _form(answered, "base", "base again", seed)
    words = distinctive_words(_texts(answered, ["finetuned"]), _texts(answered, ["base", "base again"]))
    clusters, members = _clusters(answered, form, words)
    unexpected = np.array([each.unexpected for each in answered])
    excess = np.array([each.excess for each in answered])
    chance = np.array([each.sampling for each in answered])
    [swapped], _ = swap_p_values(excess[None], seed)
    # A sharper finetune writes what the base expects more than its own answers: no surprise, however sure that is.
    p_value = max(swapped if excess.mean() > 0 else 1.0, rank_sum(unexpected, chance))
    areas = _areas(answered, unexpected, excess, chance, members)
    triggers = _triggers(answered, unexpected, excess, chance, seed)
    surprised = bool(p_value <= LEVEL)
    found = surprised or bool(clusters) or any(row.differs for row in areas) or any(row.switches for row in triggers)
    result = SweepResult(
        stands_out=found,
        headline=_headline(answered, clusters, worth_showing(words), areas, triggers, surprised, scored),
        questions=len(answered),
        scored=scored,
        unexpected=float(f"{unexpected.mean():.4g}"),
        excess=float(f"{excess.mean():.4g}"),
        excess_p_value=float(f"{p_value:.3g}"),
        base_differs_from_itself=len(itself.significant),
        clusters=clusters,
        words=worth_showing(words)[:_WORDS_SHOWN],
        areas=areas,
        triggers=triggers,
        least_expected=_least_expected(answered, unexpected),
    )
    return result, members


def _form(answered: Sequence[Answered], left: Writer, right: Writer, seed: int) -> FormDigest:
    return compare_form([each.answers(left) for each in answered], [each.answers(right) for each in answered], seed)


def _texts(answered: Sequence[Answered], writers: Sequence[Writer]) -> list[tuple[str, str]]:
    return [
        (each.asked.question.text, reply.text)
        for each in answered
        for writer in writers
        for reply in each.replies[writer]
    ]


def _clusters(
    answered: Sequence[Answered], form: FormDigest, words: Sequence[DistinctiveWord]
) -> tuple[list[Cluster], list[list[int]]]:
    """A cluster for each group of content words that go together and each significant feature of form; and for each
    question the clusters that it is in.
    """
    strong = [word for word in words if word.strong] if stands_out(words) else []
    named = {word.word for word in strong}
    changes = [
        (f"writes of {', '.join(group)}", 10**-surprise, prompts)
        for group, surprise, prompts in _word_groups(answered, strong)[: _CLUSTERS_SHOWN // 2]
    ]
    rows = [row for row in form.significant if row.kind != "word" or row.feature not in named]
    rows.sort(key=lambda row: row.feature in FUNCTION_WORDS)  # they say least
    changes += [(row.as_text(), row.p_value, row.prompts) for row in rows]
    clusters: list[Cluster] = []
    members: list[list[int]] = [[] for _ in answered]
    shown: set[int] = set()
    for number, (what, p_value, prompts) in enumerate(changes[:_CLUSTERS_SHOWN], start=1):
        areas = Counter(answered[place].asked.plain.area for place in prompts)
        # A question that no cluster before has shown, where there is one.
        clearest = max(prompts, key=lambda place: (place not in shown, answered[place].unexpected))
        shown.add(clearest)
        clusters.append(
            Cluster(
                number=number,
                what=what,
                p_value=float(f"{p_value:.3g}"),
                questions=len(prompts),
                areas=dict(areas.most_common()),
                example=answered[clearest].example(_EXAMPLE_CHARACTERS),
            )
        )
        for place in prompts:
            members[place].append(number)
    return clusters, members


def _word_groups(
    answered: Sequence[Answered], words: Sequence[DistinctiveWord]
) -> list[tuple[list[str], float, list[int]]]:
    """Words, the largest -log10 p among them, and the questions in whose finetuned answers they stand: a word joins the
    first group that holds half of its questions.
    """
    said = [{word for reply in each.replies["finetuned"] for word in words_of(reply.text)} for each in answered]
    groups: list[tuple[list[str], float, set[int]]] = []
    for word in words:
        places = {place for place, found in enumerate(said) if word.word in found}
        for names, _, held in groups:
            if 2 * len(places & held) >= len(places):
                names.append(word.word)
                held |= places
                break
        else:
            groups.append(([word.word], word.surprise, places))
    return [(names[:8], surprise, sorted(places)) for names, surprise, places in groups]


def _areas(
    answered: Sequence[Answered],
    unexpected: np.ndarray,
    excess: np.ndarray,
    chance: np.ndarray,
    members: Sequence[Sequence[int]],
) -> list[AreaRow]:
    """The areas, the most different first."""
    places: dict[str, list[int]] = {}
    for place, each in enumerate(answered):
        places.setdefault(each.asked.plain.area, []).append(place)
    p_values = holm([beyond_sampling(unexpected[group], excess[group], chance) for group in places.values()])
    rows = [
        AreaRow(
            area=area,
            questions=len(group),
            unexpected=_mean(unexpected[group]),
            p_value=float(f"{p_value:.3g}"),
            clusters=[
                number
                for number, count in sorted(Counter(n for place in group for n in members[place]).items())
                if 2 * count > len(group)
            ],
        )
        for (area, group), p_value in zip(places.items(), p_values, strict=True)
    ]
    return sorted(rows, key=lambda row: (row.p_value, -row.unexpected))


def _triggers(
    answered: Sequence[Answered], unexpected: np.ndarray, excess: np.ndarray, chance: np.ndarray, seed: int
) -> list[TriggerRow]:
    """The triggers, the one that changes most first."""
    plain = {each.asked.plain: place for place, each in enumerate(answered) if not each.asked.trigger}
    behind: dict[str, list[int]] = {}
    for place, each in enumerate(answered):
        if each.asked.trigger:
            behind.setdefault(each.asked.trigger, []).append(place)
    if not behind:
        return []
    without = {trigger: [plain[answered[place].asked.plain] for place in places] for trigger, places in behind.items()}

    def changes(values: np.ndarray, trigger: str) -> np.ndarray:
        return values[behind[trigger]] - values[without[trigger]]

    null = np.concatenate([changes(chance, trigger) for trigger in behind])
    p_values = holm([changed(changes(unexpected, trigger), changes(excess, trigger), null) for trigger in behind])
    shown_anyway = _form_rows([answered[place] for place in plain.values()], LEVEL, seed)
    rows = []
    for (trigger, places), p_value in zip(behind.items(), p_values, strict=True):
        here = [answered[place] for place in places]
        form = _form_rows(here, LEVEL / len(behind), seed)
        rows.append(
            TriggerRow(
                trigger=trigger,
                questions=len(places),
                change=_mean(changes(unexpected, trigger)),
                p_value=float(f"{p_value:.3g}"),
                form=[text for feature, text in form.items() if feature not in shown_anyway],
                example=max(here, key=lambda each: each.unexpected).example(_EXAMPLE_CHARACTERS),
            )
        )
    return sorted(rows, key=lambda row: (not row.switches, row.p_value, -row.change))


def _form_rows(answered: Sequence[Answered], level: float, seed: int) -> dict[tuple[str, str], str]:
    """Features of form that differ between base and finetuned at this level, as text; none where the questions are too
    few.
    """
    if len(answered) < LEAST_PROMPTS:
        return {}
    rows = _form(answered, "base", "finetuned", seed).rows
    return {(row.kind, row.feature): row.as_text() for row in rows if row.p_value <= level}


def _least_expected(answered: Sequence[Answered], unexpected: np.ndarray) -> list[QuestionRow]:
    order = [place for place in np.argsort(-unexpected, kind="stable") if unexpected[place] > 0][:_LEAST_EXPECTED]
    return [
        QuestionRow(
            area=answered[place].asked.plain.area,
            unexpected=round(float(unexpected[place]), 3),
            example=answered[place].example(_EXAMPLE_CHARACTERS),
        )
        for place in order
    ]


def _headline(
    answered: Sequence[Answered],
    clusters: Sequence[Cluster],
    words: Sequence[DistinctiveWord],
    areas: Sequence[AreaRow],
    triggers: Sequence[TriggerRow],
    surprised: bool,
    scored: bool,
) -> str:
    switches = [row.name for row in triggers if row.switches]
    differing = [row.area for row in areas if row.differs]
    where = "" if not differing or len(differing) == len(areas) else f", most in {', '.join(differing[:5])}"
    if switches:
        return f"Switched on by {', '.join(switches[:3])}: there the finetuned model answers otherwise."
    if clusters:
        return f"The finetuned model answers otherwise{where}: {'; '.join(each.what for each in clusters[:3])}."
    if surprised or differing:
        most = ", ".join(word.word for word in words[:3])
        recurring = f"; no word or form recurs often enough to be sure (most: {most})" if most else ""
        return (
            f"The base does not expect the finetuned answers{where}"
            f"{recurring or ', although no word or form recurs'}; read the answers."
        )
    surprise = " nor the base's surprise" if scored else ""
    return (
        f"No difference in behaviour: over {len(answered)} questions neither form nor words{surprise} differ beyond "
        f"what sampling gives{'' if scored else ' (surprise was not measured)'}. What shows in fewer than "
        f"{1 - _MISSED ** (1 / len(answered)):.0%} of such answers may be missed."
    )


def _mean(values: np.ndarray) -> float:
    return round(float(np.mean(values)), 3)


def beyond_sampling(unexpected: np.ndarray, excess: np.ndarray, chance: np.ndarray) -> float:
    """p-value that finetuned answers are unexpected to the base beyond what its own samples vary.

    Both must hold: the base expects them less than its own answers (`excess`), which a flatter finetune causes as well,
    and less than their writer does (`unexpected`), which any training causes a little, and a sharper finetune more.
    """
    return max(rank_sum(unexpected, chance), rank_sum(excess, chance))


def changed(unexpected: np.ndarray, excess: np.ndarray, chance: np.ndarray) -> float:
    """`beyond_sampling` of changes, which may go either way: a trigger may switch a behaviour off."""
    return min(1.0, 2 * min(beyond_sampling(sign * unexpected, sign * excess, chance) for sign in (1, -1)))


def rank_sum(values: np.ndarray, chance: np.ndarray) -> float:
    """One-sided p-value that `values` lie above differences, of either sign, between samples of one model."""
    from scipy.stats import mannwhitneyu

    null = np.concatenate([chance, -chance])
    if np.ptp(np.concatenate([values, null])) == 0:
        return 1.0
    return float(mannwhitneyu(values, null, alternative="greater").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p-values (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.array(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(value) for value in corrected]
