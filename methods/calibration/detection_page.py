"""What a page says of a calibration, part by part: `cli.detection` writes it as Markdown, the panel shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffing_mcp.methods.calibration.detection import Detection, MethodDetection, Share, detection
from diffing_mcp.methods.calibration.levels import WANTED_P, needed_p
from diffing_mcp.methods.calibration.readings import TOGETHER
from diffing_mcp.methods.calibration.schema import Calibration
from diffing_mcp.methods.calibration.statistics import family_of, unit_of

TITLE = "What methods can tell"
ALL_METHODS = "all methods as one test"
COLUMNS = (
    "method",
    "area",
    "power",
    "false positives",
    "power, own verdict",
    "false positives, own verdict",
    "seconds",
)
LIMIT_COLUMNS = ("finetune", "kind", "untouched to one taught", "set aside", "p, all methods", "probability", "seen by")
TERMS = (
    (
        "Area",
        "how often a taught finetune lies further above what its size of change explains than a null; 0.5 is chance.",
    ),
    ("Power", "taught finetunes beyond the level."),
    (
        "False positives",
        "nulls beyond it, judged by nulls of other kinds only, as a finetune of a new kind would be.",
    ),
    ("Own verdict", "the fixed levels of the null criterion, on the same runs."),
    ("Seconds", "the median, on one thread of a busy machine."),
)
"""What the columns mean."""


@dataclass(frozen=True)
class Heading:
    """Of what follows, below that of the calibration."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells are text; names of methods and kinds stand between backticks."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class RocFigure:
    """The ROC of each method."""

    rows: Sequence[MethodDetection]


@dataclass(frozen=True)
class ReliabilityFigure:
    """Stated probability, such as `0.25 to 0.50`, and the share of those finetunes that were taught."""

    bins: Sequence[tuple[str, Share]]


Part = str | Heading | Table | RocFigure | ReliabilityFigure
"""A string is a paragraph."""


def parts_of(calibration: Calibration) -> list[Part]:
    """The page of one calibration, without its heading."""
    figures = detection(calibration)
    nulls = sum(figures.nulls.values())
    aside = sum(each.held_out and each.role == "null" for each in calibration.readings)
    kinds = ", ".join(f"{count} {kind}" for kind, count in figures.nulls.items())
    rests = (
        f"{nulls} nulls ({kinds}) and {len(figures.limits)} taught finetunes, read with the parameters of an overview. "
        f"With {nulls} nulls the level is p {needed_p(nulls):.3f}"
        + (f" (the least that they allow; {WANTED_P} was asked for)." if needed_p(nulls) > WANTED_P else ".")
    )
    if not figures.rows:
        return [rests, "No taught finetune has been measured yet, so nothing is known of what methods find."]
    return [
        rests,
        Table(COLUMNS, [_cells(row) for row in figures.rows]),
        RocFigure(figures.rows),
        Heading("By kind of null"),
        "Nulls that all methods as one test take for taught, judged by the nulls of other kinds alone: what a finetune "
        "that is like none of them would meet.",
        Table(("kind", "taken for taught"), [(f"`{kind}`", each.as_text()) for kind, each in figures.kinds.items()]),
        Heading("On finetunes set aside"),
        *_set_aside(figures, nulls - aside),
        Heading("Limits of detection"),
        "Each taught finetune against all nulls, by what was measured of it.",
        Table(LIMIT_COLUMNS, list(_limits(figures))),
        Heading("What is judged"),
        "Areas of each statistic alone, and the family in which it counts where all methods are one test.",
        Table(("name", "statistic", "area", "counts"), list(_judged(figures))),
    ]


def method_name(method: str) -> str:
    """As cells have it."""
    return ALL_METHODS if method == TOGETHER else f"`{method}`"


def _set_aside(figures: Detection, nulls: int) -> list[Part]:
    """What the others say of the finetunes set aside; `nulls`: those that are not."""
    if not figures.held_out:
        return ["No taught finetune that was set aside has been measured yet: nothing is known of new finetunes."]
    head = (
        "Measured after the statistics were settled; the way in which they are taken together has changed once since, "
        "by what the others show. Levels and the curve of probabilities come from the others alone: "
        f"{nulls} nulls, level p {needed_p(nulls):.3f}."
    )
    return [head, Table(COLUMNS, [_cells(row) for row in figures.held_out]), *_reliability(figures)]


def _cells(row: MethodDetection) -> list[str]:
    shares = (row.power, row.false_positives, row.old_power, row.old_false_positives)
    seconds = "-" if row.seconds is None else f"{row.seconds:.0f}"
    texts = ("-" if share is None else share.as_text() for share in shares)
    return [method_name(row.method), f"{row.area:.2f}", *texts, seconds]


def _reliability(figures: Detection) -> list[Part]:
    if not figures.reliability:
        return []
    return [
        "Stated probabilities of all methods as one test, and how many of those finetunes were taught:",
        Table(("stated", "taught"), [(stated, share.as_text()) for stated, share in figures.reliability]),
        ReliabilityFigure(figures.reliability),
    ]


def _judged(figures: Detection) -> Iterable[list[str]]:
    for name, value in figures.statistics.items():
        yield [f"`{name}`", unit_of(name), f"{value:.2f}", family_of(name) or "no"]


def _limits(figures: Detection) -> Iterable[list[str]]:
    for each in sorted(figures.limits, key=lambda each: (each.kind, each.dilution)):
        yield [
            each.name,
            each.kind.replace("_", " "),
            str(each.dilution),
            "yes" if each.held_out else "no",
            f"{each.p:.3f}",
            "-" if each.probability is None else f"{each.probability:.2f}",
            ", ".join(f"`{name}`" for name in each.seen) or "none",
        ]
