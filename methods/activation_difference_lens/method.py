"""The declaration of `activation_difference_lens`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.activation_difference_lens.schema import (
    LENS_DEPTH,
    SOURCES,
    ActivationDifferenceLensParams,
    ActivationDifferenceLensResult,
    PositionRow,
    Sign,
    Source,
)
from diffing_mcp.methods.contract import CorpusMethod, Figure, TokenList, by_name, view
from diffing_mcp.methods.directions.lens_words import LensToken, RankedBy
from diffing_mcp.methods.directions.vectors import ResidualVector
from diffing_mcp.methods.views.figures import figure, trace
from diffing_mcp.methods.views.pages import ViewParams
from diffing_mcp.methods.views.rows import grouped, held, layers_of, matching

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffing_mcp.methods.activation_difference_lens.measure import ActivationDifferenceAccumulator
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


_TOKENS = 10
"""Of each position."""
_WIDEST = 11
"""Characters of a token: columns of text must not run into each other."""


class LensParams(ViewParams):
    """Which lens list to read."""

    layer: int | None = Field(None, description="Absolute layer; None: the first one of the run.")
    position: str = Field("all", max_length=10, description="A position label of the run, or `all`.")
    source: Source = Field(
        "difference", description="The mean difference, or as controls the mean of base or finetuned activations."
    )
    sign: Sign = Field("promoted", description="`suppressed`: what the negative of the vector promotes.")
    ranked_by: RankedBy = Field(
        "z", description="`z`: against random directions of the same norm; `probability`: the plain lens."
    )
    k: int = Field(20, ge=1, le=LENS_DEPTH)
    content_only: bool = Field(False, description="Only content words.")


class LensView(BaseModel):
    """A lens list."""

    layer: int
    position: str
    source: Source
    sign: Sign
    ranked_by: RankedBy
    tokens: list[LensToken]


@view("One lens list: layer, position, difference or control, promoted or suppressed, by z or probability.", LensParams)
def lens(record: RunRecord, params: LensParams) -> LensView:
    """Empty when the vector is exactly zero."""
    held(record, "position", params.position, _positions(record))
    which = {
        "layer": held(record, "layer", params.layer, layers_of(record)),
        **params.model_dump(include={"position", "source", "sign", "ranked_by"}),
    }
    rows = record.rows("lens", content=params.content_only or None, **which)
    return LensView(tokens=[LensToken.model_validate(row) for row in rows[: params.k]], **which)


def _positions(record: RunRecord) -> list[str]:
    return list(record.manifest.notes["positions"])


class PositionsParams(ViewParams):
    """Which layers to profile."""

    layer: int | None = Field(None, description="Absolute layer; None: all layers of the run.")


class PositionsView(BaseModel):
    """Norms and stability at every layer and position, without the token lists."""

    rows: list[PositionRow]


@view("Norms, spread and stability of every layer and position.", PositionsParams)
def positions(record: RunRecord, params: PositionsParams) -> PositionsView:
    if params.layer is not None:
        held(record, "layer", params.layer, layers_of(record))
    rows = record.rows("positions", layer=params.layer)
    return PositionsView(rows=[PositionRow.model_validate(row | {"promoted": [], "suppressed": []}) for row in rows])


def norms_figure(record: RunRecord) -> dict[str, Any]:
    """Relative norm of the mean difference by position, one trace a layer."""
    data = []
    for layer, rows in grouped(record.rows("positions"), "layer").items():
        places = [f"position {row['position']}" for row in rows]
        stable = [f"stability {row['stability']:.3f}" if row["stability"] is not None else "" for row in rows]
        data.append(trace("bars", rows, f"layer {layer}", x=places, y="relative_norm", hovertext=stable))
    return figure(data, y="norm of the mean difference / norm of activations", barmode="group")


def lens_figure(record: RunRecord) -> dict[str, Any]:
    """The first tokens that the mean difference promotes, by z, for each position of the last layer, which reads best
    through the lens.
    """
    rows = record.rows("lens")
    layer = max((row["layer"] for row in rows), default=0)
    lists = grouped(matching(rows, layer=layer, source="difference", sign="promoted", ranked_by="z"), "position")
    shown = [row | {"rank": rank} for several in lists.values() for rank, row in enumerate(several[:_TOKENS], start=1)]
    tokens = [row["token"] for row in shown]
    words = trace(
        "words",
        shown,
        x="position",
        y="rank",
        text=[token if len(token) <= _WIDEST else token[: _WIDEST - 1] + "…" for token in tokens],
        hovertext=[f"{row['token']}: z {row['z']:.2f}" for row in shown],
        textfont={"size": 10},
    )
    return figure(
        [words],
        x={"title": "position", "type": "category", "range": [-0.6, len(lists) - 0.4], "showgrid": False},
        y={"title": "rank", "autorange": "reversed", "dtick": 1, "showgrid": False},
        title=f"Layer {layer}: tokens by the z of their lens logit",
    )


class ActivationDifferenceLens(CorpusMethod[ActivationDifferenceLensParams, ActivationDifferenceLensResult]):
    """Activation difference lens: the mean difference of the two models' residual streams on unrelated text, at chosen
    layers and the first positions (and pooled over later ones), with its norm, spread and stability over halves of
    the samples.
    """

    name = "activation_difference_lens"
    title = "Activation difference lens"
    papers = ("Minder et al. 2025, arXiv 2510.13900",)
    for_agents = (
        "Each mean is read through the logit lens (`promoted`) and so is its negative (`suppressed`); a token's "
        "score is standardised against random directions of the same norm (z), because raw lens lists are topped "
        "by rare tokens. Content words that several positions promote point at what was taught; single ones point "
        "at nothing. Late layers read best through the lens; the lens of a middle layer is often unreadable: give "
        "RUN/LAYER:POSITION:difference to `patchscope`, which usually reads it, to `steering` or to "
        "`causal_effect`. In chats (corpus=chat_exchanges) position 0 is the answer's first token, and -3 to -1 "
        "the three before it: a manner taught in chats reads best at -1 and 0 of a late layer. Reads stored "
        "`activations` too. Views: `lens` (any layer, position, source and ranking; the means of base and "
        "finetuned are the controls), `positions` (norm profile)."
    )
    version = 3
    Params = ActivationDifferenceLensParams
    Result = ActivationDifferenceLensResult
    in_overview = True
    views = by_name(lens, positions)
    figures = (
        Figure("norms", "Size of the mean difference by position", norms_figure),
        Figure("lens", "Tokens promoted by the mean difference", lens_figure),
    )

    def accumulator(
        self, pair: LoadedPair, params: ActivationDifferenceLensParams, corpus: TokenizedCorpus
    ) -> ActivationDifferenceAccumulator:
        from diffing_mcp.methods.activation_difference_lens.measure import (
            POOLED_FROM,
            ActivationDifferenceAccumulator,
        )
        from diffing_mcp.model_pairs.layers import resolve_layers

        before = corpus.before_answer
        layers = tuple(reference.absolute for reference in resolve_layers(params.layers, pair.num_layers))
        labels = [str(place - before) for place in range(before + params.positions)]
        return ActivationDifferenceAccumulator(
            layers,
            labels,
            before + POOLED_FROM,
            pair.d_model,
            pair.device,
            samples=len(corpus.ids),
            position_zero=_position_zero(corpus),
            stored=corpus.stored,
        )

    def token_lists(self, record: RunRecord) -> Sequence[TokenList]:
        """The promoted list of every layer, position and source, read through the lens."""
        lists = []
        for layer, position, source in product(layers_of(record), _positions(record), SOURCES):
            shown = lens(record, LensParams(layer=layer, position=position, source=source, k=LENS_DEPTH)).tokens
            if shown:
                lists.append(
                    TokenList(
                        name=f"{layer}:{position}:{source}",
                        tokens=[row.token for row in shown],
                        weights=[row.probability for row in shown],
                        control=source != "difference",
                    )
                )
        return lists

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return [row["vector"] for row in record.rows("positions", ["vector"])]

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        """A vector of the run; strength 1 is the mean norm of the finetuned side's activations at that layer, sinks
        left out.

        Args:
            name: `LAYER:POSITION:SOURCE` as in `PositionRow.vector`, for instance `14:all:difference` (SOURCE:
                difference, base or finetuned).

        Raises:
            InvalidInput: another form.
            UnknownName: a layer, position or source that the run does not hold.
        """
        layers, labels = layers_of(record), _positions(record)
        parts = name.split(":")
        if len(parts) != 3 or not parts[0].isdigit():
            raise InvalidInput(
                f"{name!r} is not of the form LAYER:POSITION:SOURCE, for instance {layers[0]}:all:difference."
            )
        position, source = held(record, "position", parts[1], labels), held(record, "source", parts[2], SOURCES)
        layer = held(record, "layer", int(parts[0]), layers)
        means = record.array("difference" if source == "difference" else f"{source}_mean")
        values = means[layers.index(layer), labels.index(position)].astype(np.float32)
        # The last position stored is `all` wherever texts are long enough for it.
        norms = [row["finetuned_norm"] for row in record.rows("positions", layer=layer) if row["finetuned_norm"] > 0]
        return ResidualVector(values, layer, float(norms[-1]), f"{source} mean at position {position}, layer {layer}")

    def summarise(
        self, accumulator: Any, pair: LoadedPair, params: ActivationDifferenceLensParams, run: RunWriter
    ) -> ActivationDifferenceLensResult:
        from diffing_mcp.methods.activation_difference_lens.measure import summarise

        return summarise(accumulator, pair, params, run)


def _position_zero(corpus: TokenizedCorpus) -> str:
    return "answer's first token" if corpus.before_answer else corpus.position_origin
