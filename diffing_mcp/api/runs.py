"""Finished runs: the typed result, and the tables, figures and views behind it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic_core import to_jsonable_python

from diffing_mcp.api.pairs import Pair, as_pair
from diffing_mcp.api.parameters import accepted
from diffing_mcp.api.shown import Shown, ShownResult
from diffing_mcp.core.errors import DiffingError, InvalidInput, UnknownName
from diffing_mcp.core.settings import read_again
from diffing_mcp.core.text import clip
from diffing_mcp.methods.contract import DiffingMethod, MethodResult, View
from diffing_mcp.methods.registry import all_methods, get_method
from diffing_mcp.methods.runs.store import default_store
from diffing_mcp.methods.views.figures import plain_labels
from diffing_mcp.model_pairs.fingerprint import pair_identity

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import pandas as pd
    from plotly.graph_objects import Figure

    from diffing_mcp.methods.runs.store import RunManifest, RunRecord

R = TypeVar("R", bound=MethodResult)

_PARAMETER = 80
"""Characters of a parameter in a heading: own texts can be a book."""
_LISTED = (
    "id",
    "pair_name",
    "method",
    "created",
    "seconds",
    "forward_passes",
    "forward_tokens",
    "generated_tokens",
    "bytes",
)


class Run(Shown, Generic[R]):
    """A finished run of a method on a pair, read from its folder when it is asked for something."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        """The stored run: manifest, files, versions."""

    @property
    def id(self) -> str:
        """Its name for `open_run`, such as `kl-1f3a9c`."""
        return self.record.id

    @property
    def method(self) -> str:
        """The method's name."""
        return self.record.manifest.method

    @property
    def pair(self) -> str:
        """The name of the pair that was compared."""
        return self.record.manifest.pair_name

    @property
    def params(self) -> dict[str, Any]:
        """All parameters that it was made with, defaults included."""
        return self.record.manifest.params

    @cached_property
    def result(self) -> R:
        """The result, as the method's own type.

        Raises:
            InvalidInput: the run was written by another version of the method, whose result had other fields.
        """
        return self.record.result()  # type: ignore[return-value]

    @property
    def tables(self) -> list[str]:
        """Names for `table`."""
        return list(self.record.manifest.tables)

    @property
    def arrays(self) -> list[str]:
        """Names for `array`."""
        return list(self.record.manifest.arrays)

    @property
    def _declared(self) -> DiffingMethod[Any, Any] | None:
        """The method; None for that of a plugin which is not installed here."""
        return all_methods().get(self.method)

    @property
    def figures(self) -> list[str]:
        """Names for `figure`."""
        return [figure.name for figure in self._declared.figures] if self._declared else []

    @property
    def views(self) -> list[str]:
        """Names for `view`."""
        return list(self._declared.views) if self._declared else []

    def table(self, name: str) -> pd.DataFrame:
        """A stored table.

        Raises:
            UnknownName: there is none of that name, with those that there are.
        """
        return self.record.table(name).to_pandas()

    def array(self, name: str) -> np.ndarray:
        """A stored array.

        Raises:
            UnknownName: there is none of that name, with those that there are.
        """
        return self.record.array(name)

    def figure(self, name: str) -> Figure:
        """A figure of the method, which a notebook shows by itself.

        Raises:
            UnknownName: there is none of that name, with those that there are.
        """
        from plotly.graph_objects import Figure

        declared = {figure.name: figure for figure in get_method(self.method).figures}
        if name not in declared:
            raise UnknownName(_no(self, "figure", name, declared))
        return Figure(plain_labels(declared[name].build(self.record)))

    def view(self, name: str, **settings: Any) -> ShownResult[Any]:
        """A drill-down view: a question to the stored run that needs no model.

        Args:
            name: one of `views`.
            settings: its parameters, such as `limit=5`; a wrong one is answered with those that there are.

        Raises:
            UnknownName: there is no such view, with those that there are.
            InvalidInput: an unknown parameter or a value out of range.
        """
        declared = self.declared_view(name)
        return ShownResult(
            f"{self.id}: {declared.name}", declared.run(self.record, accepted(declared.Params, settings))
        )

    def declared_view(self, name: str) -> View:
        """The declaration of a view: its description and parameters. Raises UnknownName."""
        views = get_method(self.method).views
        if name not in views:
            raise UnknownName(_no(self, "view", name, views))
        return views[name]

    def heading(self) -> str:
        """Id, method, pair, and the parameters that are not the defaults, of long ones the beginning."""
        method = self._declared
        fields = method.Params.model_fields if method else {}
        changed = [
            f"{name}={clip(str(value), _PARAMETER)[0]}"
            for name, value in self.params.items()
            if name not in fields or to_jsonable_python(fields[name].get_default(call_default_factory=True)) != value
        ]
        title = method.title if method else self.method
        return f"{self.id}: {title} of {self.pair}" + (f" ({', '.join(changed)})" if changed else "")

    def as_text(self) -> str:
        """The result as text, and what else there is to look at."""
        more = [
            f"{what}: {', '.join(names)}"
            for what, names in (("tables", self.tables), ("figures", self.figures), ("views", self.views))
            if names
        ]
        return "\n".join([self._said(), *self.record.remarks, "; ".join(more)])

    def _said(self) -> str:
        """The result; why there is none, of a run that only another version can read: showing it is no error."""
        try:
            return self.record.report(self.result)
        except DiffingError as error:
            return error.message


def open_run(identifier: str) -> Run[Any]:
    """A finished run by its id, such as `kl-1f3a9c`, or an unambiguous beginning of it. Loads no model.

    Raises:
        UnknownName: none, or several.
        InvalidInput: something that is no id.
    """
    if not isinstance(identifier, str):
        raise InvalidInput(
            f"A run is named by its id, a text such as 'kl-1f3a9c', not {identifier!r}. list_runs() lists them."
        )
    read_again()
    return Run(default_store().get(identifier))


def list_runs(method: str | None = None, pair: Pair | str | None = None) -> pd.DataFrame:
    """The finished runs, newest first, one a row: id, pair, method, when it was made, seconds, passes of one model over
    one batch, tokens read and generated (both sides together), bytes on disk.

    Args:
        method: only runs of this method.
        pair: only runs on these models, whatever they were called then.

    Raises:
        UnknownName: there is no such method or pair.
    """
    import pandas as pd

    rows = [{name: getattr(each, name) for name in _LISTED} for each in matching(method, pair)]
    return pd.DataFrame(rows, columns=list(_LISTED)).rename(columns={"pair_name": "pair"})


def matching(method: str | None = None, pair: Pair | str | None = None) -> list[RunManifest]:
    """The manifests behind `list_runs`."""
    read_again()
    wanted = get_method(method).name if method is not None else None
    identity = pair_identity(as_pair(pair).spec) if pair is not None else None
    return [each for each in default_store().list(method=wanted) if identity in (None, each.pair)]


def _no(run: Run[Any], kind: str, name: str, known: Iterable[str]) -> str:
    return f"{run.method} has no {kind} {name!r}. {kind.capitalize()}s: {', '.join(known) or 'none'}."
