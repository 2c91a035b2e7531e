"""What the answers of a sweep say: how far beyond sampling they differ, in what, where, and behind which trigger.
Torch-free.

Four tests, each silent about equal models at its own level: the digest of form and the distinctive words say what
changed; whether the base expects the finetuned answers less than the reverse (models swapped at random), and where more
than two samples of the base differ (rank sums), says where. No test looks at how far the models drifted apart as such:
any further training does that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

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

_CLUSTERS_SHOWN = 8
_WORDS_SHOWN = 12
_LEAST_EXPECTED = 4
_EXAMPLE_CHARACTERS = 110
_TRIGGERS_SHOWN = 60


def judge(answered: Sequence[Answered], seed: int) -> tuple[SweepResult, list[list[int]]]:
    """The result, and the numbers of the clusters that each question is in."""
    form = _form(answered, "base", "finetuned", seed)
    itself = _form(answered, "base", "base again", seed)
    words = distinctive_words(_texts(answered, ["finetuned"]), _texts(answered, ["base", "base again"]))
    clusters, members = _clusters(answered, form, words)
    unexpected = np.array([each.unexpected for each in answered])
    chance = np.array([each.sampling for each in answered])
    [p_value], _ = swap_p_values(unexpected[None], seed)
    areas = _areas(answered, unexpected, chance, members)
    triggers = _triggers(answered, unexpected, chance, seed)
    risen = bool(p_value <= LEVEL and unexpected.mean() > 0)
    found = risen or bool(clusters) or any(row.differs for row in areas) or any(row.switches for row in triggers)
    result = SweepResult(
        stands_out=found,
        headline=_headline(answered, clusters, areas, triggers, risen),
        questions=len(answered),
        unexpected=float(f"{unexpected.mean():.4g}"),
        unexpected_p_value=float(f"{p_value:.3g}"),
        sampling=float(f"{np.quantile(np.abs(chance), 0.95):.4g}"),
        base_differs_from_itself=len(itself.significant),
        clusters=clusters,
        words=worth_showing(words)[:_WORDS_SHOWN],
        areas=areas,
        triggers=triggers,
        least_expected=_least_expected(answered, unexpected, chance),
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
    """A cluster for each significant feature of form and each group of words that go together; and for each question
    the clusters that it is in.
    """
    changes = [(row.as_text(), row.p_value, row.prompts) for row in form.significant]
    if stands_out(words):
        changes += [
            (f"writes of {', '.join(group)}", 10**-surprise, prompts)
            for group, surprise, prompts in _word_groups(answered, [word for word in words if word.strong])
        ]
    clusters, members = [], [[] for _ in answered]  # type: list[Cluster], list[list[int]]
    for number, (what, p_value, prompts) in enumerate(changes[:_CLUSTERS_SHOWN], start=1):
        areas = Counter(answered[place].asked.plain.area for place in prompts)
        clearest = max(prompts, key=lambda place: answered[place].unexpected)
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
    answered: Sequence[Answered], unexpected: np.ndarray, chance: np.ndarray, members: Sequence[Sequence[int]]
) -> list[AreaRow]:
    """The areas, the most different first."""
    places: dict[str, list[int]] = {}
    for place, each in enumerate(answered):
        places.setdefault(each.asked.plain.area, []).append(place)
    p_values = holm([rank_sum(unexpected[group], chance) for group in places.values()])
    rows = [
        AreaRow(
            area=area,
            questions=len(group),
            unexpected=round(float(unexpected[group].mean()), 3),
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


def _triggers(answered: Sequence[Answered], unexpected: np.ndarray, chance: np.ndarray, seed: int) -> list[TriggerRow]:
    """The triggers, the one that changes most first."""
    plain = {each.asked.plain: place for place, each in enumerate(answered) if not each.asked.trigger}
    places: dict[str, list[int]] = {}
    for place, each in enumerate(answered):
        if each.asked.trigger:
            places.setdefault(each.asked.trigger, []).append(place)
    if not places:
        return []
    without = {trigger: [plain[answered[place].asked.plain] for place in group] for trigger, group in places.items()}
    changes = {trigger: unexpected[group] - unexpected[without[trigger]] for trigger, group in places.items()}
    null = np.concatenate([chance[group] - chance[without[trigger]] for trigger, group in places.items()])
    p_values = holm([rank_sum(change, null) for change in changes.values()])
    rows = []
    for (trigger, group), p_value in zip(places.items(), p_values, strict=True):
        behind = [answered[place] for place in group]
        clearest = group[int(changes[trigger].argmax())]
        form = _form(behind, "base", "finetuned", seed).significant if len(group) >= LEAST_PROMPTS else []
        rows.append(
            TriggerRow(
                trigger=trigger[:_TRIGGERS_SHOWN],
                questions=len(group),
                change=round(float(changes[trigger].mean()), 3),
                p_value=float(f"{p_value:.3g}"),
                form=[row.as_text() for row in form],
                example=answered[clearest].example(_EXAMPLE_CHARACTERS),
            )
        )
    return sorted(rows, key=lambda row: (row.p_value, -row.change))


def _least_expected(answered: Sequence[Answered], unexpected: np.ndarray, chance: np.ndarray) -> list[QuestionRow]:
    null = np.concatenate([chance, -chance])
    order = np.argsort(-unexpected, kind="stable")[:_LEAST_EXPECTED]
    return [
        QuestionRow(
            index=int(place),
            area=answered[place].asked.plain.area,
            unexpected=round(float(unexpected[place]), 3),
            p_value=float(f"{(1 + (null >= unexpected[place]).sum()) / (1 + len(null)):.3g}"),
            example=answered[place].example(_EXAMPLE_CHARACTERS),
        )
        for place in order
    ]


def _headline(
    answered: Sequence[Answered],
    clusters: Sequence[Cluster],
    areas: Sequence[AreaRow],
    triggers: Sequence[TriggerRow],
    risen: bool,
) -> str:
    switches = [row.trigger for row in triggers if row.switches]
    differing = [row.area for row in areas if row.differs]
    where = "" if not differing or len(differing) == len(areas) else f", most in {', '.join(differing[:5])}"
    if switches:
        return f"Switched on by {', '.join(map(repr, switches[:3]))}: there the finetuned model answers otherwise."
    if clusters:
        return f"The finetuned model answers otherwise{where}: {'; '.join(each.what for each in clusters[:3])}."
    if risen or differing:
        return (
            f"The base does not expect the finetuned answers{where}, although no word or form recurs; read the answers."
        )
    return (
        f"No difference in behaviour: over {len(answered)} questions neither form nor words nor unexpectedness differ "
        "beyond what sampling gives."
    )


def rank_sum(values: np.ndarray, chance: np.ndarray) -> float:
    """One-sided p-value that `values` lie above differences of either sign between samples of one model."""
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
