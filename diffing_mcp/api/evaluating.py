"""Evaluations from a notebook: `diffing evaluate` in a process of its own.

An evaluation runs its own server and its own event loop, which a notebook's kernel has already; what it has finished is
kept, so that an equal call goes on where the last one ended.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

from diffing_mcp.api.progress import ProgressChoice, watched
from diffing_mcp.api.shown import Shown
from diffing_mcp.core.errors import DiffingError
from diffing_mcp.core.paths import IMPORT_FOLDER
from diffing_mcp.core.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from diffing_mcp.agents.records import EvaluationPlan, EvaluationRecord
    from diffing_mcp.agents.summary import Summary

_CELL = re.compile(r"\[(\d+)/(\d+)\] (.*)")
_SHOWN = 1500


class EvaluationFailed(DiffingError):
    """The evaluation did not come to its end. The message is its own."""

    code = "evaluation_failed"


class Evaluation(Shown):
    """A finished evaluation: what was asked for, every investigation with its grades, and what they add up to."""

    def __init__(self, plan: EvaluationPlan, summary: Summary, records: list[EvaluationRecord]) -> None:
        self.plan = plan
        self.summary = summary
        """Rows by organism and arm, and rates with intervals."""
        self.records = records
        """One an investigation: its finding, its grades, its transcript. Texts of models in it are untrusted."""

    def table(self) -> pd.DataFrame:
        """The summary's rows as they are shown, one an organism and arm."""
        import pandas as pd

        return pd.DataFrame([row.cells() for row in self.summary.rows], columns=self.summary.columns())

    def heading(self) -> str:
        """Id and size of the evaluation."""
        failed = sum(record.status == "failed" for record in self.records)
        return f"Evaluation {self.plan.id}: {len(self.records)} investigations, {failed} failed"

    def as_text(self) -> str:
        """The table, and the rates over all organisms."""
        return "\n".join([self.table().to_string(index=False), *self.summary.notes()])


def evaluate(
    organisms: Sequence[str],
    arms: Sequence[str] = ("blackbox", "method"),
    *,
    investigator: str = "baseline",
    grader: str = "none",
    repeats: int = 1,
    interactions: int = 10,
    seed: int = 0,
    progress: ProgressChoice = None,
    **options: Any,
) -> Evaluation:
    """Let investigators loose on blinded pairs and grade what they find against ground truth. Finished investigations
    are kept: the same call continues.

    Args:
        organisms: pairs with ground truth, such as `["cake_bake", "control"]`.
        arms: `blackbox` (may only ask the models questions), `method` (may use the methods too), or both.
        investigator: `baseline` (a deterministic program) or a model of Inspect, such as `anthropic/NAME`.
        grader: `none` (deterministic grades alone) or a model of Inspect that reads the findings.
        repeats: investigations of each organism in each arm.
        interactions: model interactions that an investigation may spend.
        seed: of the first repeat; the others count up.
        progress: None: a bar in a terminal or a notebook; True or False: always or never; or a callable.
        options: further options of `diffing evaluate`, with `_` for `-`, such as `grader_repeats=5`.

    Raises:
        EvaluationFailed: an unknown organism, arm or option, a missing extra or key, a server that does not start. An
            investigation that fails is a record with the status `failed`, and the same call tries it again.
    """
    given = {
        "organisms": ",".join([organisms] if isinstance(organisms, str) else organisms),
        "arms": ",".join([arms] if isinstance(arms, str) else arms),
        "investigator": investigator,
        "grader": grader,
        "repeats": repeats,
        "interactions": interactions,
        "seed": seed,
        **options,
    }
    arguments = [
        text
        for name, value in given.items()
        if value is not None  # as if it were left out
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    with watched(progress, "evaluation") as report, tempfile.TemporaryFile("w+", encoding="utf-8") as answer:
        said = _run(arguments, answer, report)
        answer.seek(0)
        printed = answer.read()
    # Exit code and output are told apart by what was printed: failed investigations are an answer too.
    if not printed:
        raise EvaluationFailed(said)
    return _evaluation(json.loads(printed))


def _run(arguments: Sequence[str], answer: IO[str], report: Progress) -> str:
    """Run the command, its output into `answer`; what it complained of, if it did."""
    # The child finds the same source tree when the project is not installed but imported from its folder.
    paths = [str(IMPORT_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "diffing_mcp", "evaluate", *arguments, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=answer,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    lines: list[str] = []
    try:
        for line in process.stderr or ():
            lines.append(line.rstrip())
            if cell := _CELL.match(line):
                report(int(cell[1]), int(cell[2]), cell[3])
    finally:
        # Cancelled or interrupted: it stops its server, keeps what is finished, and ends.
        if process.poll() is None:
            process.terminate()
        process.wait()
    try:
        return str(json.loads(lines[-1])["error"]["message"])
    except (IndexError, ValueError, TypeError, KeyError):
        return "\n".join(lines)[-_SHOWN:]


def _evaluation(values: dict[str, Any]) -> Evaluation:
    from diffing_mcp.agents.records import EvaluationPlan, EvaluationRecord
    from diffing_mcp.agents.summary import Summary

    return Evaluation(
        EvaluationPlan.model_validate(values["plan"]),
        Summary.model_validate(values["summary"]),
        [EvaluationRecord.model_validate(record) for record in values["records"]],
    )
