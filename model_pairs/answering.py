"""What may be asked of a pair by texts alone, whatever its sides are: models in memory, or reachable by URL alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.model_pairs.forward_count import ForwardCount
from diffing_mcp.model_pairs.specs import SIDES, PairSpec, Side

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.generation import Completion, GenerationRequest, Sampling, Written
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.scoring import AnswerScore

Answers = Sequence[tuple["GenerationRequest", str]]


class AnsweringPair(Protocol):
    """A pair whose sides write and score texts: `LoadedPair`, or `AnsweringSides` where a side has no weights here.
    `num_layers`, `d_model` and `vocab_size` are None where they are not known.
    """

    @property
    def spec(self) -> PairSpec: ...
    @property
    def num_layers(self) -> int | None: ...
    @property
    def d_model(self) -> int | None: ...
    @property
    def vocab_size(self) -> int | None: ...
    @property
    def remarks(self) -> tuple[str, ...]: ...
    @property
    def forwards(self) -> ForwardCount: ...
    @property
    def has_chat_template(self) -> bool: ...

    def side_loaded(self, side: Side) -> AbstractContextManager[None]: ...

    def generate(
        self,
        side: Side,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        progress: Progress = silent,
        *,
        written: Written | None = None,
    ) -> list[list[Completion]]: ...

    def answer_scores(self, side: Side, answers: Answers, progress: Progress = silent) -> list[AnswerScore]: ...

    def check_scoring(self, requests: Sequence[GenerationRequest]) -> None:
        """Raise NoLogProbs when answers to these requests cannot be scored."""

    def weight_digests(self) -> Mapping[str, str]: ...


class AnsweringSide(Protocol):
    """One side, asked by itself."""

    @property
    def has_chat_template(self) -> bool: ...

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, progress: Progress, count: ForwardCount
    ) -> list[list[Completion]]: ...

    def answer_scores(self, answers: Answers, progress: Progress, count: ForwardCount) -> list[AnswerScore]: ...

    def digest(self) -> str | None: ...


@dataclass(frozen=True)
class SideHere:
    """A side in memory: the base side of a pair of that model with itself."""

    pair: LoadedPair

    @property
    def has_chat_template(self) -> bool:
        return self.pair.has_chat_template

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, progress: Progress, count: ForwardCount
    ) -> list[list[Completion]]:
        before = self.pair.forwards.copy()
        written = self.pair.generate("base", requests, sampling, progress)
        _add(count, self.pair.forwards - before)
        return written

    def answer_scores(self, answers: Answers, progress: Progress, count: ForwardCount) -> list[AnswerScore]:
        before = self.pair.forwards.copy()
        scores = self.pair.answer_scores("base", answers, progress)
        _add(count, self.pair.forwards - before)
        return scores

    def digest(self) -> str | None:
        return self.pair.weight_digests()["base"]


def _counted(completion: Completion, tokenizer: Any) -> Completion:
    """The completion with the tokens that a tokenizer cuts its text into."""
    ids = tokenizer(completion.text, add_special_tokens=False)["input_ids"]
    return completion.model_copy(update={"tokens": len(ids)})


def _add(count: ForwardCount, more: ForwardCount) -> None:
    count.add(more.passes, more.tokens, more.generated)


@dataclass(frozen=True)
class AnsweringSides:
    """A pair of which a side is reachable by URL alone. Its sides tokenise by themselves: a log-probability is that of
    the text.
    """

    spec: PairSpec
    sides: Mapping[Side, AnsweringSide]
    forwards: ForwardCount = field(default_factory=ForwardCount, compare=False)
    """Of an endpoint, what its server says that it read and wrote; a request counts as a pass a token."""
    remarks: tuple[str, ...] = ()
    num_layers: None = None
    d_model: None = None
    vocab_size: None = None

    @property
    def has_chat_template(self) -> bool:
        """An endpoint's template is its server's; that it has one shows when it is asked."""
        return all(side.has_chat_template for side in self.sides.values())

    def side_loaded(self, side: Side) -> AbstractContextManager[None]:
        """What is here stays loaded as long as the pair is open."""
        return nullcontext()

    def generate(
        self,
        side: Side,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        progress: Progress = silent,
        *,
        written: Written | None = None,
    ) -> list[list[Completion]]:
        """As `LoadedPair.generate`, but answers come whole: nothing is `written` before. A row's seed is sent with it;
        whether equal calls give equal text is the server's affair. Where one side is here, answers of both are as long
        as its tokenizer finds their texts: servers count otherwise, most of them the token that ends an answer.

        Raises:
            EndpointFailed: a server that does not answer, or refuses.
        """
        found = self.sides[side].generate(requests, sampling, progress, self.forwards)
        here = next((each.pair.tokenizer for each in self.sides.values() if isinstance(each, SideHere)), None)
        return found if here is None else [[_counted(each, here) for each in several] for several in found]

    def answer_scores(self, side: Side, answers: Answers, progress: Progress = silent) -> list[AnswerScore]:
        """As `LoadedPair.answer_scores`.

        Raises:
            NoLogProbs: a server that gives none.
            EndpointFailed: as `generate`.
        """
        return self.sides[side].answer_scores(answers, progress, self.forwards)

    def check_scoring(self, requests: Sequence[GenerationRequest]) -> None:
        """One short answer to a request of each kind, conversation or text, is scored by both sides.

        Raises:
            NoLogProbs, EndpointFailed: as `answer_scores`.
        """
        kinds = {request.messages is None: (request, "Yes") for request in requests}
        for side in SIDES:
            self.answer_scores(side, list(kinds.values()))

    def weight_digests(self) -> dict[str, str]:
        """Of the sides in memory; of others nobody knows which weights run."""
        found: dict[str, Any] = {name: side.digest() for name, side in self.sides.items()}
        return {name: digest for name, digest in found.items() if digest is not None}
