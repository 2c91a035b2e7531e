"""What an overview runs: the methods that fit a budget, the most telling first, on texts and on chats, and what is
chained to the lens's mean difference.

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
from diffing_mcp.methods.facts.facts import CHEAP
from diffing_mcp.methods.registry import all_methods, get_method
from diffing_mcp.methods.runs.execute import estimate
from diffing_mcp.methods.runs.store import RunManifest, RunRecord
from diffing_mcp.preprocessing.corpora import CorpusParams
from diffing_mcp.preprocessing.text_sources import TextSource, text_source

DEFAULT_BUDGET = 210_000
"""Contrastive decoding and completions of both models on texts and chats, one pass over the default text and a short
one over chats with what they lead to, and what costs next to nothing.
"""
SIZE = "kl"
"""How large the change is, on the default text: every verdict is counted from it, so it is run first."""
OPENINGS = "answer_openings"
"""The cheapest of the telling methods, so that a slow machine has something to say soon."""
TEXTS_READ = 250
"""Documents of each text unless more are asked for: what verdicts are calibrated on."""
CHATS = "chat_exchanges"
CHATS_READ = 128
ALSO_IN_CHATS = (SIZE, "logit_diff_topk_occurring", "continuation_mining")
"""What reads a text for words and phrases, and for where models differ, reads some chats too: what was taught in chats
may show nowhere else.
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
    text: str = Field("", description="The corpus that it would have read; empty: its default, or none.")

    def label(self) -> str:
        """The method, and its text where that is not the default."""
        return labelled(self.method, self.text)


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


def labelled(method: str, text: str) -> str:
    """A method, and the text that it reads where that is not the default."""
    return f"{method} on {text}" if text else method


def method_of(label: str) -> str:
    """The method of a label."""
    return label.partition(" on ")[0]


def text_of(request: Request) -> str:
    """The corpus of a request; empty where it is the default, or where none is read."""
    return _unless_default(getattr(request[1], "corpus", ""))


def text_of_run(manifest: RunManifest) -> str:
    """The corpus of a finished run; empty where it was the default, or where none was read."""
    return _unless_default(manifest.params.get("corpus") or "")


def label_of_run(manifest: RunManifest) -> str:
    """`labelled` of a finished run."""
    return labelled(manifest.method, text_of_run(manifest))


def _unless_default(corpus: str) -> str:
    return "" if corpus == CorpusParams.model_fields["corpus"].default else corpus


def default_plan() -> OverviewPlan:
    """What an overview runs when nothing else is asked for."""
    offered = [name for name, method in all_methods().items() if method.in_overview]
    return choose(with_chats([by_default(name) for name in offered]))


def by_default(name: str) -> Request:
    """A method with the parameters of an overview."""
    return name, get_method(name).Params.model_validate({**read_by_default(name), **pending_vector(name)})


def read_by_default(name: str) -> dict[str, Any]:
    """How many documents an overview has a method read, as its parameters; empty for one that reads none."""
    corpus = get_method(name).Params.model_fields.get("corpus")
    return {} if corpus is None else {"max_samples": CHATS_READ if corpus.default == CHATS else TEXTS_READ}


def with_chats(requests: Sequence[Request]) -> list[Request]:
    """These, and those of `ALSO_IN_CHATS` on chats as well where they read the default text; beside it, fewer chats
    are read than texts, by methods of chats too.
    """
    read = [text_of(request) for request in requests if isinstance(request[1], CorpusParams)]
    own, again = [], []
    for name, params in requests:
        text = text_of((name, params)) if isinstance(params, CorpusParams) else None
        own.append((name, _of_chats(params) if text == CHATS and "" in read else params))
        if text == "" and name in ALSO_IN_CHATS:
            again.append((name, _of_chats(params)))
    return [*own, *again]


def _of_chats(params: BaseModel) -> BaseModel:
    most = min(CHATS_READ, getattr(params, "max_samples", CHATS_READ))
    return params.model_copy(update={"corpus": CHATS, "max_samples": most})


def choose(offered: Sequence[Request], budget: int = DEFAULT_BUDGET) -> OverviewPlan:
    """The requests of `offered` that fit into `budget`: the size of the change, what is cheap and telling, then by
    declared cost class, the default text before chats, then by what each adds to the others, where methods that read
    the same text divide the cost of their pass. One that needs a vector comes in question once the lens is chosen."""
    chosen: list[Request] = []
    spent = 0
    remaining = list(offered)
    while open_now := [
        request for request in remaining if not waits(request[1]) or any(known == LENS for known, _ in chosen)
    ]:
        added = [work_of([*chosen, request]) - work_of(chosen) for request in open_now]
        texts = [_source(request) for request in open_now]
        readers = Counter(texts)
        # What comes for nothing with the pass that is paid already is taken before the next method of its class.
        ranked = [
            (*_first(request), work / (readers[text] if text else 1), place)
            for place, (request, work, text) in enumerate(zip(open_now, added, texts, strict=True))
            if spent + work <= budget
        ]
        if not ranked:
            break
        best = min(ranked)[-1]
        chosen.append(open_now[best])
        remaining.remove(open_now[best])
        spent += added[best]
    left = [
        LeftOut(method=request[0], text=text_of(request), work=work_of([*chosen, request]) - work_of(chosen))
        for request in remaining
    ]
    order = list(all_methods())
    chosen.sort(key=lambda request: (_telling(request), order.index(request[0])))
    return _split(chosen, sorted(left, key=lambda row: row.work))


def _telling(request: Request) -> int:
    """Place among what is chosen and run first: the size of the change, then the cheap and telling methods."""
    first = (SIZE, OPENINGS, *CHEAP)
    if request[0] not in first or (request[0] == SIZE and text_of(request)):  # on chats it is no measure of size
        return len(first)
    return first.index(request[0])


def _first(request: Request) -> tuple[int, int, bool]:
    """First the cheap and telling methods, then by declared cost class; the default text before chats."""
    return _telling(request), get_args(Cost).index(get_method(request[0]).cost), bool(text_of(request))


def _source(request: Request) -> TextSource | None:
    """The text that a request reads in a pass with others; None: none."""
    name, params = request
    if isinstance(params, CorpusParams) and isinstance(get_method(name), CorpusMethod):
        return text_source(params)
    return None


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
    """Records of everything that could be run, in the order of the plan, and what was left out: a method that cannot
    run on this pair does not take the others with it. `run` is given requests and their part of the `progress`, which
    names the methods and counts the work of those that are not `finished` already.

    Raises:
        Cancelled, and the first error when nothing could be run.
    """

    def left(requests: Sequence[Request]) -> int:
        return work_of([request for request in requests if request not in finished])

    count, total, done, number = len(plan.all), max(1, left(plan.all)), 0, 1
    records: list[RunRecord] = []
    left_out = list(plan.left_out)
    failures: list[DiffingError] = []

    def attempt(requests: list[Request], part: Progress) -> None:
        try:
            records.extend(run(requests, part))
        except Cancelled:
            raise
        except DiffingError as error:
            if len(requests) > 1:  # what did not fail is finished by now
                for request in requests:
                    attempt([request], part)
                return
            failures.append(error)
            name, text = requests[0][0], text_of(requests[0])
            left_out.append(LeftOut(method=name, text=text, work=work_of(requests), reason=error.message))

    def step(requests: list[Request]) -> None:
        nonlocal done, number
        before, done = done, min(total, done + left(requests))
        first, number = number, number + len(requests)
        place = f"{first}" if len(requests) == 1 else f"{first} to {number - 1}"
        attempt(requests, stage(progress, before, done, total, f"{place} of {count}"))  # whoever runs them names them

    for requests in steps(plan.requests):
        step(requests)
    for request in later_requests(plan, records):
        step([request])
    if any(row.method == LENS and row.reason for row in left_out):
        reason = f"It reads the mean difference of {LENS}, which could not run."
        left_out += [
            LeftOut(method=name, work=work_of([(name, params)]), reason=reason) for name, params in plan.chained
        ]
    if not records and failures:
        raise failures[0]
    order = [labelled(request[0], text_of(request)) for request in plan.all]
    return sorted(records, key=lambda record: order.index(label_of_run(record.manifest))), left_out


def steps(requests: Sequence[Request]) -> list[list[Request]]:
    """What is run together, in order: methods that read the same text in one step, at the place of the first of them;
    every other method in a step of its own."""
    found: list[list[Request]] = []
    of_text: dict[TextSource, list[Request]] = {}
    for request in requests:
        text = _source(request)
        if text is not None and text in of_text:
            of_text[text].append(request)
        else:
            found.append([request])
            if text is not None:
                of_text[text] = found[-1]
    return found


def _split(requests: Sequence[Request], left_out: list[LeftOut]) -> OverviewPlan:
    return OverviewPlan(
        [each for each in requests if not waits(each[1])], [each for each in requests if waits(each[1])], left_out
    )


def _with_vector(params: BaseModel, handle: VectorHandle) -> BaseModel:
    changed = {"vector": handle} if "vector" in type(params).model_fields else {"vectors": (handle,)}
    return params.model_copy(update=changed)
