"""Several workers on Ray: a worker or the driver is killed in the middle, and the batch is still done, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.runs.store import default_store
from diffing_mcp.scaling.batch_file import read_batch, tasks_of
from diffing_mcp.scaling.dispatch import run_tasks
from diffing_mcp.scaling.ray_workers import RayCrew, ray_crew
from diffing_mcp.scaling.tasks import Outcome, Task
from tests.scaling.conftest import SMALL

pytestmark = pytest.mark.long


class KillingCrew(RayCrew):
    """Kills the first worker that is given a task, once."""

    killed: int | None = None

    def start(self, worker: str, task: Task) -> None:
        import ray

        super().start(worker, task)
        if self.killed is None:
            type(self).killed = ray.get(self.actors[worker].process.remote())
            os.kill(self.killed, signal.SIGKILL)


@pytest.fixture
def larger_batch(evaluation_settings: Path, tmp_path: Path) -> Path:
    file = tmp_path / "batch.yaml"
    wanted = {"pairs": ["kettles", "same"], "methods": {"kl": SMALL}, "seeds": list(range(6))}
    file.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    return file


def test_a_killed_worker_loses_nothing(larger_batch: Path) -> None:
    tasks = tasks_of(read_batch(larger_batch))
    with ray_crew(2) as crew:
        killing = KillingCrew(crew.actors)
        outcomes: list[Outcome] = run_tasks(tasks, killing)
    assert KillingCrew.killed is not None
    assert {outcome.state for outcome in outcomes} == {"done"}, [outcome.error for outcome in outcomes]
    assert {outcome.worker for outcome in outcomes} == {"worker-1", "worker-2"}
    runs = [run for outcome in outcomes for run in outcome.products]
    assert sorted(runs) == sorted(manifest.id for manifest in default_store().list())
    assert len(runs) == 12


def test_a_killed_driver_goes_on_where_it_was(larger_batch: Path) -> None:
    command = [sys.executable, "-m", "diffing_mcp", "batch", str(larger_batch), "--ray", "local", "--workers", "2"]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert driver.stderr is not None
    for line in driver.stderr:
        if line.startswith("[3/"):
            driver.kill()
            break
    driver.wait(120)
    before = {manifest.id for manifest in default_store().list()}
    assert 3 <= len(before) <= 12
    again = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(": reused (") >= len(before)
    assert len(default_store().list()) == 12


def test_more_workers_than_processors_are_refused() -> None:
    with pytest.raises(InvalidInput, match="workers need as many CPUs"), ray_crew(10_000):
        pass
