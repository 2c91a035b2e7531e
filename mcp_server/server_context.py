"""What one server process has: jobs, the ledger, resident models and the run store. Models and torch are loaded by the
first job that needs them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.mcp_server.jobs import Job, Jobs
from diffing_mcp.mcp_server.ledger import Ledger
from diffing_mcp.methods.contract import PairSize
from diffing_mcp.model_pairs.specs import PairSpec
from diffing_mcp.queries.answer_memory import AnswerMemory

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.store import RunStore
    from diffing_mcp.model_pairs.answering import AnsweringPair
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.queries.hypothesis_schemas import Judge


class ServerContext:
    """Shared by all requests of a process. Create one, serve, `close` it."""

    def __init__(self, pairs: ModelPairs | None = None, judge: Judge | None = None) -> None:
        """`pairs`: models to share with others in this process; none: the context makes its own when the first job
        needs them. `judge`: says whether answers meet a criterion; none: tests cannot use criteria.
        """
        self.judge = judge
        self.jobs = Jobs()
        self.ledger = Ledger()
        self.ledger.recover()
        self._lock = threading.Lock()
        self._pairs = pairs
        self._sizes: dict[str, PairSize] = {}
        self._remarks: dict[str, tuple[str, ...]] = {}
        self._writing: dict[str, float] = {}
        self.answers = AnswerMemory()
        """What models were asked and have answered, for equal calls."""

    @property
    def device(self) -> str:
        """The name of the queue that model work goes through. A pair may span several devices; there is one worker for
        all of them.
        """
        return settings().device

    @property
    def pairs(self) -> ModelPairs:
        """The resident models. Imports torch: ask for it in a job only."""
        with self._lock:
            if self._pairs is None:
                from diffing_mcp.model_pairs.residency import ModelPairs

                self._pairs = ModelPairs()
            return self._pairs

    @property
    def pairs_if_any(self) -> ModelPairs | None:
        """The resident models, None while no job has needed any."""
        return self._pairs

    @cached_property
    def store(self) -> RunStore:
        """The run store of the data folder."""
        from diffing_mcp.methods.runs.store import default_store

        return default_store()

    def has_runs(self, runs: Iterable[str]) -> bool:
        """Whether these runs are still stored: they may be deleted by another process."""
        try:
            return all(self.store.get(run) for run in runs)
        except UnknownName:
            return False

    @contextmanager
    def loaded(self, spec: PairSpec, job: Job) -> Iterator[LoadedPair]:
        """The pair for a job, its models in memory; what is then known of its size is kept."""
        job(0, None, "loading")
        with self.pairs.use(spec, job) as pair:
            self.note_size(spec, pair)
            yield pair

    @contextmanager
    def answering(self, spec: PairSpec, job: Job) -> Iterator[AnsweringPair]:
        """The pair for a job that needs texts and their log-probabilities alone, so that a side may be behind a URL."""
        job(0, None, "loading")
        with self.pairs.answering(spec, job) as pair:
            self.note_size(spec, pair)
            yield pair

    def note_size(self, spec: PairSpec, pair: AnsweringPair) -> PairSize:
        """Remember the sizes of a loaded pair for descriptions and estimates."""
        known = self._sizes.get(spec.name, PairSize())
        size = known.model_copy(
            update={"num_layers": pair.num_layers, "d_model": pair.d_model, "vocab_size": pair.vocab_size}
        )
        self._sizes[spec.name] = size
        self._remarks[spec.name] = pair.remarks
        return size

    def remarks(self, spec: PairSpec) -> tuple[str, ...]:
        """What should be said of how the pair was put together when it was last loaded; they may name models."""
        return self._remarks.get(spec.name, ())

    def note_speed(self, spec: PairSpec, tokens: int, seconds: float) -> None:
        """Remember how fast a pair read `tokens` tokens per side, so that the next estimate knows its seconds."""
        if tokens > 0 and seconds > 0:
            self._sizes[spec.name] = self.size(spec).model_copy(update={"tokens_per_second": 2 * tokens / seconds})

    def note_generation(self, spec: PairSpec, tokens: int, seconds: float) -> None:
        """Remember how fast a pair writes, all rows of a batch together."""
        if tokens > 0 and seconds > 0:
            self._writing[spec.name] = tokens / seconds

    def writing_seconds(self, spec: PairSpec, tokens: int) -> float | None:
        """Seconds to write `tokens` tokens at most, None before the pair has written any."""
        speed = self._writing.get(spec.name)
        return None if speed is None else round(tokens / speed, 1)

    def size(self, spec: PairSpec) -> PairSize:
        """What is known of a pair without loading it."""
        return self._sizes.get(spec.name, PairSize())

    def lost_work(self, investigation: str) -> str:
        """What is to be said, once, of the work that ended with a server that was killed; empty: nothing."""
        lost = self.ledger.lost_work(investigation)
        if not lost:
            return ""
        given_back = sum(work.interactions for work in lost)
        refund = f" {given_back} model interactions were given back." if given_back else ""
        return (
            f"The server was restarted while work of yours was under way ({', '.join(work.what for work in lost)})."
            f"{refund} Call again for it: methods that had finished are reused, only the rest is done anew."
        )

    def status(self) -> list[Any]:
        """Resident models (`diffing_mcp.model_pairs.residency.ResidentModel`), none while nothing was loaded."""
        return list(self._pairs.models.status()) if self._pairs is not None else []

    def close(self, timeout: float = 10.0) -> bool:
        """Stop all jobs and give back what they reserved; whether all have reached their next batch within `timeout`
        seconds. Safe to call twice.
        """
        ended = self.jobs.close(timeout)
        self.ledger.close()
        return ended
