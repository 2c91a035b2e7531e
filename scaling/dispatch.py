"""Gives tasks to workers until all are done. A worker keeps to the base that it holds; a task whose worker dies is
given to another; what is finished is never given out again, so the same batch can be started again at any time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.scaling.tasks import Outcome, Task
from diffing_mcp.scaling.worker import Worker

ATTEMPTS = 3
"""How often a task is given out when its workers die under it."""

Report = Callable[[int, int, Outcome], None]
"""Called after each task with (finished, total, outcome)."""


class Lost(Exception):
    """The worker died."""


class Crew(Protocol):
    """Workers by name."""

    def idle(self) -> Sequence[str]:
        """Those that can be given a task."""

    def start(self, worker: str, task: Task) -> None:
        """Give it one."""

    def finished(self, progress: Progress) -> Iterable[tuple[str, Task, Outcome | Lost]]:
        """Wait a while; what has ended since the last call."""


class LocalCrew:
    """One worker, in this process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._task: Task | None = None

    def idle(self) -> Sequence[str]:
        """Itself, unless it has a task."""
        return [] if self._task is not None else [self.worker.name]

    def start(self, worker: str, task: Task) -> None:
        """Keep the task for `finished`."""
        self._task = task

    def finished(self, progress: Progress) -> Iterable[tuple[str, Task, Outcome | Lost]]:
        """Do the task, here and now."""
        task, self._task = self._task, None
        return [] if task is None else [(self.worker.name, task, self.worker.perform(task, progress))]


def run_tasks(
    tasks: Sequence[Task],
    crew: Crew,
    report: Report = lambda finished, total, outcome: None,
    progress: Progress = silent,
) -> list[Outcome]:
    """Outcomes of all tasks, in their order. Equal tasks are done once.

    Raises:
        Cancelled: from `progress`; what is finished is stored.
    """
    wanted = {task.id: task for task in tasks}
    outcomes: dict[str, Outcome] = {}

    def ended(outcome: Outcome) -> None:
        outcomes[outcome.task.id] = outcome
        report(len(outcomes), len(wanted), outcome)

    todo: list[Task] = []
    for task in wanted.values():
        try:
            products = task.products()
        except DiffingError as error:  # it names what is not there, such as the vector of a run that was deleted
            ended(Outcome(task=task, state="failed", error=error.message))
            continue
        if products is not None:
            ended(Outcome(task=task, state="reused", products=products))
        else:
            todo.append(task)
    holding: dict[str, str] = {}
    given: Counter[str] = Counter()
    while len(outcomes) < len(wanted):
        for worker in crew.idle():
            if not todo:
                break
            task = todo.pop(todo.index(next_task(todo, worker, holding)))
            holding[worker] = task.base
            given[task.id] += 1
            crew.start(worker, task)
        for worker, task, outcome in crew.finished(progress):
            if not isinstance(outcome, Lost):
                ended(outcome)
                continue
            holding.pop(worker, None)
            if given[task.id] < ATTEMPTS:
                todo.append(task)
            else:
                said = f"its worker died {ATTEMPTS} times, the last time: {outcome}"
                ended(Outcome(task=task, state="failed", error=said, worker=worker))
    return [outcomes[identifier] for identifier in wanted]


def next_task(todo: Sequence[Task], worker: str, holding: dict[str, str]) -> Task:
    """What this worker does next: a task of the base that it holds; else one of a base that nobody else holds, the one
    with most to do first; else the first of the base with most to do.
    """
    if same := [task for task in todo if task.base == holding.get(worker)]:
        return same[0]
    others = {base for name, base in holding.items() if name != worker}
    left = Counter(task.base for task in todo)
    base = max(left, key=lambda base: (base not in others, left[base]))
    return next(task for task in todo if task.base == base)
