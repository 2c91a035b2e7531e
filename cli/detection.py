"""`python -m diffing_mcp.cli.detection` writes docs/detection.md: what each method is worth on finetunes of known
content, from the bundled calibrations; `--check` says whether the page is current. Loads no model.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence

from diffing_mcp.core.paths import IMPORT_FOLDER
from diffing_mcp.methods.calibration.detection_page import (
    ALL_METHODS,
    TERMS,
    TITLE,
    Heading,
    Part,
    ReliabilityFigure,
    RocFigure,
    Table,
    parts_of,
)
from diffing_mcp.methods.calibration.readings import TOGETHER
from diffing_mcp.methods.calibration.schema import Calibration
from diffing_mcp.methods.calibration.store import bundled_calibrations

PAGE = IMPORT_FOLDER / "docs" / "detection.md"
_CRITERION = "the null criterion"
_STEPS = 20
"""Points of the ROC's chart, whose x axis has no numbers of its own."""


def page(calibrations: Iterable[Calibration]) -> str:
    """The page in Markdown."""
    return "\n\n".join([*_head(), *(text for each in calibrations for text in _section(each))]) + "\n"


def _head() -> list[str]:
    terms = " ".join(f"*{name}*: {meaning}" for name, meaning in TERMS)
    about = (
        "Finetunes of known content, made by recipe (`organisms/nulls.yaml`, `organisms/zoo.yaml`), and what each "
        "method measured of them ([how levels are made](calibration.md)). "
        f"{terms.replace(_CRITERION, f'[{_CRITERION}](decisions/null-criterion.md)')} Intervals are exact 95 % ones. "
        "The panel shows the same of every calibration under *Detection*; the tool `describe_calibration` says it."
    )
    made = "Written by `make detection` from the bundled calibrations; edit methods/calibration/detection_page.py."
    return [
        f"# {TITLE}",
        f"<!-- {made} -->",
        textwrap.fill(about, 120, break_long_words=False, break_on_hyphens=False),
    ]


def _section(calibration: Calibration) -> list[str]:
    return [f"## {calibration.base_name}", *map(_markdown, parts_of(calibration))]


def _markdown(part: Part) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Heading):
        return f"### {part.text}"
    if isinstance(part, Table):
        lines = [part.columns, ["---"] * len(part.columns), *part.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return _roc(part) if isinstance(part, RocFigure) else _reliability(part)


def _roc(figure: RocFigure) -> str:
    """The curve of all methods as one test, at equal steps of the nulls' share."""
    curve = next(row.roc for row in figure.rows if row.method == TOGETHER)
    heights = (max(found for null, found in curve if null <= step / _STEPS) for step in range(_STEPS + 1))
    return _chart(
        f"ROC of {ALL_METHODS}",
        '"share of nulls" 0 --> 1',
        '"share of taught finetunes" 0 --> 1',
        f"line [{', '.join(f'{height:.2f}' for height in heights)}]",
    )


def _reliability(figure: ReliabilityFigure) -> str:
    """Bars: the share that was taught; line: the middle of what was stated."""
    names = ", ".join(f'"{stated}"' for stated, _ in figure.bins)
    shares = ", ".join(f"{share.count / share.of:.2f}" for _, share in figure.bins)
    middles = ", ".join(f"{sum(map(float, stated.split(' to '))) / 2:.2f}" for stated, _ in figure.bins)
    title = "Share that was taught (bars), by stated probability (line)"
    return _chart(title, f"[{names}]", "0 --> 1", f"bar [{shares}]", f"line [{middles}]")


def _chart(title: str, across: str, up: str, *series: str) -> str:
    lines = [f'title "{title}"', f"x-axis {across}", f"y-axis {up}", *series]
    return "```mermaid\nxychart-beta\n" + "\n".join(f"    {line}" for line in lines) + "\n```"


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
