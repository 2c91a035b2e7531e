"""Run methods on a pair: finished ones are lookups, corpus methods that read the same text share one pass, the others
run in turn.

Every method is stored as soon as it is finished, so that a crash loses nothing that was done; and a method that fails
does not take the others of its pass with it: its error is raised after they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from diffing_mcp.core.errors import Cancelled, InvalidInput
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.core.undivided import working_time
from diffing_mcp.core.validation_messages import complaints
from diffing_mcp.methods.contract import CorpusMethod, CostEstimate, DiffingMethod, PairSize
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.store import RunKey, RunRecord, RunStore, StagedRun, run_key
from diffing_mcp.preprocessing.text_sources import TextSource, open_text, text_source

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.model_pairs.specs import PairSpec

ParamsLike = BaseModel | dict[str, Any]


@dataclass(frozen=True)
class _Request:
    index: int
    method: DiffingMethod[Any, Any]
    params: Any
    key: RunKey


def check_params(method: DiffingMethod[Any, Any], params: ParamsLike) -> BaseModel:
    """Parameters as the method's `Params`.

    Raises:
        InvalidInput: one line a wrong field, and what is allowed.
    """
    if isinstance(params, method.Params):
        return params
    try:
        return method.Params.model_validate(params.model_dump() if isinstance(params, BaseModel) else params)
    except ValidationError as error:
        fields = method.Params.model_fields
        raise InvalidInput(f"{method.name}: {complaints(error, fields)}. Parameters: {', '.join(fields)}.") from error


def find_finished(spec: PairSpec, name: str, params: ParamsLike, store: RunStore) -> RunRecord | None:
    """The stored run of this call, or None. Loads no model."""
    method = get_method(name)
    return store.lookup(run_key(method, spec, check_params(method, params), store))


def estimate(spec_size: PairSize, requests: Sequence[tuple[str, ParamsLike]]) -> CostEstimate:
    """What a call of `run_methods` costs when nothing of it is finished; methods that share a pass are counted once."""
    total = CostEstimate(tokens=0, work=0, forward_passes=0, seconds=0.0, bytes=0)
    passes: set[TextSource] = set()
    for name, raw in requests:
        method = get_method(name)
        params: Any = check_params(method, raw)
        costs = [(1, method.estimate(spec_size, params))]
        total.bytes += costs[0][1].bytes
        if isinstance(method, CorpusMethod):
            source = text_source(params)
            if source in passes:  # of a pass that is counted already, only what the method does besides it
                costs.append((-1, CorpusMethod.estimate(method, spec_size, params)))
            passes.add(source)
        for sign, cost in costs:
            total.tokens += sign * cost.tokens
            total.generated_tokens += sign * cost.generated_tokens
            total.work += sign * cost.work
            total.forward_passes += sign * cost.forward_passes
            total.seconds = (
                None if total.seconds is None or cost.seconds is None else total.seconds + sign * cost.seconds
            )
    return total


def run_methods(
    pairs: ModelPairs,
    spec: PairSpec,
    requests: Sequence[tuple[str, ParamsLike]],
    store: RunStore,
    progress: Progress = silent,
    finished: Callable[[RunRecord], None] = lambda record: None,
) -> list[RunRecord]:
    """Records of all requested (method name, parameters), in the order asked. `finished` is given each of them as soon
    as it is there.

    Raises:
        UnknownName, InvalidInput: before any model is loaded.
        WeightsNeeded: one of them reads more than texts, and a side is reachable by URL alone.
        Cancelled, OutOfRoom and whatever the models raise; what had finished before is stored.
    """
    asked: list[_Request] = []
    for index, (name, raw) in enumerate(requests):
        method = get_method(name)
        params = check_params(method, raw)
        asked.append(_Request(index, method, params, run_key(method, spec, params, store)))
    records: dict[str, RunRecord] = {}

    def keep(request: _Request, record: RunRecord | None) -> None:
        if record is None:
            raise RuntimeError("the run store gave no record of a written run")
        records[request.key.digest] = record
        finished(record)

    for request in asked:
        if request.key.digest not in records and (record := store.lookup(request.key)) is not None:
            keep(request, record)
    missing = list({request.key.digest: request for request in asked if request.key.digest not in records}.values())
    if missing:
        shared: dict[TextSource, list[_Request]] = {}
        alone: list[_Request] = []
        for request in missing:
            if isinstance(request.method, CorpusMethod):
                shared.setdefault(text_source(request.params), []).append(request)
            else:
                alone.append(request)
        texts_only = all(request.method.texts_only for request in missing)
        opened: AbstractContextManager[Any] = (pairs.answering if texts_only else pairs.use)(spec, progress)
        with opened as pair:
            done = 0
            for source, group in shared.items():
                done += len(group)
                named = _naming(progress, group, done, len(missing))
                _run_shared(pair, source, group, store, named, keep)
            for request in alone:
                done += 1
                before = pair.forwards.copy()
                with store.writer(request.key) as run:
                    named = _naming(progress, [request], done, len(missing))
                    run.result = request.method.run(pair, request.params, run, named)
                    run.forwards = pair.forwards - before
                    _note_pair(pair, run)
                keep(request, run.record)
    return [records[request.key.digest] for request in asked]


def _naming(progress: Progress, group: Sequence[_Request], place: int, of: int) -> Progress:
    """A progress whose messages begin with the methods at work, and how many of all will then be done."""
    names = ", ".join(request.method.name for request in group)
    head = names if of == 1 else f"{names} ({place} of {of})"

    def named(done: float, total: float | None = None, message: str = "") -> None:
        progress(done, total, f"{head}: {message}" if message else head)

    return named


def _run_shared(
    pair: LoadedPair,
    source: TextSource,
    group: Sequence[_Request],
    store: RunStore,
    progress: Progress,
    keep: Callable[[_Request, RunRecord | None], None],
) -> None:
    """One pass for all methods of the group, each stored and given to `keep` as soon as it is summarised."""
    started, before = working_time(), pair.forwards.copy()
    text = open_text(pair, source)
    fed = []
    for request in group:
        method = request.method
        if not isinstance(method, CorpusMethod):
            raise TypeError(f"{method.name} takes no part in a corpus pass")
        fed.append((request, method, method.accumulator(pair, request.params, text.corpus)))
    statistics = text.feed([accumulator for _, _, accumulator in fed], progress)
    pass_seconds, pass_forwards = working_time() - started, pair.forwards - before
    failure: Exception | None = None
    for request, method, accumulator in fed:
        summary_started, summary_before = working_time(), pair.forwards.copy()
        try:
            with store.writer(request.key) as run:
                run.note("corpus_pass", {name: round(value, 3) for name, value in vars(statistics).items()})
                run.note("pass_shared_by", [other.method.name for other in group])
                run.note("text", text.corpus.notes)
                run.result = method.summarise(accumulator, pair, request.params, run)
                run.seconds = pass_seconds + working_time() - summary_started
                run.forwards = pass_forwards + (pair.forwards - summary_before)
                _note_pair(pair, run)
            keep(request, run.record)
        except Cancelled:
            raise
        except Exception as error:  # the others of the pass are stored first
            failure = failure or error
    if failure is not None:
        raise failure


def _note_pair(pair: LoadedPair, run: StagedRun) -> None:
    """What was compared, by content, and what should be said of how it was put together."""
    run.note("weights", pair.weight_digests())
    if pair.remarks:
        run.note("remarks", list(pair.remarks))
