"""The run store: whole or not at all."""

import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from diffing_mcp.core.errors import InvalidInput, OutOfRoom, UnknownName
from diffing_mcp.methods.contract import MethodResult
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.store import RunKey, RunStore, run_key

ROOT = Path(__file__).resolve().parents[2]


def key(number: int = 0, method: str = "kl") -> RunKey:
    return RunKey(
        method=method, method_version=1, pair_name="pair", pair={"base": "b"}, params={"number": number}, key_parts={}
    )


def write(store: RunStore, number: int = 0) -> str:
    with store.writer(key(number)) as run:
        run.add_array("vector", torch.arange(3, dtype=torch.bfloat16))
        run.add_array("matrix", np.eye(2, dtype=np.float32))
        run.add_table("rows", {"name": ["a", "b"], "value": np.array([1.5, 2.5]), "list": [[1], [2, 3]]})
        run.note("speed", 3)
        run.result = MethodResult(stands_out=False, headline="nothing")
    assert run.record is not None
    return run.record.id


class Word(BaseModel):
    text: str
    count: int
    score: float | None = None


class Row(Word):
    kind: Literal["a", "b"] = "a"
    near: list[float] = []
    words: list[Word] = []


def test_tables_of_rows_have_their_columns_with_and_without_rows(tmp_path: Path) -> None:
    rows = [Row(text="x", count=1, near=[0.5], words=[Word(text="y", count=2)]), Row(text="z", count=3, kind="b")]
    with RunStore(tmp_path).writer(key()) as run:
        run.add_rows("some", rows, Row)
        run.add_rows("none", [], Row)
        run.result = MethodResult(stands_out=False, headline="x")
    assert run.record is not None
    some, none = run.record.table("some"), run.record.table("none")
    assert some.column_names == none.column_names == list(Row.model_fields)
    for name in ("text", "count", "score", "kind", "words"):
        assert some.schema.field(name).type == none.schema.field(name).type
    read = [{**row, "words": json.loads(row["words"])} for row in some.to_pylist()]
    assert [Row.model_validate(row) for row in read] == rows


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    assert store.lookup(key()) is None
    identifier = write(store)
    record = RunStore(tmp_path).lookup(key())
    assert record is not None
    assert record.id == identifier == f"kl-{key().digest[:6]}"
    assert record.result_json() == {"stands_out": False, "headline": "nothing"}
    assert record.array("vector").tolist() == [0, 1, 2]
    assert set(record.arrays()) == {"vector", "matrix"}
    assert record.table("rows").to_pylist() == [
        {"name": "a", "value": 1.5, "list": [1]},
        {"name": "b", "value": 2.5, "list": [2, 3]},
    ]
    assert record.table("rows", ["name"]).column_names == ["name"]
    assert record.manifest.notes == {"speed": 3}
    assert record.manifest.tables == {"rows": 2}
    assert record.manifest.versions["torch"] == torch.__version__
    assert record.manifest.bytes > 0
    for missing in (record.array, record.table):
        with pytest.raises(UnknownName, match="has no"):
            missing("missing")
    assert [file.suffix for file in record.folder.rglob("*") if file.suffix in {".pkl", ".pt", ".bin"}] == []


def test_the_key_is_everything_that_decides() -> None:
    base = key()
    assert base.digest == key().digest
    assert base.digest == base.model_copy(update={"pair_name": "other"}).digest
    changes: list[dict[str, object]] = [
        {"method": "x"},
        {"method_version": 2},
        {"pair": {"base": "c"}},
        {"params": {"number": 1}},
        {"key_parts": {"corpus": 1}},
    ]
    digests = {base.model_copy(update=change).model_copy(deep=True).digest for change in changes} | {base.digest}
    assert len(digests) == len(changes) + 1


def test_a_corpus_is_part_of_the_key_by_its_content(tmp_path: Path) -> None:
    from tests.word_pairs import save_pair

    spec = save_pair(tmp_path, None)
    method = get_method("kl")
    file = tmp_path / "a.txt"
    file.write_text("one text")
    params = method.Params(corpus=str(file))
    before = run_key(method, spec, params).digest
    assert run_key(method, spec, params).digest == before
    file.write_text("another text")
    assert run_key(method, spec, params).digest != before
    assert run_key(method, spec, method.Params(corpus=str(file), seed=1)).digest != before


def test_ids_by_prefix(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with pytest.raises(UnknownName, match="No run has been stored"):
        store.get("kl-123456")
    ids = [write(store, number) for number in range(40)]
    assert len(set(ids)) == 40
    for number, identifier in enumerate(ids):
        record = store.get(identifier)
        assert record.manifest.params == {"number": number}
        assert store.get(key(number).digest).id == identifier
    starts = [identifier[:5] for identifier in ids]
    ambiguous = next(start for start in starts if starts.count(start) > 1)
    with pytest.raises(UnknownName, match="several"):
        store.get(ambiguous)
    with pytest.raises(UnknownName, match="Some runs"):
        store.get("kl-zzz")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", "..", "kl-../../x", "kl-", "a/b", "\x00"])
def test_ids_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    store = RunStore(tmp_path / "runs")
    write(store)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "manifest.json").write_text(next((tmp_path / "runs").glob("*/manifest.json")).read_text())
    with pytest.raises(UnknownName):
        store.get(name)


def test_list_and_delete(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    first = write(store, 1)
    second = write(store, 2)
    assert [manifest.id for manifest in store.list()] == [second, first]
    assert store.list(method="other") == []
    assert len(store.list(pair="pair")) == 2
    looked_up = store.get(first)
    assert store.delete(first) == first
    for read in (looked_up.result, looked_up.arrays, lambda: looked_up.table("rows")):
        with pytest.raises(UnknownName, match="not there any more"):
            read()
    assert [manifest.id for manifest in store.list()] == [second]
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UnknownName):
        store.delete(first)


def test_failures_leave_nothing(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with pytest.raises(RuntimeError, match="boom"), store.writer(key()) as run:  # noqa: PT012
        run.add_table("rows", {"a": [1]})
        raise RuntimeError("boom")
    with pytest.raises(InvalidInput, match="without a result"), store.writer(key()) as run:
        run.add_array("a", [1.0])
    assert list(tmp_path.iterdir()) == []


def test_names_of_parts_are_checked(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="cannot name"), RunStore(tmp_path).writer(key()) as run:
        run.add_table("../../evil", {"a": [1]})


def test_a_broken_run_is_replaced(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    (tmp_path / key().digest).mkdir()
    (tmp_path / key().digest / "manifest.json").write_text('{"id": ')
    assert store.lookup(key()) is None
    assert list(store.list()) == []
    write(store)
    assert store.lookup(key()) is not None


def test_the_second_writer_of_a_key_gets_the_first_ones_run(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with store.writer(key()) as run:
        write(store)
        run.result = MethodResult(stands_out=True, headline="late")
    assert run.record is not None
    assert run.record.result_json()["headline"] == "nothing"


def _write_many(folder: Path) -> None:
    store = RunStore(folder)
    for number in range(10):
        write(store, number)


def test_many_processes_write_the_same_runs(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(RunStore(tmp_path).list()) == len(list(tmp_path.iterdir())) == 10


def test_whoever_may_read_the_store_may_read_its_runs(tmp_path: Path) -> None:
    """Else a colleague's runs are not there: computed again for hours, and then without a place to go to."""
    (tmp_path / "plain").mkdir()
    store = RunStore(tmp_path / "runs")
    folder = store.get(write(store)).folder
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


def _child(code: str, folder: Path, *within: str) -> subprocess.Popen[str]:
    source = "from tests.methods.test_runs import *\n" + textwrap.dedent(code)
    return subprocess.Popen(
        [*within, sys.executable, "-c", source, str(folder)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


WRITES_UNTIL_TOLD = """
with RunStore(Path(sys.argv[1])).writer(key()) as run:
    run.add_table("rows", {"a": [1]})
    print("ready", flush=True)
    sys.stdin.read()
    run.result = MethodResult(stands_out=False, headline="x")
"""


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    child = _child(WRITES_UNTIL_TOLD, tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    store = RunStore(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1  # a live writer's folder stays
    assert list(store.list()) == []
    child.kill()
    child.wait()
    RunStore(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root to number processes anew")
def test_a_writer_with_the_same_process_number_elsewhere_is_left_alone(tmp_path: Path) -> None:
    """As in containers that share the machine's name and a disk: all of them have a process 1."""
    in_a_container = ("unshare", "--fork", "--pid", "--mount-proc")
    child = _child(WRITES_UNTIL_TOLD, tmp_path, *in_a_container)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    assert _child("RunStore(Path(sys.argv[1]))", tmp_path, *in_a_container).wait(300) == 0
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    assert RunStore(tmp_path).lookup(key()) is not None


def test_a_store_of_the_same_folder_by_another_path_leaves_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    store = RunStore(tmp_path / "runs")
    with store.writer(key()) as run:
        for path in (tmp_path / "link", Path("runs"), tmp_path / "runs"):
            RunStore(path)
        run.add_table("rows", {"a": [1]})
        run.result = MethodResult(stands_out=False, headline="x")
    assert [manifest.id for manifest in RunStore(Path("link")).list()] == [f"kl-{key().digest[:6]}"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the write fails in the same place."""
    child = _child(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        store = RunStore(Path(sys.argv[1]))
        try:
            with store.writer(key()) as run:
                run.add_array("large", np.random.default_rng(0).random(100_000))
                run.result = MethodResult(stands_out=False, headline="x")
        except OutOfRoom as error:
            print(json.dumps([error.code, list(map(str, Path(sys.argv[1]).iterdir()))]))
        print(write(store))
        """,
        tmp_path,
    )
    output, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    first, second = output.splitlines()
    assert json.loads(first) == ["out_of_room", []]
    assert RunStore(tmp_path).get(second).id == second


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root to mount a small file system")
def test_a_really_full_disk(tmp_path: Path) -> None:
    if (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)], capture_output=True, check=False
        ).returncode
        != 0
    ):
        return
    try:
        store = RunStore(tmp_path)
        identifier = write(store)
        with pytest.raises(OutOfRoom), store.writer(key(1)) as run:  # noqa: PT012
            run.add_array("large", np.random.default_rng(0).random(100_000))
            run.result = MethodResult(stands_out=False, headline="x")
        with pytest.raises(OutOfRoom), store.writer(key(1)) as run:
            run.add_table("large", {"a": np.random.default_rng(0).random(100_000)})
        assert [manifest.id for manifest in store.list()] == [identifier]
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
