"""What a caller is shown of an exception, whatever it is."""

from __future__ import annotations

import logging
import secrets

from diffing_mcp.core.errors import DiffingError, OutOfRoom
from diffing_mcp.core.storage import storage_error

logger = logging.getLogger(__name__)


class InternalError(DiffingError):
    """Something that should not happen; its own text stays in the server's log under `identifier`."""

    code = "internal_error"

    def __init__(self, identifier: str) -> None:
        super().__init__(
            f"internal error {identifier}: nothing finished was lost. Try the call once more; if it fails again, go on "
            f"without it and give {identifier} to the operator (the server's log holds the cause)."
        )
        self.identifier = identifier


def internal_error(where: str, error: BaseException) -> InternalError:
    """Log an unexpected exception under a fresh id and return the error that may be shown in its place."""
    identifier = secrets.token_hex(4)
    logger.error("internal error %s in %s", identifier, where, exc_info=error)
    return InternalError(identifier)


def presentable(where: str, error: BaseException) -> DiffingError:
    """The error to show for any exception: a `DiffingError` as it is, a device out of memory and a disk that cannot be
    written in plain words, all others under an id.
    """
    if isinstance(error, DiffingError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfRoom(
            "the device ran out of memory. Ask for less at once (fewer or shorter texts, fewer samples), or unload a "
            "pair that is not needed."
        )
    if (stored := storage_error(error)) is not None:
        logger.error("%s could not be stored or read", where, exc_info=error)
        return stored
    return internal_error(where, error)
