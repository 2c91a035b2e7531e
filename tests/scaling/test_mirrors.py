"""Workers that share no disk go on from what others have put into their mirror, and pay nothing twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffing_mcp.agents import evaluation
from diffing_mcp.agents.cells import Cell, RunningEvaluation
from diffing_mcp.agents.records import EvaluationFolder, EvaluationRecord, TokenUsage
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.runs.store import default_store
from diffing_mcp.scaling import evaluating
from diffing_mcp.scaling.batch_file import read_batch, tasks_of
from diffing_mcp.scaling.mirror import Mirror
from diffing_mcp.scaling.tasks import EvaluationTask, MethodsTask
from diffing_mcp.scaling.worker import Worker

NOBODY = "http://127.0.0.1:9/mcp"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, evaluation_settings: Path) -> Callable[[str], None]:
    """Go to a machine with a disk of its own."""

    def go(name: str) -> None:
        monkeypatch.setenv("DIFFING_DATA_FOLDER", str(tmp_path / name))
        settings.cache_clear()

    return go


@pytest.fixture
def suite(evaluation_settings: Path, tmp_path: Path) -> list[EvaluationTask]:
    """Two investigations; its file is gone when they are done."""
    file = tmp_path / "small.yaml"
    wanted = {"organisms": ["kettles", "same"], "arms": ["blackbox"], "interactions": [2], "cap": {"tokens": 100}}
    file.write_text(yaml.safe_dump(wanted))
    tasks = EvaluationTask.of_suite(str(file))
    file.unlink()
    return tasks


class ServedWorker(Worker):
    """With a server at an address where there is none."""

    def server_url(self) -> str:
        return NOBODY


def paid(task: EvaluationTask, **changes: Any) -> EvaluationRecord:
    usage = [TokenUsage(model="some/model", input_tokens=200, total_tokens=200)]
    known = {"evaluation_id": task.evaluation, "cell_id": task.cell, "organism": task.organism, "arm": "blackbox"}
    return EvaluationRecord.model_validate({**known, "investigator": "baseline", "usage": usage, **changes})


def test_half_a_manifest_is_no_run_and_is_written_anew(
    batch_file: Path, tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    """A worker was killed while it copied into a folder that all see."""
    address = f"file://{tmp_path / 'bucket'}"
    task, *_ = tasks_of(read_batch(batch_file))
    done = Worker(mirror=Mirror(address)).perform(task)
    cut, *_ = (tmp_path / "bucket" / "runs").glob("*/manifest.json")
    cut.write_bytes(cut.read_bytes()[:100])
    here = settings().data_folder
    elsewhere("second")
    assert Mirror(address).pull() == len(done.products) - 1
    elsewhere(str(here))
    Mirror(address).push(task, done.products)
    elsewhere("second")
    assert Mirror(address).pull() == 1
    assert sorted(manifest.id for manifest in default_store().list()) == sorted(done.products)


def test_what_others_have_finished_is_not_done_again(
    batch_file: Path, tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    address = f"file://{tmp_path / 'bucket'}"
    task, *_ = tasks_of(read_batch(batch_file))
    done = Worker(mirror=Mirror(address)).perform(task)
    elsewhere("second")
    again = Worker(mirror=Mirror(address)).perform(task)
    assert (again.state, again.products) == ("reused", done.products)


def test_a_vector_of_an_earlier_run_is_fetched(
    batch_file: Path, tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    address = f"file://{tmp_path / 'bucket'}"
    task, *_ = tasks_of(read_batch(batch_file))
    run, *_ = Worker(mirror=Mirror(address)).perform(task).products
    elsewhere("second")
    steering = MethodsTask(pair="kettles", requests=[{"method": "steering", "params": {"vector": f"{run}/x"}}])
    Mirror(address).fetch(steering)
    assert [manifest.id for manifest in default_store().list()] == [run]
    assert len(steering.run_keys()) == 1


def test_a_cap_counts_what_other_workers_have_spent(
    suite: list[EvaluationTask], tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    address, (first, second) = f"file://{tmp_path / 'bucket'}", suite
    folder = EvaluationFolder(first.evaluation)
    folder.write_plan(first.plans()[0])
    folder.write(paid(first))
    Mirror(address).push(first, [first.cell])
    elsewhere("second")
    outcome = ServedWorker(mirror=Mirror(address)).perform(second)
    assert outcome.state == "failed"
    assert "cap on tokens is reached" in outcome.error


def test_what_a_failure_cost_is_known_elsewhere(
    suite: list[EvaluationTask], tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    address, (first, _) = f"file://{tmp_path / 'bucket'}", suite
    assert ServedWorker(mirror=Mirror(address)).perform(first).state == "failed"
    EvaluationFolder(first.evaluation).write(paid(first, status="failed", started_at="2999-01-01T00:00:00+00:00"))
    Mirror(address).push(first, [])
    elsewhere("second")
    assert Mirror(address).pull() == 2
    found = EvaluationFolder(first.evaluation).get(first.cell)
    assert found is not None
    assert found.usage[0].total_tokens == 200
    assert Mirror(address).pull() == 0
    earlier = paid(first, status="failed", usage=[], started_at="2000-01-01T00:00:00+00:00")
    EvaluationFolder(first.evaluation).write(earlier)
    Mirror(address).push(first, [])
    assert Mirror(address).pull() == 1, "a later failure gives not way to an earlier one"


def test_models_are_in_a_worker_or_in_its_server(
    batch_file: Path, suite: list[EvaluationTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes its share of the device for itself: together they would take more than there is."""
    seen: list[str] = []

    @contextmanager
    def started_server(worker: str) -> Iterator[str]:
        seen.append("server begins")
        yield NOBODY
        seen.append("server ends")

    async def run_cell(running: RunningEvaluation, cell: Cell) -> EvaluationRecord:
        seen.append(f"investigation beside {len(worker.models.models.status())} models")
        return paid(suite[0])

    monkeypatch.setattr(evaluating, "started_server", started_server)
    monkeypatch.setattr(evaluation, "run_cell", run_cell)
    worker, (first, second, *_) = Worker(), tasks_of(read_batch(batch_file))
    for task in (first, *suite, second, first):
        assert worker.perform(task).state in ("done", "reused")
    assert seen == ["server begins", *["investigation beside 0 models"] * 2, "server ends"]
    assert len(worker.models.models.status()) == 1
    worker.close()


def test_two_batches_at_once_pay_an_investigation_once(
    suite: list[EvaluationTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    second = threading.Event()

    async def run_cell(running: RunningEvaluation, cell: Cell) -> EvaluationRecord:
        begun.append(cell.id)
        if len(begun) > 1:
            second.set()
        assert second.wait(60)
        record = paid(suite[0])
        running.folder.write(record)
        return record

    def progress(done: float, total: float | None = None, message: str = "") -> None:
        if "another process" in message:
            second.set()

    monkeypatch.setattr(evaluation, "run_cell", run_cell)
    outcomes: list[str] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(ServedWorker().perform(suite[0], progress).state))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (begun, outcomes) == ([suite[0].cell], ["done", "done"])
