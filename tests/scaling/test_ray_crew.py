"""What the driver does about workers on Ray that are not there; Ray's answers are played."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError, RayActorError

from diffing_mcp.core.settings import settings
from diffing_mcp.scaling import ray_workers
from diffing_mcp.scaling.dispatch import run_tasks
from diffing_mcp.scaling.ray_workers import NoCluster, RayCrew, RayWorker
from diffing_mcp.scaling.tasks import ANY_TASK, Outcome
from tests.scaling.test_batches import plain

LOOKS = 20


@dataclass(eq=False)
class Answer:
    """A reference: a value, an error, or None for what does not come."""

    value: Any


class Method:
    def __init__(self, answers: Any) -> None:
        self._answers = answers

    def remote(self, *given: str) -> Answer:
        return Answer(self._answers(*given))


class Actor:
    """Signs of life as they are given; each task is done at once."""

    def __init__(self, *signs: Any) -> None:
        left = iter(signs)
        self.process = Method(lambda: next(left, signs[-1]))
        self.said = Method(lambda: "")
        self.perform = Method(self._perform)
        self.given = 0

    def _perform(self, task: str) -> Any:
        self.given += 1
        if not isinstance(self.process.remote().value, int):
            return None
        return Outcome(task=ANY_TASK.validate_json(task), state="done").model_dump_json()


@pytest.fixture(autouse=True)
def played_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(references: list[Answer], num_returns: int = 1, timeout: float = 0) -> tuple[list[Answer], list[Answer]]:
        done = [each for each in references if each.value is not None][:num_returns]
        return done, [each for each in references if each not in done]

    def get(reference: Answer, timeout: float = 0) -> Any:
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray_workers, "SECONDS_BETWEEN_LOOKS", 0)


def patience() -> Any:
    """A progress that is not told for ever that there is nothing new."""
    left = iter(range(LOOKS))

    def progress(done: float, total: float | None = None, message: str = "") -> None:
        assert next(left, None) is not None, f"waits for ever: {message}"

    return progress


def test_a_worker_that_finds_no_place_keeps_no_task_to_itself() -> None:
    """As when another batch has half of the cluster: the others do its share."""
    placed, waiting = Actor(1), Actor(None)
    crew = RayCrew({"one": placed, "two": waiting})
    outcomes = run_tasks([plain("a"), plain("b"), plain("c")], crew, progress=patience())
    assert {outcome.state for outcome in outcomes} == {"done"}
    assert (placed.given, waiting.given) == (3, 0)


def test_a_worker_on_its_way_back_is_asked_until_it_answers() -> None:
    crew = RayCrew({"one": Actor(ActorUnavailableError("restarting", b"0" * 16), 1)})
    assert [crew.idle(), crew.idle()] == [[], ["one"]]


def test_workers_that_can_never_start_end_the_batch_with_their_reason() -> None:
    """As where the project is missing on the machines of the cluster."""
    dead = RayActorError("0" * 32, "No module named 'diffing_mcp'", actor_init_failed=True)
    with pytest.raises(NoCluster, match="No module named 'diffing_mcp'"):
        run_tasks([plain("a")], RayCrew({"one": Actor(dead)}), progress=patience())


def test_a_worker_is_where_the_driver_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "driver").mkdir()
    RayWorker("one", None, str(tmp_path / "driver"))
    assert Path.cwd() == tmp_path / "driver"
    RayWorker("one", None, "/of/another/machine")
    assert Path.cwd() == tmp_path / "driver"


def test_a_mirror_that_a_worker_does_not_know_fails_its_task_and_not_the_worker() -> None:
    with pytest.raises(Exception, match="nosuchscheme"):
        RayWorker("one", "nosuchscheme://bucket", ".").perform(plain("a").model_dump_json())


@pytest.mark.parametrize(("gpus", "share"), [(0, 0.8), (1, 0.8), (0.5, 0.4)])
def test_a_worker_with_a_part_of_a_gpu_takes_that_part_of_its_memory(
    gpus: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFING_MEMORY_SHARE", "0.8")
    settings.cache_clear()
    try:
        RayWorker("one", None, ".", gpus)
        assert settings().memory_share == pytest.approx(share)
    finally:
        settings.cache_clear()
