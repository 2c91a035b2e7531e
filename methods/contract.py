"""What a diffing method is: one declaration from which the MCP tool, the command, the panel page and the reference page
are made.

This module and the declarations that subclass it never import torch, so that schemas are served before anything heavy
is loaded; a method imports its numerics inside `run`, `accumulator` and `summarise`.

A method is a subclass of `DiffingMethod` (or of `CorpusMethod`, when all it needs is what both models compute on a text
corpus) with class attributes; the registry holds one instance of each. Methods have no state: everything they know is
in their arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.preprocessing.corpora import CorpusParams
from diffing_mcp.preprocessing.text_sources import (
    StoredActivationsParams,
    open_text,
    source_identity,
    text_source,
    text_tokens,
)

if TYPE_CHECKING:
    from diffing_mcp.methods.directions.vectors import ResidualVector
    from diffing_mcp.methods.examples.writer import ExampleWriter
    from diffing_mcp.methods.runs.files import RunLookup, RunRecord
    from diffing_mcp.methods.texts.words import EvidenceWord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.specs import PairSpec
    from diffing_mcp.preprocessing.corpus_pass import Accumulator
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus

Cost = Literal["seconds", "minutes", "long"]


class MethodParams(BaseModel):
    """Parameters of a method that reads no corpus. Unknown names are refused; every field has a unit, a default and a
    range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class CorpusMethodParams(CorpusParams):
    """Parameters of a method that reads a corpus: the corpus fields are its own fields, so `max_samples=256` is set
    like any other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class HiddenStatesParams(StoredActivationsParams, CorpusMethodParams):
    """Parameters of a corpus method that needs hidden states alone: it reads stored activations as well, where the
    corpus fields are the collection's.
    """


class RunWriter(Protocol):
    """Where a method puts what is too long for its result. Nothing is visible to readers before the whole run is
    written.
    """

    @property
    def store(self) -> RunLookup:
        """The runs of the store that this one is written to: where vectors of earlier runs are looked up
        (`diffing_mcp.methods.directions.vector_sources.resolve`).
        """

    def add_array(self, name: str, values: Any) -> None:
        """A numpy array or torch tensor (any device); stored in arrays.safetensors, bfloat16 as float32."""

    def add_table(self, name: str, columns: Mapping[str, Sequence[Any] | Any]) -> None:
        """Columns of equal length (lists, numpy arrays; nested lists allowed); stored as tables/<name>.parquet."""

    def add_rows(self, name: str, rows: Sequence[BaseModel], model: type[BaseModel]) -> None:
        """A table with one column a field of `model`, also where there are no rows; objects inside of a row as JSON."""

    def examples(self, per_bin: int = 20) -> ExampleWriter:
        """The writer of the run's max-activating examples (always the same one); other processes may append to its
        `path` until the run ends.
        """

    def note(self, name: str, value: Any) -> None:
        """A JSON value for the manifest's `notes` (timings, the noise floor, whether there was a BOS)."""


P = TypeVar("P", bound=BaseModel)
R = TypeVar("R", bound=MethodResult)
V = TypeVar("V", bound=BaseModel)


@dataclass(frozen=True)
class View(Generic[P, V]):
    """A drill-down question over a finished run, answered from its stored arrays and tables alone (no
    model, no torch). `@view` makes one of a function.
    """

    name: str
    description: str
    Params: type[P]
    run: Callable[[RunRecord, P], V]

    def __call__(self, record: RunRecord, params: P) -> V:
        """The answer."""
        return self.run(record, params)


def view(description: str, Params: type[P]) -> Callable[[Callable[[RunRecord, P], V]], View[P, V]]:
    """The decorated function as a view of its own name; `description` is what agents and the panel read."""

    def declare(function: Callable[[RunRecord, P], V]) -> View[P, V]:
        return View(function.__name__, description, Params, function)

    return declare


def by_name(*views: View[Any, Any]) -> dict[str, View[Any, Any]]:
    """The `views` of a method."""
    return {each.name: each for each in views}


@dataclass(frozen=True)
class Figure:
    """A plot of a finished run for the panel. `build` returns a plotly figure as a JSON-ready dict {"data": [...],
    "layout": {...}}.
    """

    name: str
    title: str
    build: Callable[[RunRecord], dict[str, Any]]


class TokenList(BaseModel):
    """A ranked list of tokens or words of a finished run, to be judged for how many of them are on topic."""

    name: str
    tokens: list[str] = Field(description="As the tokenizer gives them, the most telling first.")
    weights: list[float] | None = Field(
        None, description="The tokens' probabilities, where the list has them; as many as tokens."
    )
    control: bool = Field(False, description="Read from one model alone: what a list shows without any difference.")


TextRole = Literal["amplified", "finetuned", "control", "search"]


class TextGroup(BaseModel):
    """Texts that one model wrote under one setting in a finished run, to be judged for coherence or for the facts that
    they state.
    """

    name: str = Field(description="Model and setting, such as `alpha +3`.")
    role: TextRole = Field(
        description=(
            "`amplified`: the difference or a direction counts more; `finetuned`: the plain finetuned model; "
            "`control`: the base, the opposite, or chance; `search`: tried while a strength was looked for."
        )
    )
    strength: float | None = Field(None, description="Alpha, weight or strength; None where nothing is amplified.")
    series: str | None = Field(
        None,
        description="Groups among which the largest coherent strength is sought, such as `finetuned +`; None: in none.",
    )
    coherent: float | None = Field(
        None,
        description="Share of the texts at this strength that the method itself found coherent; None: not looked at.",
    )
    prompts: list[str] = Field(description="What each text continues or answers; as many as texts.")
    texts: list[str] = Field(description="UNTRUSTED text of a model under study, without the prompt.")


GENERATED_WORK = 6
"""Tokens that are read in the time that generating one takes, a step giving only one token a text: 5 to 9 where all
texts were generated in batches, on two CPU cores with the bundled model; more in small batches."""


class CostEstimate(BaseModel):
    """What a call will cost at most, said before it starts. Both sides together."""

    tokens: int = Field(description="Tokens that the models read, those that they generate themselves left out.")
    generated_tokens: int = Field(0, description="Tokens that the models generate.")
    work: int = Field(
        description=(
            f"All of the work in tokens read: a generated token counts {GENERATED_WORK}, for each model that is run "
            "for it."
        )
    )
    forward_passes: int = Field(description="Passes of one model over one batch.")
    seconds: float | None = Field(description="None while the speed of this pair is unknown.")
    bytes: int = Field(description="Disk bytes of the stored run, roughly.")


class PairSize(BaseModel):
    """What an estimate needs to know of a pair; every field may be unknown before the models are loaded."""

    num_layers: int | None = None
    d_model: int | None = None
    vocab_size: int | None = None
    tokens_per_second: float | None = Field(
        None, description="Measured: tokens that are read a second, of whichever side."
    )

    def cost(
        self,
        tokens: float,
        forward_passes: int,
        *,
        generated_tokens: int = 0,
        models: int = 1,
        other_work: float = 0,
        bytes: int = 0,
    ) -> CostEstimate:
        """An estimate with its work and seconds.

        Args:
            tokens: read, both sides together.
            models: run for each generated token.
            other_work: what takes as long as reading this many tokens.
        """
        work = tokens + other_work + GENERATED_WORK * models * generated_tokens
        return CostEstimate(
            tokens=round(tokens),
            generated_tokens=generated_tokens,
            work=max(1, round(work)),
            forward_passes=forward_passes,
            seconds=round(work / self.tokens_per_second, 1) if self.tokens_per_second else None,
            bytes=bytes,
        )


class DiffingMethod(Generic[P, R]):
    """A method that compares the two sides of a pair.

    Class attributes: `name` (the tool's name), `title`, `version` (part of the key: raise it when the numbers would
    change), `Params`, `Result`, `cost`, and optionally `aliases`, `papers`, `in_overview`, `no_verdict`,
    `needs_vector`, `views` and `figures`. `for_agents` is what an agent needs to hear besides the class docstring:
    units, limits, when to call it.
    """

    name: ClassVar[str]
    aliases: ClassVar[Sequence[str]] = ()
    """Other names that people call it by, understood wherever `name` is; lists and results say `name`."""
    title: ClassVar[str]
    papers: ClassVar[Sequence[str]] = ()
    """What whoever reports a run should cite: where the method, or the part of it in brackets, comes from."""
    for_agents: ClassVar[str] = ""
    version: ClassVar[int] = 1
    Params: ClassVar[type[BaseModel]]
    Result: ClassVar[type[MethodResult]]
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = False
    """Whether `overview` may choose it when its estimate fits the budget: it needs only the pair (or a vector of the
    lens), and its result has `evidence_words()` or says how much changed."""
    no_verdict: ClassVar[str] = ""
    """What `stands_out` tells of runs of this method, in a few words, where it does not tell that something was taught;
    such a run counts toward no verdict."""
    needs_vector: ClassVar[bool] = False
    """Whether a parameter names a vector of an earlier run, so that it cannot run on a pair alone. All other methods
    run with their defaults.
    """
    texts_only: ClassVar[bool] = False
    """Whether `run` asks nothing of the pair but texts and their log-probabilities (an `AnsweringPair`), so that a side
    may be reachable by URL alone."""
    trains: ClassVar[bool] = False
    """Whether a run may train and store a dictionary, which stays when the run is deleted."""
    views: ClassVar[Mapping[str, View[Any, Any]]] = {}
    figures: ClassVar[Sequence[Figure]] = ()

    @property
    def description(self) -> str:
        """What an agent reads before it calls the tool, on one line: the class docstring, then `for_agents`."""
        return " ".join(f"{type(self).__doc__ or self.title} {self.for_agents}".split())

    def run(self, pair: LoadedPair, params: P, run: RunWriter, progress: Progress) -> R:
        """Compare, put arrays and tables into `run`, return the result. Calls `progress` between batches."""
        raise NotImplementedError

    def interactions(self, params: P) -> int:
        """Model interactions that a call costs in an investigation: one a prompt and sample where the caller chooses
        the prompts, else none.
        """
        return 0

    def operator_only(self, params: P) -> str | None:
        """Why only an operator may use these parameters through the server (they name files or hub ids), in words for
        the caller; None for most.
        """
        return None

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        """Names of the residual-stream vectors that a finished run offers to other methods, the most telling first;
        none for most methods.

        A vector is named `RUN/NAME` everywhere (`diffing_mcp.methods.directions.vectors`), for instance
        `activation_difference_lens-1f3a9c/14:all:difference`.
        """
        return ()

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        """One of the run's vectors.

        Raises:
            InvalidInput, UnknownName: no such vector; the message says how names are formed.
        """
        raise InvalidInput(f"Runs of {self.name} give no vectors.")

    def token_lists(self, record: RunRecord) -> Sequence[TokenList]:
        """The lists of a finished run that a grader of token relevance judges: the words that the result offers as
        evidence, if any.
        """
        result = record.result()
        words: list[EvidenceWord] = result.evidence_words() if hasattr(result, "evidence_words") else []
        return (
            [TokenList(name="evidence", tokens=[word.word for word in sorted(words, key=lambda word: -word.score)])]
            if words
            else []
        )

    def text_groups(self, record: RunRecord) -> Sequence[TextGroup]:
        """The texts of a finished run by model and setting, controls included, each once; none for most methods."""
        return ()

    def key_parts(self, params: P, spec: PairSpec) -> dict[str, Any]:
        """What decides the result besides method, version, pair and parameters, as JSON values: content hashes of files
        that are read.
        """
        return {}

    def estimate(self, pair: PairSize, params: P) -> CostEstimate:
        """Cost before the start; see `CostEstimate`. Methods that generate override this."""
        raise NotImplementedError


C = TypeVar("C", bound=CorpusMethodParams)


class CorpusMethod(DiffingMethod[C, R]):
    """A method fed by the shared corpus pass: several of them with equal corpus parameters cost one pass together.

    Its `Params` subclass `CorpusMethodParams`, or `HiddenStatesParams` when its accumulator reads no logits: it then
    takes stored activations too.
    """

    def accumulator(self, pair: LoadedPair, params: C, corpus: TokenizedCorpus) -> Accumulator:
        """A fresh streaming accumulator; memory O(vocabulary), O(d_model) or O(tokens), never O(tokens x
        vocabulary).
        """
        raise NotImplementedError

    def summarise(self, accumulator: Any, pair: LoadedPair, params: C, run: RunWriter) -> R:
        """Turn the fed accumulator into the stored run and its result."""
        raise NotImplementedError

    def run(self, pair: LoadedPair, params: C, run: RunWriter, progress: Progress) -> R:
        text = open_text(pair, text_source(params))
        accumulator = self.accumulator(pair, params, text.corpus)
        text.feed([accumulator], progress)
        return self.summarise(accumulator, pair, params, run)

    def key_parts(self, params: C, spec: PairSpec) -> dict[str, Any]:
        """Id and content hash of the corpus or the stored activations. Loads the documents (not the models)."""
        return source_identity(params)

    def estimate(self, pair: PairSize, params: C) -> CostEstimate:
        from diffing_mcp.core.settings import settings

        read, tokens = text_tokens(params)
        # Per-token scalars in float32 and token ids, plus a few vocabulary-sized float64 rows.
        return pair.cost(
            2 * read, 2 * -(-read // settings().batch_tokens), bytes=40 * tokens + 64 * (pair.vocab_size or 50_000)
        )
