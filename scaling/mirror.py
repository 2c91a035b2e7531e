"""Finished runs and evaluation records copied to and from an address that fsspec knows (s3://, gs://, file://), for
workers that share no disk. Object stores rename nothing, so a run's manifest is copied last: what has none is not
there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from diffing_mcp.core.atomic_files import replace_synced
from diffing_mcp.core.errors import DiffingError, InvalidInput
from diffing_mcp.scaling.tasks import EvaluationTask, MethodsTask, Task

if TYPE_CHECKING:
    from diffing_mcp.agents.records import EvaluationRecord

MANIFEST = "manifest.json"
R = TypeVar("R", bound=BaseModel)


class MirrorFailed(DiffingError):
    """The address does not answer, or refuses. The message says what is kept and how to go on."""

    code = "mirror_failed"


class Mirror:
    """One address. Both directions pass over what is there already."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            InvalidInput: fsspec does not know the address, or what it needs is not installed.
        """
        import fsspec.core

        self.url = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InvalidInput(f"{url} cannot be used as a mirror: {error}.") from error

    def fetch(self, task: Task) -> None:
        """Copy here what a task goes on from and is not here: runs whose vectors it names, runs of its own that others
        have finished, and the records of its suite, which say what was spent.

        Raises:
            MirrorFailed: it cannot be read.
            UnknownName: a run that it names is neither here nor there.
        """
        with self._reached():
            if isinstance(task, MethodsTask):
                for start in task.named_runs():
                    self._pull_runs(f"{start}*")
                for key in task.run_keys():
                    self._pull_runs(key)
            elif isinstance(task, EvaluationTask):
                for plan in task.plans():
                    self._pull_records(plan.id)

    def push(self, task: Task, products: Iterable[str]) -> None:
        """Copy there what came of a task.

        Raises:
            MirrorFailed: it cannot be written there.
        """
        with self._reached():
            if isinstance(task, MethodsTask):
                self.push_runs(products)
            elif isinstance(task, EvaluationTask):
                self.push_record(task.evaluation, task.cell)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except DiffingError:
            raise
        except Exception as error:  # every kind of address has errors of its own
            said = " ".join(str(error).split()) or "no reason given"
            raise MirrorFailed(
                f"The mirror {self.url} cannot be read or written ({type(error).__name__}: {said}). What is finished "
                "is kept here; the same batch copies it when it is started again."
            ) from error

    def push_runs(self, runs: Iterable[str]) -> None:
        """Copy these runs of the default store there."""
        from diffing_mcp.methods.runs.store import default_store

        store = default_store()
        for run in runs:
            record = store.get(run)
            target = f"{self._root}/runs/{record.manifest.key}"
            if self._is_whole(f"{target}/{MANIFEST}"):
                continue
            files = sorted(
                (file for file in record.folder.rglob("*") if file.is_file()), key=lambda file: file.name == MANIFEST
            )
            for file in files:
                self._put(file, f"{target}/{file.relative_to(record.folder).as_posix()}")

    def push_record(self, evaluation: str, cell: str) -> None:
        """Copy the plan of an evaluation and the record of one of its cells there, with its log; a former record is
        replaced where `_gives_way` says so.
        """
        from diffing_mcp.agents.records import EvaluationFolder

        folder = EvaluationFolder(evaluation)
        here = folder.get(cell)
        if here is None:
            return
        target = f"{self._root}/evaluations/{evaluation}"
        for name in ("evaluation.json", here.log):
            if name is not None and (folder.path / name).is_file():
                self._put(folder.path / name, f"{target}/{name}")
        record = f"{target}/cells/{cell}.json"
        if _gives_way(self._record(record), here):
            self._put(folder.path / "cells" / f"{cell}.json", record)

    def _put(self, file: Path, place: str) -> None:
        self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(file), place)

    def pull(self) -> int:
        """Copy everything that is not here yet; how many runs and records that were.

        Raises:
            MirrorFailed: it cannot be read.
        """
        with self._reached():
            return self._pull_runs("*") + self._pull_records("*")

    def _pull_runs(self, keys: str) -> int:
        from diffing_mcp.methods.runs.store import default_store

        store, copied = default_store(), 0
        for manifest in self._found(f"runs/{keys}/{MANIFEST}"):
            source = manifest.rpartition("/")[0]
            if (store.folder / source.rpartition("/")[2]).exists() or not self._is_whole(manifest):
                continue
            with tempfile.TemporaryDirectory(dir=store.folder.parent) as folder:
                beside = Path(folder) / "run"
                self._files.get(f"{source}/", f"{beside}/", recursive=True)
                store.adopt(beside)
            copied += 1
        return copied

    def _is_whole(self, manifest: str) -> bool:
        """Whether a run is there: plain folders, unlike object stores, keep half of a file whose writer was killed."""
        from diffing_mcp.methods.runs.files import RunManifest

        return self._read(manifest, RunManifest) is not None

    def _pull_records(self, evaluations: str) -> int:
        from diffing_mcp.agents.records import EvaluationFolder, evaluations_folder

        copied = 0
        for place in self._found(f"evaluations/{evaluations}/evaluation.json"):
            target = evaluations_folder() / place.split("/")[-2] / "evaluation.json"
            if not target.exists():
                self._get(place, target)
                copied += 1
        for place in self._found(f"evaluations/{evaluations}/cells/*.json"):
            above, _, name = place.rpartition("/cells/")
            folder = EvaluationFolder(above.rpartition("/")[2])
            here = folder.get(name.removesuffix(".json"))
            if here is not None and here.status == "completed":
                continue
            there = self._record(place)
            if there is None or not _gives_way(here, there):
                continue
            if there.log is not None and self._files.exists(f"{above}/{there.log}"):
                self._get(f"{above}/{there.log}", folder.path / there.log)
            self._get(place, folder.path / "cells" / name)
            copied += 1
        return copied

    def _get(self, place: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_synced(target, self._files.cat_file(place))

    def _record(self, place: str) -> EvaluationRecord | None:
        from diffing_mcp.agents.records import EvaluationRecord

        return self._read(place, EvaluationRecord)

    def _read(self, place: str, kind: type[R]) -> R | None:
        """What a file there holds; None where it is not there, or not whole."""
        try:
            return kind.model_validate_json(self._files.cat_file(place))
        except (FileNotFoundError, ValidationError):
            return None

    def _found(self, pattern: str) -> list[str]:
        return [str(found) for found in self._files.glob(f"{self._root}/{pattern}")]


def _gives_way(former: EvaluationRecord | None, record: EvaluationRecord) -> bool:
    """Whether a record of a cell takes the place of another one: those of failures give way to what counts and to later
    ones, which hold what was paid for all.
    """
    if former is None or record.status == "completed":
        return True
    return former.status == "failed" and former.started_at < record.started_at
