"""Progress bars, in a terminal and in a notebook."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, silent

ProgressChoice = bool | Progress | None
"""None: a bar where somebody watches (a terminal, a notebook); True or False: always or never; or what is called."""


@contextlib.contextmanager
def watched(choice: ProgressChoice, title: str) -> Iterator[Progress]:
    """The progress that a caller has chosen, for as long as the context lasts.

    Raises:
        InvalidInput: something that is none: before the work starts.
    """
    if choice is None:
        choice = sys.stderr.isatty() or in_notebook()
    if not isinstance(choice, bool):
        if not callable(choice):
            raise InvalidInput(
                f"progress is None, True, False or a function of (done, total, message), not {choice!r}."
            )
        yield choice
    elif choice:
        with bar(title) as progress:
            yield progress
    else:
        yield silent


@contextlib.contextmanager
def bar(title: str) -> Iterator[Progress]:
    """A bar on stderr or, in a notebook, below the cell; it is gone when the context ends."""
    with warnings.catch_warnings():  # without ipywidgets a notebook gets the bar as text
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

    # Said outright, since programs that silence the bars of libraries set TQDM_DISABLE.
    with tqdm(desc=title, disable=False, leave=False, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}") as drawn:
        said = title

        def report(done: float, total: float | None = None, message: str = "") -> None:
            nonlocal said
            if total != drawn.total:
                drawn.reset(total)
                drawn.total = total
            drawn.update(done - drawn.n)
            if (text := message or title) != said:
                said = text
                drawn.set_description_str(text)

        yield report


def in_notebook() -> bool:
    """Whether this code runs in the kernel of a notebook."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return hasattr(shell, "kernel")
