"""Pairs of models: a light handle on what is loaded when it is used."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from diffing_mcp.api.model_objects import is_model_object, saved_model
from diffing_mcp.api.progress import ProgressChoice, watched
from diffing_mcp.api.shown import Shown
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress
from diffing_mcp.core.settings import read_again
from diffing_mcp.methods.results import compact_text
from diffing_mcp.model_pairs import resolve
from diffing_mcp.model_pairs.specs import PairSpec

if TYPE_CHECKING:
    import pandas as pd

    from diffing_mcp.model_pairs.answering import AnsweringPair
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.residency import ModelPairs


@lru_cache(maxsize=1)
def models_of_this_process() -> ModelPairs:
    """Every model that this process holds, whichever pair it belongs to."""
    from diffing_mcp.model_pairs.residency import ModelPairs

    return ModelPairs()


class Pair(Shown):
    """Two models to compare. Making one loads nothing: the models are loaded on first use and stay in memory until
    others need the room.

    `with pair as loaded:` keeps them loaded in any case, and gives the `LoadedPair` (both models' forward passes,
    generation, tokenizer) to whoever wants to compute something of their own.
    """

    def __init__(self, spec: PairSpec) -> None:
        self.spec = spec
        """Which files both sides are made of."""
        self._held: list[ExitStack] = []

    @property
    def name(self) -> str:
        """What runs on this pair are listed under."""
        return self.spec.name

    def loaded(self, progress: Progress) -> AbstractContextManager[LoadedPair]:
        """A context in which both models are in memory; see `with pair`.

        Raises:
            NotTheSame: the sides do not fit together, or are the same.
            InvalidInput: files that are not there or cannot be read.
            OutOfRoom: no room beside models that are in use.
        """
        return models_of_this_process().use(self.spec, progress)

    def answering(self, progress: Progress) -> AbstractContextManager[AnsweringPair]:
        """A context in which both models can be asked: loaded, or connected to where they are reachable by URL alone.

        Raises: as `loaded`.
        """
        return models_of_this_process().answering(self.spec, progress)

    def load(self, progress: ProgressChoice = None) -> Pair:
        """Load both models now rather than on first use; returns the pair."""
        with watched(progress, "loading") as report, self.loaded(report):
            return self

    def unload(self) -> int:
        """Release the models of this pair that nobody is using; returns the bytes that became free.

        Raises:
            UnknownName: none of them is in memory.
            InvalidInput: all of them are in use.
        """
        return models_of_this_process().models.unload_pair(self.spec)

    def __enter__(self) -> LoadedPair:
        stack = ExitStack()
        with watched(None, "loading") as report:
            loaded = stack.enter_context(self.loaded(report))
        self._held.append(stack)
        return loaded

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.pop().__exit__(kind, error, trace)

    def heading(self) -> str:
        """The pair's name."""
        return f"Pair {self.name}"

    def as_text(self) -> str:
        """What the two sides are made of."""
        return compact_text(
            self.spec.model_dump(mode="json", exclude={"name"}, exclude_none=True, exclude_defaults=True)
        )


def load_pair(base: Any, finetuned: Any = None, *, tokenizer: Any = None, name: str | None = None) -> Pair:
    """A pair of models. Nothing is loaded yet, and nothing is downloaded.

    Args:
        base: a pair of the catalogue (`organism[/variant][@model]`, see `list_pairs`) when `finetuned` is left out;
            else the base model: a hub id, a folder, a catalogue model, or a model of transformers in memory.
        finetuned: the finetune: the same, or an adapter as a hub id, a folder or a peft model in memory. `#model` or
            `#adapter` after a text says which is meant where one place holds both.
        tokenizer: of models in memory, an adapter among them; needed when no side has files with a tokenizer.
        name: what runs are listed under; made of both sides when left out.

    A model in memory is saved once below the cache folder (`DIFFING_CACHE_FOLDER`), under a name made of its weights,
    and loaded from there: a change made to it later needs a new `load_pair`. Of a peft model only the adapter is saved.

    Raises:
        UnknownName: no such organism, variant or model, with those that come close.
        InvalidInput: a text that names no pair or model, a model object that cannot be saved, or a tokenizer without
            one.
    """
    read_again()
    sides = (base,) if finetuned is None else (base, finetuned)
    if tokenizer is not None and not any(map(is_model_object, sides)):
        raise InvalidInput(
            "`tokenizer` goes with models in memory; a hub id, a folder or a pair is read with the tokenizer in its "
            "files. Save another one into the folder of the model, and name that."
        )
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise InvalidInput(f"The name of a pair is a text, not {name!r}.")
    if finetuned is None:
        if not isinstance(base, str):
            raise InvalidInput(
                "One argument is the name of a pair, such as load_pair('cake_bake'); two are a base and a finetune."
            )
        spec = resolve.resolve_pair(base)
        return Pair(spec if name is None else spec.model_copy(update={"name": name}))
    if all(map(is_model_object, sides)) and tokenizer is None:
        raise InvalidInput("Two models in memory have no tokenizer with them: give it as `tokenizer=`.")
    places = [_place(side, tokenizer) for side in sides]
    spec = resolve.resolve_pair("::".join(places))
    if name is None and any(map(is_model_object, sides)):
        # The name of the saved folder, which tells objects apart, without the place where it is.
        shown = (Path(p).name if is_model_object(s) else p for s, p in zip(sides, places, strict=True))
        name = "::".join(shown)
    return Pair(spec if name is None else spec.model_copy(update={"name": name}))


def _place(side: Any, tokenizer: Any) -> str:
    if is_model_object(side):
        return str(saved_model(side, tokenizer).resolve())
    if isinstance(side, (str, Path)):
        return str(side)
    raise InvalidInput(
        f"A side of a pair is a hub id, a folder, or a model of transformers or peft; not {type(side).__name__}."
    )


def as_pair(pair: Pair | str) -> Pair:
    """A pair, or the pair of that name."""
    read_again()
    return pair if isinstance(pair, Pair) else load_pair(pair)


def list_pairs(*, offline: bool = False) -> pd.DataFrame:
    """The pairs of the catalogue, one a row: name, organism, variant, model, and whether all its files are on this
    machine.

    Args:
        offline: only those whose files are on this machine.
    """
    import pandas as pd

    from diffing_mcp.model_pairs.specs import PairSummary

    rows = [pair.model_dump() for pair in resolve.list_pairs() if pair.available_offline or not offline]
    return pd.DataFrame(rows, columns=list(PairSummary.model_fields))
