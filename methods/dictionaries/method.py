"""What the declarations of both dictionary methods share. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from diffing_mcp.methods.contract import Cost, CostEstimate, DiffingMethod, PairSize, View
from diffing_mcp.methods.dictionaries.recipe import estimate
from diffing_mcp.methods.dictionaries.schema import DictionaryParams, DictionaryResult
from diffing_mcp.methods.dictionaries.views import VIEWS, read_vector, vector_names
from diffing_mcp.preprocessing.text_sources import source_identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.directions.vectors import ResidualVector
    from diffing_mcp.methods.runs.files import RunRecord
    from diffing_mcp.model_pairs.specs import PairSpec

P = TypeVar("P", bound=DictionaryParams)
R = TypeVar("R", bound=DictionaryResult)


class DictionaryMethod(DiffingMethod[P, R]):
    """A method that trains (or loads) a sparse dictionary, whose latents are vectors for other methods.

    Subclasses add `name`, `title`, `Params`, `Result`, `sources`, `figures` and `run`.
    """

    version: ClassVar[int] = 2
    cost: ClassVar[Cost] = "long"
    trains: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = VIEWS
    sources: ClassVar[int]
    """Activations that a latent reads and writes at a token: 1, the difference; 2, those of both models."""

    def operator_only(self, params: P) -> str | None:
        return "dictionary names a folder or a hub id; leave it out and one is trained" if params.dictionary else None

    def key_parts(self, params: P, spec: PairSpec) -> dict[str, Any]:
        """What decides the rows, and the content of a loaded dictionary."""
        from diffing_mcp.methods.dictionaries.files import content_hash

        parts = source_identity(params)
        return parts | {"dictionary": content_hash(params.dictionary)} if params.dictionary else parts

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return vector_names(record)

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        return read_vector(record, name)

    def estimate(self, pair: PairSize, params: P) -> CostEstimate:
        return estimate(pair, params, self.sources)
