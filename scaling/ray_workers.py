"""Workers on a Ray cluster, or on this machine's Ray: an actor for each, with its share of the GPUs, restarted by Ray
when it dies. Needs the extra `ray`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffing_mcp.core.errors import DiffingError, InvalidInput
from diffing_mcp.core.paths import IMPORT_FOLDER
from diffing_mcp.core.progress import Progress
from diffing_mcp.core.settings import PREFIX, settings
from diffing_mcp.scaling.dispatch import Lost
from diffing_mcp.scaling.mirror import Mirror
from diffing_mcp.scaling.tasks import ANY_TASK, Outcome, Task
from diffing_mcp.scaling.worker import Worker

SECONDS_BETWEEN_LOOKS = 0.5


class NoCluster(DiffingError):
    """Ray is not installed, or no cluster answers at the address. The message says what to do."""

    code = "no_cluster"


class RayWorker:
    """The actor: a `Worker` whose progress can be asked for while it works."""

    def __init__(self, name: str, mirror: str | None, folder: str, gpus: float = 1) -> None:
        """
        Args:
            folder: where the driver works; what its settings, pairs and suites name from there is found from there here
                too, on a shared disk. A cluster's workers begin where the cluster was started.
            gpus: what it has of GPUs; of a part of one its models take that part of `memory_share`, as others do.
        """
        self._name, self._mirror = name, mirror
        self._worker: Worker | None = None
        self._said = ""
        with contextlib.suppress(OSError):
            os.chdir(folder)
        if 0 < gpus < 1:
            settings.cache_clear()
            os.environ[f"{PREFIX}MEMORY_SHARE"] = str(settings().memory_share * gpus)
            settings.cache_clear()

    def perform(self, task: str) -> str:
        """A task and its outcome, as JSON."""
        if self._worker is None:  # not before: an actor that cannot be made is gone for good, and says why to nobody
            self._worker = Worker(self._name, Mirror(self._mirror) if self._mirror else None)
        worker, asked = self._worker, ANY_TASK.validate_json(task)

        def progress(done: float, total: float | None = None, message: str = "") -> None:
            share = f"{done / total:.0%} " if total else ""
            self._said = f"{asked.label}: {share}{message}"

        return worker.perform(asked, progress).model_dump_json()

    def said(self) -> str:
        """What it is doing."""
        return self._said

    def process(self) -> int:
        """Its process, to be found on its machine."""
        return os.getpid()


class RayCrew:
    """Actors by name."""

    def __init__(self, actors: dict[str, Any]) -> None:
        self.actors = actors
        self._running: dict[Any, tuple[str, Task]] = {}
        self._asked: dict[str, Any] = {worker: actor.process.remote() for worker, actor in actors.items()}
        """Asked of those that are not there until they answer: new ones wait for a place on the cluster, and Ray fails
        each call that reaches one on its way back.
        """
        self._gone: dict[str, str] = {}
        """Those that cannot be started, and why."""

    def idle(self) -> Sequence[str]:
        """Those without a task that are there: neither waiting for a place, nor being restarted."""
        busy = {worker for worker, _ in self._running.values()}
        return [worker for worker in self.actors if worker not in busy and self._is_there(worker)]

    def _is_there(self, worker: str) -> bool:
        import ray

        if worker in self._gone:
            return False
        if worker not in self._asked:
            return True
        answered, _ = ray.wait([self._asked[worker]], timeout=0)
        if not answered:
            return False
        try:
            ray.get(answered[0])
        except ray.exceptions.RayError as error:
            if _is_final(error):
                self._gone[worker] = " ".join(str(error).split())[-300:]
            else:
                self._asked[worker] = self.actors[worker].process.remote()
            return False
        del self._asked[worker]
        return True

    def start(self, worker: str, task: Task) -> None:
        """Send it the task."""
        self._running[self.actors[worker].perform.remote(task.model_dump_json())] = (worker, task)

    def finished(self, progress: Progress) -> Iterable[tuple[str, Task, Outcome | Lost]]:
        """Those whose task has ended, and what the others are doing to `progress`.

        Raises:
            NoCluster: no worker can be started.
        """
        import ray

        if not self._running:
            if len(self._gone) == len(self.actors):
                said = next(iter(self._gone.values()), "there are none")
                raise NoCluster(
                    f"No worker can be started: {said}. What is finished is kept. Workers need this project and its "
                    "extra `ray` on every machine of the cluster."
                )
            progress(0, None, "workers start, or wait for a place on the cluster")
            time.sleep(SECONDS_BETWEEN_LOOKS)
            return []
        ready, waiting = ray.wait(list(self._running), num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
        for reference in waiting[:1]:
            progress(0, None, self._saying(self._running[reference][0]))
        ended: list[tuple[str, Task, Outcome | Lost]] = []
        for reference in ready:
            worker, task = self._running.pop(reference)
            try:
                ended.append((worker, task, Outcome.model_validate_json(ray.get(reference))))
            except ray.exceptions.RayTaskError as error:  # the actor lives: its own code failed
                outcome = Outcome(task=task, state="failed", error=str(error.cause), worker=worker)
                ended.append((worker, task, outcome))
            except ray.exceptions.RayError as error:
                self._asked[worker] = self.actors[worker].process.remote()
                ended.append((worker, task, Lost(" ".join(str(error).split())[:300])))
        return ended

    def _saying(self, worker: str) -> str:
        import ray

        try:
            return str(ray.get(self.actors[worker].said.remote(), timeout=SECONDS_BETWEEN_LOOKS))
        except ray.exceptions.RayError:
            return ""


def _is_final(error: Exception) -> bool:
    """Whether an actor that was asked for a sign of life will never give one."""
    from ray import exceptions

    if isinstance(error, exceptions.RayActorError):
        return bool(error.actor_init_failed)
    return isinstance(error, exceptions.RuntimeEnvSetupError | exceptions.ActorUnschedulableError)


def gpus_of_each(workers: int, wanted: float | None, there: float) -> float:
    """GPUs of each worker on a cluster that has so many (`there`). None wanted: one each, or the largest equal part of
    one with which all workers find room.

    Raises:
        InvalidInput: they do not all find room, for which Ray would wait for ever and in silence; or more than one GPU
            and a part is wanted, which Ray does not give.
    """
    if wanted is None:
        return 1 / math.ceil(workers / max(1, int(there))) if there >= 1 else 0.0
    if wanted > 1 and wanted != int(wanted):
        raise InvalidInput(f"A worker has whole GPUs or a part of one, not {wanted:g}: --gpus-each 0.5, 1 or 2.")
    # What is left of a GPU is of no use to a worker that needs more than that.
    room = workers if wanted == 0 else int(there // wanted) if wanted >= 1 else int(there) * int(1 / wanted + 1e-9)
    if workers > room:
        raise InvalidInput(
            f"{workers} workers with {wanted:g} GPUs each do not fit: the cluster has {there:g}. Give a smaller "
            "--gpus-each (0: work on the CPU) or fewer --workers."
        )
    return wanted


@contextmanager
def ray_crew(
    workers: int, *, address: str | None = None, gpus_each: float | None = None, mirror: str | None = None
) -> Iterator[RayCrew]:
    """Workers on the cluster at `address` (None: on this machine), for as long as the context lasts.

    Args:
        workers: how many.
        address: of a running cluster, `auto` for the one that this machine belongs to.
        gpus_each: GPUs of a worker; None: the cluster's, shared equally, at most one each.
        mirror: see `diffing_mcp.scaling.mirror`.

    Raises:
        NoCluster: Ray is not installed, or nothing answers at the address.
        InvalidInput: more workers than the cluster has CPUs, or more GPUs than it has.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise NoCluster("Ray is not installed: pip install 'diffing-mcp[ray]'.") from error
    # Workers read the same settings and the same code as this process.
    variables = {name: value for name, value in os.environ.items() if name.startswith(("DIFFING_", "HF_", "OMP_"))}
    path = os.pathsep.join(filter(None, [str(IMPORT_FOLDER), os.environ.get("PYTHONPATH")]))
    environment = {"env_vars": {**variables, "PYTHONPATH": path}}
    try:
        ray.init(
            address=address or "local",  # none would look for a cluster, such as that of a driver that was killed
            runtime_env=environment,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address=None if address else "127.0.0.1",
        )
    except (ConnectionError, RuntimeError) as error:
        raise NoCluster(f"No Ray cluster answers at {address or 'this machine'}: {error}") from error
    try:
        there = ray.cluster_resources()
        if workers > (cpus := int(there.get("CPU", 1))):
            raise InvalidInput(f"{workers} workers need as many CPUs; the cluster has {cpus}.")
        gpus = gpus_of_each(workers, gpus_each, there.get("GPU", 0.0))
        actor = ray.remote(RayWorker).options(
            num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=0, max_concurrency=2
        )
        names = [f"worker-{number}" for number in range(1, workers + 1)]
        yield RayCrew({name: actor.remote(name, mirror, os.getcwd(), gpus) for name in names})
    finally:
        ray.shutdown()
