"""The seed of a draw, as parameters take it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""What every generator of random numbers, and a database's column, takes."""
