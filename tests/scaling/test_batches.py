"""What a batch asks for, who does it, and that nothing is done twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import pytest
import yaml
from typer.testing import CliRunner

from diffing_mcp.agents.records import EvaluationFolder, EvaluationRecord
from diffing_mcp.cli.batch import batch
from diffing_mcp.cli.main import app
from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.progress import Progress
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.runs.store import default_store
from diffing_mcp.model_pairs.resolve import resolve_pair
from diffing_mcp.scaling.batch_file import BatchFile, read_batch, tasks_of
from diffing_mcp.scaling.dispatch import ATTEMPTS, LocalCrew, Lost, next_task, run_tasks
from diffing_mcp.scaling.mirror import Mirror, MirrorFailed
from diffing_mcp.scaling.ray_workers import gpus_of_each
from diffing_mcp.scaling.tasks import ANY_TASK, EvaluationTask, MethodsTask, Outcome, Task
from diffing_mcp.scaling.worker import Worker
from tests.scaling.conftest import SMALL


class PlainTask(MethodsTask):
    """A task that is nowhere done, of a base that its name tells."""

    @property
    def base(self) -> str:
        return self.pair[0]

    def products(self) -> list[str] | None:
        return None


def plain(pair: str) -> PlainTask:
    return PlainTask(pair=pair, requests=[])


def test_a_file_becomes_tasks(batch_file: Path) -> None:
    tasks = tasks_of(read_batch(batch_file))
    assert [task.label for task in tasks] == [
        "kettles: kl, weight_difference",
        "kettles: kl",  # what has no seed is not done again for the second
        "same: kl, weight_difference",
        "same: kl",
    ]
    assert [ANY_TASK.validate_json(task.model_dump_json()) for task in tasks] == tasks
    assert len({task.base for task in tasks}) == 1
    assert len({task.id for task in tasks}) == 4


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"pairs": ["kettles"], "methods": {"kl": {"max_sample": 3}}}, "max_sample"),
        ({"pairs": ["kettles"], "activations": [{"layers": "middle"}]}, "layers"),
        ({"methods": ["kl"]}, "no `pairs`"),
        ({"pairs": ["kettles"]}, "asks for nothing"),
        ({"pair": ["kettles"]}, "pair"),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    wanted: dict[str, object], said: str, evaluation_settings: Path, tmp_path: Path
) -> None:
    file = tmp_path / "batch.yaml"
    file.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    with pytest.raises(InvalidInput, match=said):
        tasks_of(read_batch(file))
    with pytest.raises(UnknownName, match="nothing"):
        tasks_of(BatchFile(pairs=["nothing"], methods={"kl": {}}))
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_batch(tmp_path / "not-there.yaml")


def test_workers_keep_to_their_base_and_spread_over_the_others() -> None:
    todo = [plain("a1"), plain("a2"), plain("b1"), plain("c1"), plain("c2")]
    assert next_task(todo, "one", {"one": "b"}) is todo[2]
    assert next_task(todo, "two", {"one": "a"}) is todo[3]
    assert next_task(todo[:2], "two", {"one": "a"}) is todo[0], "helping is better than doing nothing"


class DyingCrew:
    """Two workers; tasks named `deadly` kill the one that does them."""

    def __init__(self) -> None:
        self.busy: dict[str, Task] = {}
        self.given: list[str] = []

    def idle(self) -> Sequence[str]:
        return [name for name in ("one", "two") if name not in self.busy]

    def start(self, worker: str, task: Task) -> None:
        self.busy[worker] = task
        self.given.append(task.label)

    def finished(self, progress: Progress) -> Iterable[tuple[str, Task, Outcome | Lost]]:
        ended = [
            (worker, task, Lost("out of memory") if "deadly" in task.label else Outcome(task=task, state="done"))
            for worker, task in self.busy.items()
        ]
        self.busy = {}
        return ended


def test_a_task_that_kills_its_workers_is_given_up_and_the_others_are_done() -> None:
    crew = DyingCrew()
    outcomes = run_tasks([plain("a"), plain("deadly"), plain("b"), plain("a")], crew)
    assert [outcome.state for outcome in outcomes] == ["done", "failed", "done"]
    assert "out of memory" in outcomes[1].error
    assert sum("deadly" in label for label in crew.given) == ATTEMPTS
    assert len(crew.given) == ATTEMPTS + 2, "equal tasks are one, and what is done is not given out again"


@pytest.mark.parametrize(
    ("workers", "wanted", "there", "each"),
    [(1, None, 0, 0), (2, None, 8, 1), (3, None, 2, 0.5), (4, None, 2, 0.5), (3, 1 / 3, 1, 1 / 3), (2, 2, 4, 2)],
)
def test_all_workers_find_room_on_the_gpus(workers: int, wanted: float | None, there: float, each: float) -> None:
    assert gpus_of_each(workers, wanted, there) == each


@pytest.mark.parametrize(("workers", "wanted", "there"), [(1, 1, 0), (3, 0.6, 2), (3, 1, 2), (1, 1.5, 4)])
def test_workers_without_room_on_the_gpus_are_refused(workers: int, wanted: float, there: float) -> None:
    with pytest.raises(InvalidInput, match="--gpus-each"):
        gpus_of_each(workers, wanted, there)


def test_a_batch_is_done_once_and_a_failure_stays_alone(batch_file: Path) -> None:
    tasks = tasks_of(read_batch(batch_file))
    broken = MethodsTask(pair="kettles", requests=[{"method": "steering", "params": {"vector": "kl-000000/x"}}])
    seen: list[str] = []
    outcomes = run_tasks(
        [*tasks, broken], LocalCrew(Worker()), report=lambda done, total, outcome: seen.append(f"{done}/{total}")
    )
    assert [outcome.state for outcome in outcomes] == ["done"] * 4 + ["failed"], outcomes
    assert "kl-000000" in outcomes[-1].error
    assert seen == [f"{place}/5" for place in range(1, 6)]
    runs = {run for outcome in outcomes for run in outcome.products}
    assert runs == {manifest.id for manifest in default_store().list()}
    assert len(runs) == 6
    again = run_tasks(tasks, LocalCrew(Worker()))
    assert [outcome.state for outcome in again] == ["reused"] * 4
    assert [outcome.products for outcome in again] == [outcome.products for outcome in outcomes[:4]]


def test_results_travel_through_a_mirror(batch_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(f"file://{tmp_path / 'bucket'}")
    tasks = tasks_of(read_batch(batch_file))
    there = run_tasks(tasks, LocalCrew(Worker(mirror=mirror)))
    manifest = next((tmp_path / "bucket" / "runs").glob("*/manifest.json"))
    manifest.rename(manifest.with_suffix(".late"))  # a copy that is still under way
    monkeypatch.setenv("DIFFING_DATA_FOLDER", str(tmp_path / "elsewhere"))
    settings.cache_clear()
    assert mirror.pull() == 5
    manifest.with_suffix(".late").rename(manifest)
    assert mirror.pull() == 1
    assert mirror.pull() == 0
    here = run_tasks(tasks, LocalCrew(Worker()))
    assert {outcome.state for outcome in here} == {"reused"}
    for one, other in zip(there, here, strict=True):
        assert one.products == other.products
    assert default_store().get(here[0].products[0]).table("tokens").num_rows > 0
    with pytest.raises(InvalidInput, match="mirror"):
        Mirror("nosuchscheme://bucket")


def test_what_could_not_be_copied_fails_alone_and_is_copied_by_the_next_batch(
    batch_file: Path, tmp_path: Path, evaluation_settings: Path
) -> None:
    bucket = tmp_path / "bucket"
    task = tasks_of(read_batch(batch_file))[0]
    bucket.write_text("no folder")
    outcome = Worker(mirror=Mirror(f"file://{bucket}")).perform(task)
    assert (outcome.state, "bucket" in outcome.error) == ("failed", True)
    bucket.unlink()
    outcome = Worker(mirror=Mirror(f"file://{bucket}")).perform(task)
    assert outcome.state == "reused"
    assert isinstance(task, MethodsTask)
    assert len(list(bucket.glob("runs/*/manifest.json"))) == len(task.requests)


def test_a_mirror_that_fails_at_the_end_takes_no_report_with_it(
    batch_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_tasks(tasks_of(read_batch(batch_file)), LocalCrew(Worker()))
    address = f"file://{tmp_path / 'bucket'}"

    def gone(mirror: Mirror) -> list[str]:
        raise ConnectionError("gone")

    monkeypatch.setattr(Mirror, "push_runs", lambda mirror, runs: gone(mirror))
    with pytest.raises(MirrorFailed, match=r"ConnectionError: gone\)\. What is finished is kept here"):
        batch(batch_file, mirror=address)
    assert "reused" in capsys.readouterr().out
    monkeypatch.setattr(Mirror, "_found", lambda mirror, pattern: gone(mirror))
    with pytest.raises(MirrorFailed):
        Mirror(address).pull()


def test_a_record_of_a_failure_gives_way_to_one_that_counts(own_data_folder: Path, tmp_path: Path) -> None:
    def record(status: Literal["completed", "failed"]) -> EvaluationRecord:
        return EvaluationRecord(
            evaluation_id="one", cell_id="cell", organism="o", arm="blackbox", investigator="baseline", status=status
        )

    mirror, folder = Mirror(f"file://{tmp_path / 'evaluations' / 'bucket'}"), EvaluationFolder("one")
    folder.write(record("completed"))
    (folder.path / "evaluation.json").write_text("{}")
    mirror.push_record("one", "cell")
    folder.write(record("failed"))
    assert mirror.pull() == 1
    assert mirror.pull() == 0
    found = folder.get("cell")
    assert found is not None
    assert found.status == "completed"


@pytest.mark.long  # an evaluation in a process of its own
def test_an_investigation_is_a_task(evaluation_settings: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({"organisms": ["same"], "arms": ["blackbox"], "interactions": [2]}))
    (task,) = EvaluationTask.of_suite(str(file))
    worker = Worker()
    try:
        (outcome,) = run_tasks([task], LocalCrew(worker))
        assert outcome.state == "done", outcome.error
        assert run_tasks([task], LocalCrew(worker))[0].state == "reused"
    finally:
        worker.close()
    lost = task.model_copy(update={"cell": "gone"})
    (outcome,) = run_tasks([lost], LocalCrew(Worker()))
    assert outcome.state == "failed"
    assert "no cell gone" in outcome.error


def test_an_estimate_knows_the_sizes_of_the_models(batch_file: Path) -> None:
    """Gigabytes of activations are planned for, not zero; what is not here yet is said to be a guess."""
    command, asked = CliRunner(), ["batch", str(batch_file), "--estimate"]
    collected = {"layers": [0.5], "max_samples": 10, "max_tokens": 16}
    batch_file.write_text(yaml.safe_dump({"pairs": ["kettles"], "activations": [collected]}), encoding="utf-8")
    found = json.loads(command.invoke(app, [*asked, "--json"]).stdout)
    width = json.loads((Path(resolve_pair("kettles").base.files.id) / "config.json").read_text())["hidden_size"]
    assert (found["bytes"], found["pairs_of_unknown_size"]) == (2 * 10 * 16 * width * 2, 0)
    far = "openai:http://127.0.0.1:9/v1#a::openai:http://127.0.0.1:9/v1#b"
    batch_file.write_text(yaml.safe_dump({"pairs": [far], "methods": ["perplexity_difference"]}), encoding="utf-8")
    assert "The files of 1 pairs are not on this machine" in command.invoke(app, asked).stdout


def test_the_command_estimates_runs_and_runs_nothing_twice(batch_file: Path) -> None:
    command = CliRunner()
    asked = ["batch", str(batch_file)]
    before = json.loads(command.invoke(app, [*asked, "--estimate", "--json", "--tokens-per-second", "100"]).stdout)
    assert (before["tasks"], before["left"]) == (4, 4)
    assert before["tokens_read"] >= 4 * 2 * SMALL["max_samples"] * SMALL["max_tokens"]
    assert before["device_hours"] * 3600 * 100 >= before["tokens_read"]
    done = command.invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    assert {each["state"] for each in json.loads(done.stdout)} == {"done"}
    after = command.invoke(app, [*asked, "--estimate"])
    assert "0 of 4 tasks are left" in after.stdout
