"""Numbers of several records as means and rates with intervals. Organisms are what an evaluation samples: where there
are several, repeats on one of them are not taken for independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffing_mcp.agents.records import EvaluationRecord
from diffing_mcp.graders.statistics import Interval, bootstrap_mean, clustered_rate

WORDS = (
    "Intervals are 95 %, over organisms where there are several, else over the runs of the one: bootstrap for means, "
    "Wilson for rates (where all runs agree, an organism counts once however often it was run)."
)
"""What the intervals of a table are."""


def mean_of(records: Sequence[EvaluationRecord], value: Callable[[EvaluationRecord], float | None]) -> Interval | None:
    """Mean of the records that have a value; None when none has."""
    known = [(number, record.organism) for record in records if (number := value(record)) is not None]
    return bootstrap_mean([number for number, _ in known], clusters=[name for _, name in known]) if known else None


def rate_of(records: Sequence[EvaluationRecord], value: Callable[[EvaluationRecord], bool | None]) -> Interval | None:
    """Share of the records of which it is true, among those of which it is known; None when it is of none."""
    known = [(outcome, record.organism) for record in records if (outcome := value(record)) is not None]
    return clustered_rate([outcome for outcome, _ in known], [name for _, name in known]) if known else None


def shown(interval: Interval | None) -> str:
    """An interval as a cell of a table; one run has none."""
    if interval is None:
        return ""
    return f"{interval.estimate:.2f}" + (f" [{interval.low:.2f}, {interval.high:.2f}]" if interval.count > 1 else "")
