"""`python -m diffing_mcp.cli.detection` writes docs/detection.md: what each method is worth on finetunes of known
content, from the bundled calibrations; `--check` says whether the page is current. Loads no model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from diffing_mcp.core.paths import IMPORT_FOLDER
from diffing_mcp.methods.calibration.detection import Detection, MethodDetection, detection
from diffing_mcp.methods.calibration.levels import WANTED_P, needed_p
from diffing_mcp.methods.calibration.readings import TOGETHER
from diffing_mcp.methods.calibration.schema import Calibration
from diffing_mcp.methods.calibration.statistics import family_of, unit_of
from diffing_mcp.methods.calibration.store import bundled_calibrations

PAGE = IMPORT_FOLDER / "docs" / "detection.md"
HEAD = """# What methods can tell

<!-- Written by `make detection` from the bundled calibrations; edit cli/detection.py. -->

Finetunes of known content, made by recipe (`organisms/nulls.yaml`, `organisms/zoo.yaml`), and what each method measured
of them ([how levels are made](calibration.md)). *Area*: how often a taught finetune lies further above what its size of
change explains than a null; 0.5 is chance. *Power*: taught finetunes beyond the level. *False positives*: nulls beyond
it, judged by nulls of other kinds only, as a finetune of a new kind would be. *Own verdict*: the fixed levels of
[the null criterion](decisions/null-criterion.md), on the same runs. *Seconds*: the median, on one thread of a busy
machine. Intervals are exact 95 % ones.
"""
COLUMNS = (
    "method",
    "area",
    "power",
    "false positives",
    "power, own verdict",
    "false positives, own verdict",
    "seconds",
)
LIMIT_COLUMNS = ("kind", "untouched to one taught", "set aside", "p, all methods", "probability", "seen by")


def page(calibrations: Iterable[Calibration]) -> str:
    """The page in Markdown."""
    return "\n\n".join([HEAD.strip(), *(part for each in calibrations for part in _section(each))]) + "\n"


def _section(calibration: Calibration) -> list[str]:
    figures = detection(calibration)
    nulls = sum(figures.nulls.values())
    aside = sum(each.held_out and each.role == "null" for each in calibration.readings)
    kinds = ", ".join(f"{count} {kind}" for kind, count in figures.nulls.items())
    parts = [
        f"## {calibration.base_name}",
        (
            f"{nulls} nulls ({kinds}) and {len(figures.limits)} taught finetunes, read with the "
            f"parameters of an overview. With {nulls} nulls the level is p {needed_p(nulls):.3f}"
            + (f" (the least that they allow; {WANTED_P} was asked for)." if needed_p(nulls) > WANTED_P else ".")
        ),
        _table(COLUMNS, map(_cells, figures.rows)),
        "### By kind of null",
        (
            "Nulls that all methods as one test take for taught, judged by the nulls of other kinds alone: what a "
            "finetune that is like none of them would meet."
        ),
        _table(("kind", "taken for taught"), ([f"`{kind}`", each.as_text()] for kind, each in figures.kinds.items())),
        "### On finetunes set aside",
        *_set_aside(figures, nulls - aside),
        "### Limits of detection",
        "Each taught finetune against all nulls.",
        _table(LIMIT_COLUMNS, _limits(figures)),
        "### What is judged",
        "Areas of each statistic alone. Those that tell little do not count where all methods are one test.",
        _table(("name", "statistic", "area", "counts"), _judged(figures)),
    ]
    return parts


def _set_aside(figures: Detection, nulls: int) -> list[str]:
    """What the others say of the finetunes set aside; `nulls`: those that are not."""
    if not figures.held_out:
        return ["No taught finetune that was set aside has been measured yet: nothing is known of new finetunes."]
    head = (
        "Which ones was settled before any was measured. Levels and the curve of probabilities come from the others "
        f"alone: {nulls} nulls, level p {needed_p(nulls):.3f}."
    )
    return [head, _table(COLUMNS, map(_cells, figures.held_out)), *_reliability(figures)]


def _cells(row: MethodDetection) -> list[str]:
    name = "all methods as one test" if row.method == TOGETHER else f"`{row.method}`"
    shares = (row.power, row.false_positives, row.old_power, row.old_false_positives)
    seconds = "-" if row.seconds is None else f"{row.seconds:.0f}"
    return [name, f"{row.area:.2f}", *("-" if share is None else share.as_text() for share in shares), seconds]


def _reliability(figures: Detection) -> list[str]:
    if not figures.reliability:
        return []
    rows = ([stated, share.as_text()] for stated, share in figures.reliability)
    return [
        "Stated probabilities of all methods as one test, and how many of those finetunes were taught:",
        _table(("stated", "taught"), rows),
        _chart(figures),
    ]


def _chart(figures: Detection) -> str:
    """Bars: the share that was taught; line: the middle of what was stated."""
    names = ", ".join(f'"{stated}"' for stated, _ in figures.reliability)
    shares = ", ".join(f"{share.count / share.of:.2f}" for _, share in figures.reliability)
    middles = ", ".join(f"{sum(map(float, stated.split(' to '))) / 2:.2f}" for stated, _ in figures.reliability)
    return (
        "```mermaid\nxychart-beta\n"
        '    title "Share that was taught (bars), by stated probability (line)"\n'
        f"    x-axis [{names}]\n    y-axis 0 --> 1\n    bar [{shares}]\n    line [{middles}]\n```"
    )


def _judged(figures: Detection) -> Iterable[list[str]]:
    for name, value in figures.statistics.items():
        yield [f"`{name}`", unit_of(name), f"{value:.2f}", family_of(name) or "no"]


def _limits(figures: Detection) -> Iterable[list[str]]:
    for each in sorted(figures.limits, key=lambda each: (each.kind, each.dilution)):
        yield [
            each.kind.replace("_", " "),
            str(each.dilution),
            "yes" if each.held_out else "no",
            f"{each.p:.3f}",
            "-" if each.probability is None else f"{each.probability:.2f}",
            ", ".join(f"`{name}`" for name in each.seen) or "none",
        ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(prog="python -m diffing_mcp.cli.detection", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the page is current")
    text = page(bundled_calibrations())
    if not parser.parse_args(arguments).check:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/detection.md is not current: run `make detection`")


if __name__ == "__main__":
    main()
