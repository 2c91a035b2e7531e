"""What an overview runs: the methods that fit a budget, the cheap ones first, and what is chained to the lens's mean
difference.

The budget counts tokens that the models read, both sides together, and each token that they generate as several
(`CostEstimate.work`): what a run costs whatever the machine, so that an equal call chooses the same methods and is a
lookup. Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, Field

from diffing_mcp.core.errors import Cancelled, DiffingError, InvalidInput
from diffing_mcp.core.progress import Progress, silent, stage
from diffing_mcp.methods.contract import CorpusMethod, Cost, PairSize
from diffing_mcp.methods.directions.vectors import VectorHandle, handles
from diffing_mcp.methods.registry import all_methods, get_method
from diffing_mcp.methods.runs.execute import estimate
from diffing_mcp.methods.runs.store import RunRecord
from diffing_mcp.preprocessing.text_sources import text_source

DEFAULT_BUDGET = 180_000
"""One pass over the default text with what it leads to, completions of both models, contrastive decoding, and what
costs next to nothing.
"""
LENS = "activation_difference_lens"
PENDING = VectorHandle(f"{LENS}/pending")
"""Stands for the mean difference of a lens run that is not there yet."""

Request = tuple[str, BaseModel]


class LeftOut(BaseModel):
    """A method that was not run."""

    method: str
    work: int = Field(
        description=(
            "What it would cost besides the others: tokens read, both sides together, a generated one counted as "
            "several."
        )
    )
    reason: str = Field("", description="Why it was left out; empty: the budget.")


@dataclass(frozen=True)
class OverviewPlan:
    """`requests` need only the pair; `chained` have `PENDING` for the vector that a run of the lens will give."""

    requests: list[Request]
    chained: list[Request]
    left_out: list[LeftOut]

    @property
    def all(self) -> list[Request]:
        """Everything that it would run."""
        return [*self.requests, *self.chained]


def pending_vector(method: str) -> dict[str, Any]:
    """Parameters that give a method `PENDING` as its vector; empty for methods that take none."""
    if not get_method(method).needs_vector:
        return {}
    fields = get_method(method).Params.model_fields
    if "vector" in fields:
        return {"vector": str(PENDING)}
    if "vectors" in fields:
        return {"vectors": [str(PENDING)]}
    raise InvalidInput(f"overview cannot give {method} its vector: call {method} itself.")


def choose(offered: Mapping[str, BaseModel], budget: int = DEFAULT_BUDGET) -> OverviewPlan:
    """The methods of `offered` (name -> parameters) that fit into `budget`: by declared cost class, then by what each
    adds to the others, where methods that read the same text divide the cost of their pass. One that needs a vector
    comes in question once the lens is chosen."""
    classes = get_args(Cost)
    chosen: list[Request] = []
    spent = 0
    remaining: dict[str, Any] = dict(offered)
    while open_now := {
        name: params
        for name, params in remaining.items()
        if not waits(params) or any(known == LENS for known, _ in chosen)
    }:
        added = {name: work_of([*chosen, (name, params)]) - work_of(chosen) for name, params in open_now.items()}
        fitting = [name for name in open_now if spent + added[name] <= budget]
        if not fitting:
            break
        texts = {
            name: text_source(params) if isinstance(get_method(name), CorpusMethod) else None
            for name, params in open_now.items()
        }
        readers = Counter(texts.values())
        shares = {name: added[name] / (readers[text] if text else 1) for name, text in texts.items()}
        # What comes for nothing with the pass that is paid already is taken before the next method of its class.
        best = min(fitting, key=lambda name: (classes.index(get_method(name).cost), shares[name]))
        chosen.append((best, remaining.pop(best)))
        spent += added[best]
    left = [
        LeftOut(method=name, work=work_of([*chosen, (name, params)]) - work_of(chosen))
        for name, params in remaining.items()
    ]
    order = list(all_methods())
    chosen.sort(key=lambda request: order.index(request[0]))
    return _split(chosen, sorted(left, key=lambda row: row.work))


def named(requests: Mapping[str, BaseModel], lens: BaseModel | None) -> OverviewPlan:
    """Exactly these methods, and the lens with the parameters `lens` where one of them needs its vector.

    Raises:
        InvalidInput: a vector is needed, and `lens` is None: that method may not be used.
    """
    asked = list(requests.items())
    waiting = [name for name, params in asked if waits(params)]
    if waiting and LENS not in requests:
        if lens is None:
            raise InvalidInput(
                f"{', '.join(waiting)} needs a vector, which an overview takes from {LENS}; that method is not "
                "available here."
            )
        asked.insert(0, (LENS, lens))
    return _split(asked, [])


def waits(params: BaseModel) -> bool:
    """Whether parameters hold `PENDING`."""
    return any(handle == PENDING for handle in handles(params))


def work_of(requests: Sequence[Request]) -> int:
    """The work of these methods by their own estimates, the same for every pair."""
    return estimate(PairSize(), requests).work


def later_requests(plan: OverviewPlan, records: Sequence[RunRecord]) -> list[Request]:
    """The chained requests with the vector of a finished lens run; none where the two models have equal activations:
    there is nothing to read.
    """
    vector = next((vector for record in records if (vector := mean_difference(record)) is not None), None)
    return [] if vector is None else [(method, _with_vector(params, vector)) for method, params in plan.chained]


def mean_difference(record: RunRecord) -> VectorHandle | None:
    """A lens run's mean difference over later positions, which is the steadiest, at its first layer. None for other
    runs, and where the two models' activations are equal."""
    if record.manifest.method != LENS or getattr(record.result(), "identical", False):
        return None
    names = get_method(LENS).vector_names(record)
    return next((VectorHandle(f"{record.id}/{name}") for name in names if name.endswith(":all:difference")), None)


def run_plan(
    plan: OverviewPlan,
    run: Callable[[list[Request], Progress], Sequence[RunRecord]],
    progress: Progress = silent,
    finished: Collection[Request] = (),
) -> tuple[list[RunRecord], list[LeftOut]]:
    """Records of everything that could be run, and what was left out: a method that cannot run on this pair does not
    take the others with it. `run` is given requests and their part of the `progress`, which names the methods and
    counts the work of those that are not `finished` already.

    Raises:
        Cancelled, and the first error when nothing could be run.
    """

    def left(requests: Sequence[Request]) -> int:
        return work_of([request for request in requests if request not in finished])

    count, total, done = len(plan.all), max(1, left(plan.all)), 0
    left_out, failure = list(plan.left_out), None
    records: list[RunRecord] = []

    def step(requests: list[Request], first: int) -> None:
        nonlocal done
        before, done = done, min(total, done + left(requests))
        last = first + len(requests) - 1
        names = ", ".join(name for name, _ in requests)
        place = f"{names} ({first} of {count})" if first == last else f"{names} ({first} to {last} of {count})"
        records.extend(run(requests, stage(progress, before, done, total, place)))

    shared = [request for request in plan.requests if isinstance(get_method(request[0]), CorpusMethod)]
    if shared:
        step(shared, 1)
    alone = [request for request in plan.requests if request not in shared]
    for number, request in enumerate([*alone, *later_requests(plan, records)], start=len(shared) + 1):
        try:
            step([request], number)
        except Cancelled:
            raise
        except DiffingError as error:
            failure = failure or error
            left_out.append(LeftOut(method=request[0], work=work_of([request]), reason=error.message))
    if not records and failure is not None:
        raise failure
    order = [name for name, _ in plan.all]
    return sorted(records, key=lambda record: order.index(record.manifest.method)), left_out


def _split(requests: Sequence[Request], left_out: list[LeftOut]) -> OverviewPlan:
    return OverviewPlan(
        [each for each in requests if not waits(each[1])], [each for each in requests if waits(each[1])], left_out
    )


def _with_vector(params: BaseModel, handle: VectorHandle) -> BaseModel:
    changed = {"vector": handle} if "vector" in type(params).model_fields else {"vectors": (handle,)}
    return params.model_copy(update=changed)
