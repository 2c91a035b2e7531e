"""Levels of verdicts: measuring them for a base model, and reading them for finished runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffing_mcp.api.pairs import models_of_this_process
from diffing_mcp.api.parameters import check_counts
from diffing_mcp.api.progress import ProgressChoice, watched
from diffing_mcp.api.runs import Run, open_run
from diffing_mcp.api.shown import ShownResult
from diffing_mcp.core.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic import BaseModel

    from diffing_mcp.methods.calibration.summary import CalibrationSummary, Levels


def calibrate(
    base: str,
    *,
    methods: Mapping[str, BaseModel | dict[str, Any]] | None = None,
    taught: bool = False,
    most: int | None = None,
    progress: ProgressChoice = None,
) -> ShownResult[CalibrationSummary]:
    """Measure what methods show of finetunes of a base model that taught nothing, so that verdicts on its finetunes
    have a level. The finetunes are made here; what was done before is kept, by the base's weights.

    Args:
        base: a model of the catalogue, a hub id or a folder.
        methods: names with their parameters, `kl` among them; None: those that an overview runs.
        taught: also the zoo of taught finetunes, which gives probabilities and powers, and takes longer.
        most: finetunes measured by this call at most.
        progress: None: a bar in a terminal or a notebook; True or False: always or never; or a callable.

    Raises:
        InvalidInput: a base that is no bare model, a method without a statistic, no `kl`, or `most` below 1.
        UnknownName: there is no such model or method.
    """
    from diffing_mcp.methods.calibration.calibrate import calibrate as measure
    from diffing_mcp.methods.calibration.summary import summary

    if most is not None:
        check_counts(most=most)
    requests = None if methods is None else list(methods.items())
    with watched(progress, f"calibrating {base}") as report:
        found = measure(models_of_this_process(), base, requests, taught, most, report)
    return ShownResult(f"Calibration of {base}", summary(found))


def levels(*runs: Run[Any] | str) -> ShownResult[Levels]:
    """How sure the findings of finished runs on one pair are: the share of finetunes that taught nothing which show as
    much at this size of change, and the probability that something was taught. All methods as one test come first.

    Args:
        runs: on one pair, or their ids; one of `kl` among them, which says how large the change is.

    Raises:
        InvalidInput: no run of `kl`, runs of several pairs, or models that differ in nothing.
        UnknownName: there is no such run.
    """
    from diffing_mcp.methods.calibration.readings import calibrated
    from diffing_mcp.methods.calibration.summary import Levels

    records = [run.record if isinstance(run, Run) else open_run(run).record for run in runs]
    if any(record.manifest.pair != records[0].manifest.pair for record in records):
        raise InvalidInput("The runs are of several pairs; levels are of one pair at a time.")
    rows = calibrated(records)
    if not rows:
        raise InvalidInput(
            "These runs have no level: one of them must be of `kl`, with models that differ, and the others of methods "
            "that are calibrated, on the texts that nulls were read on (`diffing calibrations`)."
        )
    return ShownResult(f"Levels of {records[0].manifest.pair_name}", Levels(rows=rows))
