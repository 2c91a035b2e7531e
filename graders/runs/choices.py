"""The choices of finished runs that a method makes by numbers, made again by a language model that reads.

For a patchscope: the scale. For steering, weight amplification and contrastive decoding: which strengths leave texts
coherent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from diffing_mcp.graders.coherence_readings import Label
    from diffing_mcp.graders.replies import Ask
    from diffing_mcp.graders.scale_choice import ScaleChoice
    from diffing_mcp.methods.contract import TextGroup
    from diffing_mcp.methods.runs.store import RunRecord


TextsAtStrengths = dict[tuple[str, float | None], "list[TextGroup]"]
"""The groups of texts of each series and strength."""

LISTED_TOKENS = 20
"""Tokens of each scale that the model sees."""

COHERENT_SHARE = 0.75


class JudgedScale(BaseModel):
    """The scale of a patchscope's direction or of its negative, by numbers and by reading."""

    sign: str
    scales: list[float] = Field(description="All that the run read at.")
    chosen: float | None = Field(description="By the run: where prompts agree most relative to random directions.")
    by_model: float | None = Field(None, description="The scale that more than half of the readings name.")
    outcome: str | None = Field(None, description="`chosen`, `none_coherent` or `undecided`; None: no model was asked.")
    votes: list[float | None] = Field(
        default_factory=list, description="What each usable reading named; None: no list has a subject."
    )
    agree: bool | None = Field(None, description="Whether both name the same scale; None where the model names none.")


class JudgedStrength(BaseModel):
    """The texts at one strength. Search texts and answers at the same strength count together."""

    series: str = Field(description="Model and sign; `plain` for texts in which nothing is amplified.")
    strength: float | None
    texts: int
    coherent: float | None = Field(
        description="Share that the run itself found coherent, by perplexity and repetition."
    )
    by_model: float | None = Field(None, description="Share of the labelled texts that the model calls coherent.")
    unknown: int = Field(0, description="Texts without a usable or agreed label.")


class JudgedSeries(BaseModel):
    """The largest strength at which enough texts are coherent, by numbers and by reading."""

    series: str
    largest: float | None = Field(description="By the run's own shares; None: no stored strength is coherent.")
    largest_by_model: float | None = Field(
        None, description="By the model's labels; None: no stored strength is coherent, or no model was asked."
    )
    agree: bool | None = Field(None, description="Whether both are the same; None: no model was asked.")


class JudgedRun(BaseModel):
    """One run, judged."""

    run: str
    method: str
    grader: str | None
    scales: list[JudgedScale] = Field(default_factory=list)
    strengths: list[JudgedStrength] = Field(default_factory=list)
    series: list[JudgedSeries] = Field(default_factory=list)
    unusable_replies: int = 0
    failure: str | None = Field(
        None, description="Why the model's judgement is missing; None: it is not, or none was asked for."
    )
    raw_views: list[str] = Field(description="Views of the run that show what was judged.")


async def judge_run(
    record: RunRecord,
    ask: Ask | None,
    *,
    grader: str = "model",
    rotations: int = 3,
    retries: int = 2,
    share: float = COHERENT_SHARE,
) -> JudgedRun:
    """Judge one finished run; without `ask`, only what the run itself chose is given.

    A model that gives no usable reply leaves a `failure`, what was read before it, and what the run itself chose.

    Raises:
        InvalidInput: the run's method chooses neither a scale nor writes text.
    """
    from diffing_mcp.graders.replies import GradingFailed
    from diffing_mcp.methods.registry import get_method

    check_can_be_judged(record)
    result = JudgedRun(
        run=record.id,
        method=record.manifest.method,
        grader=None if ask is None else grader,
        raw_views=list(get_method(record.manifest.method).views),
    )
    try:
        if record.manifest.method == "patchscope":
            await _judge_scales(record, result, ask, rotations, retries)
        else:
            await _judge_texts(record, result, ask, rotations, retries, share)
    except GradingFailed as error:
        result.failure = error.message
    return result


async def _judge_scales(record: RunRecord, result: JudgedRun, ask: Ask | None, rotations: int, retries: int) -> None:
    from diffing_mcp.graders.scale_choice import choose_scale
    from diffing_mcp.methods.patchscope.method import lists_by_scale
    from diffing_mcp.methods.patchscope.schema import Sign

    stored = record.result_json()
    lists = {sign: lists_by_scale(record, sign, LISTED_TOKENS) for sign in get_args(Sign)}
    chosen = {"promoted": stored["scale"], "suppressed": stored["suppressed_scale"]}
    result.scales = [JudgedScale(sign=sign, scales=sorted(found), chosen=chosen[sign]) for sign, found in lists.items()]
    if ask is None:
        return
    for row in result.scales:
        choice: ScaleChoice = await choose_scale(lists[row.sign], ask, rotations=rotations, retries=retries)
        row.by_model, row.outcome, row.votes = choice.scale, choice.outcome, choice.votes
        row.agree = None if choice.scale is None else choice.scale == row.chosen
        result.unusable_replies += choice.unusable_replies


async def _judge_texts(
    record: RunRecord, result: JudgedRun, ask: Ask | None, rotations: int, retries: int, share: float
) -> None:
    from diffing_mcp.graders.coherence_readings import read_coherence
    from diffing_mcp.methods.registry import get_method

    together: TextsAtStrengths = {}
    for group in get_method(record.manifest.method).text_groups(record):
        if group.series is not None:
            together.setdefault((group.series, group.strength), []).append(group)
        elif group.role == "finetuned":  # the plain model shows what the reader grants at best
            together.setdefault(("plain", None), []).append(group)
    result.strengths, result.series = _by_strength(together, None, share)
    if ask is None:
        return
    texts = {key: [text for group in groups for text in group.texts] for key, groups in together.items()}
    found = await read_coherence(
        [text for several in texts.values() for text in several], ask, rotations=rotations, retries=retries
    )
    given = iter(found.labels)
    labels = {key: [next(given) for _ in several] for key, several in texts.items()}
    result.strengths, result.series = _by_strength(together, labels, share)
    result.unusable_replies = found.unusable_replies


def _by_strength(
    together: TextsAtStrengths, labels: dict[tuple[str, float | None], list[Label]] | None, share: float
) -> tuple[list[JudgedStrength], list[JudgedSeries]]:
    """The rows of all strengths and series; without labels only what the run itself found."""
    from diffing_mcp.graders.coherence_readings import coherent_share

    strengths = []
    for (series, strength), groups in sorted(together.items(), key=lambda item: (item[0][0], abs(item[0][1] or 0))):
        labelled = [] if labels is None else labels[series, strength]
        strengths.append(
            JudgedStrength(
                series=series,
                strength=strength,
                texts=sum(len(group.texts) for group in groups),
                coherent=groups[0].coherent,
                by_model=coherent_share(labelled),
                unknown=labelled.count("UNKNOWN"),
            )
        )
    judged = []
    for name in dict.fromkeys(row.series for row in strengths if row.strength is not None):
        rows = [row for row in strengths if row.series == name]
        largest, by_model = _largest(rows, "coherent", share), _largest(rows, "by_model", share)
        judged.append(
            JudgedSeries(
                series=name,
                largest=largest,
                largest_by_model=by_model,
                agree=None if labels is None else largest == by_model,
            )
        )
    return strengths, judged


def _largest(rows: list[JudgedStrength], measure: str, share: float) -> float | None:
    passing = [row.strength for row in rows if row.strength is not None and (getattr(row, measure) or 0) >= share]
    return max(passing, key=abs, default=None)


def check_can_be_judged(record: RunRecord) -> None:
    """Raise InvalidInput unless the run can be judged."""
    from diffing_mcp.core.errors import InvalidInput
    from diffing_mcp.graders.runs.facts import writing_methods

    methods = ["patchscope", *writing_methods()]
    if record.manifest.method not in methods:
        raise InvalidInput(
            f"{record.manifest.method} chooses no scale and no strength (run {record.id}). Judge a run of "
            f"{', '.join(methods)}."
        )
