"""One worker: a process with models in memory that does tasks one after the other. The next task of the same base finds
it warm.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from diffing_mcp.core.errors import Cancelled, DiffingError
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.scaling.mirror import Mirror, MirrorFailed
from diffing_mcp.scaling.tasks import EvaluationTask, Outcome, Task

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.residency import ModelPairs


class Worker:
    """Does tasks. `close` ends the server that it may have started."""

    def __init__(self, name: str = "here", mirror: Mirror | None = None) -> None:
        """`mirror`: where finished runs and records are copied to, for workers that share no disk."""
        self.name = name
        self.mirror = mirror
        self._held = ExitStack()
        self._url: str | None = None

    @cached_property
    def models(self) -> ModelPairs:
        """The models of this process. Imports torch."""
        from diffing_mcp.model_pairs.residency import ModelPairs

        return ModelPairs()

    def server_url(self) -> str:
        """The MCP server of this worker, started by its first evaluation."""
        if self._url is None:
            from diffing_mcp.scaling.evaluating import started_server

            self._url = self._held.enter_context(started_server(self.name))
        return self._url

    def perform(self, task: Task, progress: Progress = silent) -> Outcome:
        """The outcome of a task; what goes wrong is part of it. Only `Cancelled` is raised, from `progress`."""
        started = time.monotonic()
        try:
            self._fetch(task)
            found = task.products()
            products = self._performed(task, progress) if found is None else found
            if self.mirror is not None:  # what is there already too: a former batch may have been cut off before
                self.mirror.push(task, products)
        except Cancelled:
            raise
        except Exception as error:  # one task that fails must not take the others with it
            said = error.message if isinstance(error, DiffingError) else f"{type(error).__name__}: {error}"
            return Outcome(
                task=task, state="failed", error=said, seconds=round(time.monotonic() - started, 2), worker=self.name
            )
        seconds = round(time.monotonic() - started, 2)
        state: Literal["done", "reused"] = "done" if found is None else "reused"
        return Outcome(task=task, state=state, products=products, seconds=seconds, worker=self.name)

    def _make_room(self, task: Task) -> None:
        """Models are either here or in the server, which has its own: both would take more than there is."""
        if not isinstance(task, EvaluationTask):
            self.close()
        elif "models" in vars(self):
            self.models.models.unload_idle()

    def _fetch(self, task: Task) -> None:
        try:
            if self.mirror is not None:
                self.mirror.fetch(task)
        except MirrorFailed:  # a method can do without, but nothing is paid where nobody knows what others have spent
            if isinstance(task, EvaluationTask):
                raise

    def _performed(self, task: Task, progress: Progress) -> list[str]:
        self._make_room(task)
        try:
            return task.perform(self, progress)
        except Exception:
            if self.mirror is not None and isinstance(task, EvaluationTask):  # what failed was paid as well
                with suppress(MirrorFailed):
                    self.mirror.push(task, [])
            raise

    def close(self) -> None:
        """End what was started."""
        self._held.close()
        self._url = None
