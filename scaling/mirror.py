"""Finished runs and evaluation records copied to and from an address that fsspec knows (s3://, gs://, file://), for
workers that share no disk. Object stores rename nothing, so a run's manifest is copied last: what has none is not
there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from diffing_mcp.core.errors import DiffingError, InvalidInput
from diffing_mcp.scaling.tasks import EvaluationTask, MethodsTask, Task

MANIFEST = "manifest.json"


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
            if self._files.exists(f"{target}/{MANIFEST}"):
                continue
            files = sorted(
                (file for file in record.folder.rglob("*") if file.is_file()), key=lambda file: file.name == MANIFEST
            )
            for file in files:
                place = f"{target}/{file.relative_to(record.folder).as_posix()}"
                self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(file), place)

    def push_record(self, evaluation: str, cell: str) -> None:
        """Copy the plan of an evaluation and the record of one of its cells there; a former record is replaced."""
        from diffing_mcp.agents.records import EvaluationFolder

        folder = EvaluationFolder(evaluation).path
        for file in (folder / "evaluation.json", folder / "cells" / f"{cell}.json"):
            place = f"{self._root}/evaluations/{evaluation}/{file.relative_to(folder).as_posix()}"
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(file), place)

    def pull(self) -> int:
        """Copy everything that is not here yet; how many runs and records that were.

        Raises:
            MirrorFailed: it cannot be read.
        """
        with self._reached():
            return self._pull_runs() + self._pull_records()

    def _pull_runs(self) -> int:
        from diffing_mcp.methods.runs.store import default_store

        store, copied = default_store(), 0
        for manifest in self._found(f"runs/*/{MANIFEST}"):
            source = manifest.rpartition("/")[0]
            if (store.folder / source.rpartition("/")[2]).exists():
                continue
            with tempfile.TemporaryDirectory(dir=store.folder.parent) as folder:
                beside = Path(folder) / "run"
                self._files.get(f"{source}/", f"{beside}/", recursive=True)
                store.adopt(beside)
            copied += 1
        return copied

    def _pull_records(self) -> int:
        from diffing_mcp.agents.records import evaluations_folder

        copied = 0
        for place in [*self._found("evaluations/*/evaluation.json"), *self._found("evaluations/*/cells/*.json")]:
            evaluation, *within = place.rpartition("/evaluations/")[2].split("/")
            target = evaluations_folder().joinpath(evaluation, *within)
            if target.exists() and (len(within) == 1 or _is_completed(evaluation, target.stem)):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                beside = Path(folder) / target.name
                self._files.get_file(place, str(beside))
                beside.replace(target)
            copied += 1
        return copied

    def _found(self, pattern: str) -> list[str]:
        return [str(found) for found in self._files.glob(f"{self._root}/{pattern}")]


def _is_completed(evaluation: str, cell: str) -> bool:
    """Whether the record that is here counts; one of a failure gives way."""
    from diffing_mcp.agents.records import EvaluationFolder

    record = EvaluationFolder(evaluation).get(cell)
    return record is not None and record.status == "completed"
