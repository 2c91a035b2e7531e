"""The one error type whose text is written for the reader who must act: what was wrong, what is allowed, what to call
next.
"""

from __future__ import annotations


class DiffingError(Exception):
    """An expected failure. Its message may be shown to agents and users as it stands, so it never holds a path, an
    organism name or a secret that the caller did not send.

    `code` is a stable snake_case word for programs; subclasses set it. `names_tools`: the tools in the message are
    names to choose from, which the command line leaves as they are.
    """

    code = "error"

    def __init__(self, message: str, *, names_tools: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.names_tools = names_tools


class UnknownName(DiffingError):
    """A pair, organism, model, method, layer, job or run that does not exist. The message lists what does, or how to
    list it.
    """

    code = "unknown_name"


class InvalidInput(DiffingError):
    """A parameter or text outside of what is allowed. The message states the allowed range."""

    code = "invalid_input"


class NotTheSame(DiffingError):
    """Two things that must fit together do not: vocabularies, layer counts, an adapter and its base model."""

    code = "mismatch"


class OutOfRoom(DiffingError):
    """Not enough memory or disk for the request. The message says how much is needed and what would fit."""

    code = "out_of_room"


class NotFinite(DiffingError):
    """A model gives NaN or infinite numbers. The message says which side, where, and what to check."""

    code = "not_finite"


class Cancelled(DiffingError):
    """The work was cancelled between batches."""

    code = "cancelled"
