"""Directions of the residual stream that methods take as a parameter: steering, patchscope, causal tests, the oracle.

A source is one of three things: a vector that a finished run offers, named `RUN/NAME` (the id of the run and a name
whose form its method decides: `14:all:difference`, `component3`, `latent42`); a token, whose unembedding row it is; or
a contrast of texts. Declare a parameter of type `VectorSource` and call `vector_sources.resolve` in `run`: the run's
key then holds the full key of the run behind a handle, and the server lets an investigation name only its own runs.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.layers import Layer
from diffing_mcp.model_pairs.specs import Side

if TYPE_CHECKING:
    from diffing_mcp.methods.runs.files import RunLookup


@dataclass(frozen=True)
class ResidualVector:
    """One direction of the residual stream after a layer.

    Attributes:
        values: [d_model] float32, in the units of the residual stream (any normalisation that a method trained with is
            undone).
        layer: absolute layer.
        scale: L2 length, in the units of the residual stream, that a steering strength of 1 stands for: what is typical
            of this direction (the norm of activations for a mean difference, the largest activation times the decoder
            norm for a latent). Positive.
        label: what the vector is, in a few words.
        note: what a reader of results must know of its origin; empty for most.
    """

    values: np.ndarray
    layer: int
    scale: float
    label: str
    note: str = ""

    @property
    def norm(self) -> float:
        """L2 length; 0 for a direction that does not exist (the difference of equal models)."""
        return float(np.linalg.norm(self.values.astype(np.float64)))

    def at_strength(self, strength: float) -> np.ndarray:
        """[d_model] float32: what steering at `strength` adds, `strength * scale * values / |values|`; zero for a zero
        vector.
        """
        length = self.norm
        return self.values * np.float32(strength * self.scale / length) if length else np.zeros_like(self.values)


class VectorHandle(str):
    """`RUN/NAME`, a vector of a finished run."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls._checked, core_schema.str_schema(max_length=300, strip_whitespace=True)
        )

    @classmethod
    def _checked(cls, text: str) -> VectorHandle:
        try:
            split_handle(text)
        except InvalidInput as error:
            raise ValueError(error.message) from error
        return cls(text)

    @property
    def run(self) -> str:
        """Id of the run."""
        return split_handle(self)[0]

    @property
    def name(self) -> str:
        """Name within the run."""
        return split_handle(self)[1]


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: Layer = Field(0.5, description="Relative depth (float) or absolute layer (integer).")
    side: Side = Field("finetuned", description="The model it is taken from.")


class TokenSource(_Source):
    """The direction that writes (or reads) one token."""

    token: str = Field(min_length=1, max_length=100, description="Exactly one token, with its leading space.")
    embedding: Literal["output", "input"] = Field("output", description="Unembedding or input embedding.")


class ContrastSource(_Source):
    """Mean activation on some texts minus mean activation on others, in one model."""

    positive: tuple[str, ...] = Field(min_length=1, max_length=200, description="Texts that have what is meant.")
    negative: tuple[str, ...] = Field(
        min_length=1, max_length=200, description="Texts that have it not, alike otherwise."
    )
    average: Literal["last_token", "all_tokens"] = Field("all_tokens", description="`all_tokens` leaves out the first.")


def _form(value: Any) -> str | None:
    """Which of the three forms a value has, so that only what is wrong with that one is said."""
    if isinstance(value, str):
        return "handle"
    if isinstance(value, Mapping):
        return "token" if "token" in value else "contrast" if {"positive", "negative"} & set(value) else None
    return "token" if isinstance(value, TokenSource) else "contrast" if isinstance(value, ContrastSource) else None


class _AnyOf:
    """Keeps `anyOf` in the JSON schema, which says enough and which more hosts know than the `oneOf` of forms told
    apart.
    """

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        made = handler(schema)
        return {"anyOf": made["oneOf"]}


VectorSource = Annotated[
    Annotated[VectorHandle, Tag("handle")]
    | Annotated[TokenSource, Tag("token")]
    | Annotated[ContrastSource, Tag("contrast")],
    Discriminator(
        _form,
        custom_error_type="vector_source",
        custom_error_message=(
            'A direction is "RUN/NAME", {"token": " cake"}, or {"positive": [texts], "negative": [texts]}'
        ),
    ),
    _AnyOf(),
]
VECTOR_HELP = (
    'A direction: "RUN/NAME" (a vector of a finished run, such as '
    '`activation_difference_lens-1f3a9c/14:all:difference`), {"token": " cake"} (an unembedding row) or {"positive": '
    '[texts], "negative": [texts]} (a difference of mean activations).'
)


def split_handle(handle: str) -> tuple[str, str]:
    """Run id and vector name of `RUN/NAME`.

    Raises:
        InvalidInput: another form.
    """
    run, slash, name = handle.strip().partition("/")
    if not run or not slash or not name:
        raise InvalidInput(
            f"{handle!r} does not name a vector. Vectors are named RUN/NAME, as the results of methods print them."
        )
    return run, name


def handles(params: Any) -> Iterator[VectorHandle]:
    """All handles inside parameters, at any depth."""
    if isinstance(params, VectorHandle):
        yield params
    elif isinstance(params, BaseModel):
        for field in type(params).model_fields:
            yield from handles(getattr(params, field))
    elif isinstance(params, Mapping):
        for value in params.values():
            yield from handles(value)
    elif isinstance(params, list | tuple):
        for value in params:
            yield from handles(value)


def vector_key_parts(params: Any, store: RunLookup) -> dict[str, str]:
    """Handle -> full key of its run, for every handle inside parameters: a short id alone could come to mean another
    run.

    Raises:
        UnknownName: no such run.
    """
    return {str(handle): store.get(handle.run).manifest.key for handle in handles(params)}
