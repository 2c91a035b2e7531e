"""Makes the finetunes of known content of a base, runs the methods on each, and keeps what they measured.

What is finished is kept: finetunes and runs lie in the base's folder of the cache, and the calibration is written after
each finetune. Where methods were added since, are of another version or have one more statistic, only they are run on
what was measured before; a run that is still there is read again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from diffing_mcp.core.atomic_files import held
from diffing_mcp.core.errors import Cancelled, DiffingError, InvalidInput, NotFinite, NotTheSame, OutOfRoom
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.methods.calibration.readings import kept_readings, reading_of, with_runs
from diffing_mcp.methods.calibration.schema import STATISTICS_VERSION, Calibration, Reading, Role
from diffing_mcp.methods.calibration.statistics import STATISTICS, names_of
from diffing_mcp.methods.calibration.store import base_of, find_calibration, folder_of, save_calibration
from diffing_mcp.methods.overview.plan import (
    CHATS,
    SIZE,
    LeftOut,
    OverviewPlan,
    Request,
    by_default,
    default_plan,
    label_of_run,
    labelled,
    method_of,
    run_plan,
    text_of,
)
from diffing_mcp.methods.registry import all_methods, get_method
from diffing_mcp.methods.runs.execute import ParamsLike, check_params, run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.model_pairs.files import local_folder
from diffing_mcp.model_pairs.fingerprint import pair_identity
from diffing_mcp.model_pairs.resolve import resolve_pair
from diffing_mcp.model_pairs.specs import AdapterFiles, ModelFiles, ModelSource, PairSpec
from diffing_mcp.organisms.nulls import EDITS, NullRecipe, make_null, nulls_for
from diffing_mcp.organisms.zoo import TaughtRecipe, make_taught, recipes_for

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.residency import ModelPairs

BESIDES = ("activation_analysis",)
"""Measured beside what an overview runs: it shares the pass, and its own runs have a level then."""
LEFT_OUT = frozenset(("perplexity_difference", labelled(SIZE, CHATS)))
"""Of an overview, but not measured: the first would take as long again as all the others, the second says where and is
no verdict.
"""


@dataclass(frozen=True)
class _Finetune:
    name: str
    made_by: str
    role: Role
    kind: str
    held_out: bool
    dilution: int
    make: Callable[[Progress], Path]
    thrown_away: bool
    """Whether its files are removed once it is measured: a whole model, edited in seconds and without training."""


def default_requests() -> list[Request]:
    """What a calibration runs: what an overview does, as far as it has a statistic."""
    planned = [
        request for request in default_plan().requests if request[0] in STATISTICS and _label(request) not in LEFT_OUT
    ]
    return [*planned, *(by_default(name) for name in BESIDES)]


def calibrate(
    pairs: ModelPairs,
    base: str,
    requests: Sequence[tuple[str, ParamsLike]] | None = None,
    taught: bool = False,
    most: int | None = None,
    progress: Progress = silent,
) -> Calibration:
    """The calibration of a base; goes on where an earlier call with the same parameters stopped.

    Args:
        base: a model of the catalogue, a hub id or a local folder.
        requests: methods with their parameters, `kl` among them; None: those of an overview.
        taught: also the taught finetunes of the zoo, which give probabilities and powers.
        most: finetunes measured by this call at most, those that give no reading left out; None: all.

    Raises:
        InvalidInput: a base that is no bare model, a method without a statistic, no `kl`, or fewer methods than the
            calibration of this base holds, which would be lost.
        UnknownName: there is no such model or method.
        OutOfRoom: memory or disk do not suffice; the same call goes on from there.
    """
    bare = _bare_model(base)
    chosen = [(name, check_params(get_method(name), params)) for name, params in requests or default_requests()]
    _check(name for name, _ in chosen)
    identity = base_of(pair_identity(bare))
    if identity is None:
        raise InvalidInput(f"{base!r} is no bare model.")
    folder = folder_of(identity)
    folder.mkdir(parents=True, exist_ok=True)
    with held(FileLock(folder / ".lock"), progress, "Waiting for another calibration of this base."):
        return _calibrated(pairs, bare, _begun(identity, base, chosen), folder, chosen, taught, most, progress)


def _calibrated(
    pairs: ModelPairs,
    bare: PairSpec,
    calibration: Calibration,
    folder: Path,
    chosen: Sequence[Request],
    taught: bool,
    most: int | None,
    progress: Progress,
) -> Calibration:
    """What was begun, with what was still to be measured."""
    store = RunStore(folder / "runs")
    readings = {reading.made_by: reading for reading in calibration.readings}
    labels = set(calibration.params)
    finetunes = _finetunes(_place_of(bare.base.files), folder, taught)
    missing = [
        each
        for each in finetunes
        if not _whole(readings.get(each.made_by), labels) and each.made_by not in calibration.passed_over
    ]
    wanted, measured = len(missing) if most is None else min(most, len(missing)), 0
    for finetune in missing:
        if measured == wanted:
            break
        report = _Part(progress, measured, wanted, finetune.name)
        known = readings.get(finetune.made_by)
        asked = [request for request in chosen if known is None or _label(request) not in _tried(known)]
        if not finetune.thrown_away:
            pairs.models.unload_idle()  # training takes a base of its own, on the same device
        found = _measured(pairs, bare, finetune, asked, store, report, known)
        if isinstance(found, Reading):
            readings[finetune.made_by] = found
            calibration.readings = list(readings.values())
            measured += 1
        else:
            calibration.passed_over[finetune.made_by] = found
        save_calibration(calibration)
    save_calibration(calibration)
    return calibration


@dataclass(frozen=True)
class _Part:
    """Progress of one finetune as that of the whole: it may be cancelled, and says what is going on."""

    whole: Progress
    finished: int
    wanted: int
    name: str

    def __call__(self, done: float, total: float | None = None, message: str = "") -> None:
        self.whole(self.finished, self.wanted, f"{self.name}: {message}")


def _measured(
    pairs: ModelPairs,
    bare: PairSpec,
    finetune: _Finetune,
    requests: Sequence[Request],
    store: RunStore,
    progress: Progress,
    known: Reading | None,
) -> Reading | str:
    """The reading of one finetune, what is `known` of it kept; or why there is none: it cannot be made of this base, or
    differs in nothing, such as a model rounded to the bits it has.

    Raises:
        OutOfRoom: of this machine, so nothing is said of the finetune: what was finished is stored, and the next call
            goes on with it.
    """
    try:
        place = finetune.make(progress)
    except InvalidInput as error:
        if known is not None:
            raise
        return error.message
    failures: list[DiffingError] = []

    def run(asked: list[Request], part: Progress) -> Sequence[RunRecord]:
        try:
            return run_methods(pairs, _pair_of(bare, finetune, place), asked, store, part)
        except DiffingError as error:
            failures.append(error)
            raise

    reason = ""
    records: list[RunRecord] = []
    failed: list[LeftOut] = []
    try:
        # What cannot be read, such as chats without a template, takes no other with it.
        records, failed = run_plan(OverviewPlan(list(requests), [], []), run, progress)
    except (Cancelled, OutOfRoom):
        raise
    except (NotTheSame, NotFinite) as error:  # an edit that left every weight as it was, or none of use
        reason = error.message
    except DiffingError:
        if known is None:
            raise
    reasons = {row.reason for row in failed}
    for failure in failures:
        if isinstance(failure, OutOfRoom) and failure.message in reasons:
            raise failure
    if finetune.thrown_away:
        shutil.rmtree(place, ignore_errors=True)
    if known is not None:
        finished = {label_of_run(record.manifest) for record in records}
        return with_runs(known, records, [label for label in map(_label, requests) if label not in finished])
    if reason:
        return reason
    if unsized := [row.reason for row in failed if row.method == SIZE]:
        raise InvalidInput(f"{SIZE}, which says how large a change is, cannot run on {finetune.name}: {unsized[0]}")
    found = reading_of(
        records,
        finetune.name,
        finetune.role,
        finetune.kind,
        made_by=finetune.made_by,
        held_out=finetune.held_out,
        dilution=finetune.dilution,
        left_out=[row.label() for row in failed],
    )
    return "It differs from the base in nothing." if found is None else found


def _bare_model(base: str) -> PairSpec:
    """The base, beside itself."""
    spec = resolve_pair(f"{base}::{base}")
    if spec.base.adapter is not None or spec.base.steering is not None:
        raise InvalidInput(f"{base!r} is no bare model: a calibration is of the base that finetunes start from.")
    return spec


def _place_of(base: ModelFiles) -> str:
    """What finetunes are made from: the id of the base, or the folder of its files where the id alone names others."""
    if base.revision is None and base.subfolder is None:
        return base.id
    return str(local_folder(base.id, base.revision, base.subfolder))


def _pair_of(bare: PairSpec, finetune: _Finetune, place: Path) -> PairSpec:
    """The base and what was made of it, both loaded and talked to alike."""
    files, adapter = bare.base.files, None
    if (place / "adapter_config.json").is_file():
        adapter = AdapterFiles(id=str(place.resolve()))
    else:
        own = {"id": str(place.resolve()), "revision": None, "subfolder": None, "dtype": "auto"}
        files = files.model_copy(update=own)
    finetuned = ModelSource(files=files, adapter=adapter)
    return bare.model_copy(update={"name": f"{finetune.role}/{finetune.name}", "finetuned": finetuned})


def _check(names: Any) -> None:
    names = list(names)
    if SIZE not in names:
        raise InvalidInput(f"A calibration runs {SIZE} in any case: it says how large a change is.")
    if wrong := [name for name in names if name not in STATISTICS]:
        raise InvalidInput(f"{', '.join(wrong)} cannot be calibrated. Methods: {', '.join(STATISTICS)}.")


def _label(request: Request) -> str:
    return labelled(request[0], text_of(request))


def _whole(reading: Reading | None, labels: Collection[str]) -> bool:
    return reading is not None and set(labels) <= _tried(reading)


def _tried(reading: Reading) -> set[str]:
    """Methods that ran on it with all statistics that they have today, and those that could not run: what cannot read
    a base, such as chats without a template, is not tried with every call.
    """
    ran = {label for label in reading.stands_out if reading.statistics.keys() >= names_of(label)}
    return {*ran, *reading.left_out}


def _begun(identity: dict[str, Any], base: str, requests: Sequence[Request]) -> Calibration:
    """The calibration that this call goes on with: what the stored one holds of the same methods, versions and
    parameters.
    """
    params = {_label(request): request[1].model_dump(mode="json") for request in requests}
    versions = {_label(request): get_method(request[0]).version for request in requests}
    known = find_calibration(identity)
    readings = []
    if known is not None:
        today = {label: each.version for label in known.params if (each := all_methods().get(method_of(label)))}
        if lost := sorted(label for label in set(today) - set(params) if today[label] == known.versions[label]):
            raise InvalidInput(
                f"The calibration of {base!r} holds {len(lost)} more: {', '.join(lost)}. Without them it would be "
                "lost: name them too, or no method at all. To begin anew with fewer, delete the calibration first: "
                f"{folder_of(identity) / 'calibration.json'}."
            )
        if (known.params, known.versions) == (params, versions):
            return known.model_copy(deep=True)
        same = {
            label
            for label, asked in params.items()
            if (known.params.get(label), known.versions.get(label)) == (asked, versions[label])
        }
        readings = kept_readings(known, same)
    return Calibration(
        base=identity,
        base_name=base,
        statistics_version=STATISTICS_VERSION,
        params=params,
        versions=versions,
        made=datetime.now(UTC),
        readings=readings,
    )


def _finetunes(base: str, folder: Path, taught: bool) -> list[_Finetune]:
    found = [_null(recipe, base, folder / "nulls") for recipe in nulls_for(base)]
    return found + ([_taught(recipe, base, folder / "taught") for recipe in recipes_for(base)] if taught else [])


def _null(recipe: NullRecipe, base: str, folder: Path) -> _Finetune:
    return _Finetune(
        recipe.name,
        recipe.made_name,
        "null",
        recipe.kind,
        recipe.held_out,
        0,
        lambda progress: make_null(recipe, base, folder, progress),
        thrown_away=recipe.kind in EDITS,
    )


def _taught(recipe: TaughtRecipe, base: str, folder: Path) -> _Finetune:
    return _Finetune(
        recipe.name,
        recipe.made_name,
        "taught",
        recipe.kind,
        recipe.held_out,
        recipe.dilution,
        lambda progress: make_taught(recipe, base, folder, progress),
        thrown_away=False,
    )
