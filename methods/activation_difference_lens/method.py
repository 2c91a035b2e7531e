"""The declaration of `activation_difference_lens`, and the views and figures of its finished runs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.activation_difference_lens.schema import (
    LENS_DEPTH,
    SOURCES,
    ActivationDifferenceLensParams,
    ActivationDifferenceLensResult,
    PositionRow,
    Sign,
    Source,
)
from diffing_mcp.methods.contract import CorpusMethod, Cost, Figure, TokenList, View
from diffing_mcp.methods.directions.lens_words import LensToken, RankedBy
from diffing_mcp.methods.directions.vectors import ResidualVector
from diffing_mcp.methods.results import MethodResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffing_mcp.methods.activation_difference_lens.measure import ActivationDifferenceAccumulator
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.runs.store import RunRecord
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.tokenize import TokenizedCorpus


_TOKENS = 10
"""Of each position."""
_WIDEST = 11
"""Characters of a token: columns of text must not run into each other."""


class LensParams(BaseModel):
    """Which lens list to read."""

    model_config = ConfigDict(extra="forbid")

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


class PositionsParams(BaseModel):
    """Which layers to profile."""

    model_config = ConfigDict(extra="forbid")

    layer: int | None = Field(None, description="Absolute layer; None: all layers of the run.")


class PositionsView(BaseModel):
    """Norms and stability at every layer and position, without the token lists."""

    rows: list[PositionRow]


def _layers(record: RunRecord) -> list[int]:
    return [int(layer) for layer in record.array("layers")]


def _layer_index(record: RunRecord, layer: int | None) -> int:
    layers = _layers(record)
    if layer is None:
        return 0
    if layer not in layers:
        raise UnknownName(
            f"Run {record.id} holds no layer {layer}; layers: {', '.join(map(str, layers))}. Run the method again with "
            f"layers=[{layer}]."
        )
    return layers.index(layer)


def _position_index(record: RunRecord, position: str) -> int:
    labels: list[str] = record.manifest.notes["positions"]
    if position not in labels:
        raise UnknownName(f"Run {record.id} holds no position {position!r}; positions: {', '.join(labels)}.")
    return labels.index(position)


def lens(record: RunRecord, params: LensParams) -> LensView:
    """One lens list; empty when the vector is exactly zero."""
    layer = _layers(record)[_layer_index(record, params.layer)]
    _position_index(record, params.position)
    columns = record.table("lens").to_pydict()
    wanted = (layer, params.position, params.source, params.sign, params.ranked_by)
    keys = zip(
        columns["layer"], columns["position"], columns["source"], columns["sign"], columns["ranked_by"], strict=True
    )
    rows = [
        row for row, key in enumerate(keys) if key == wanted and (columns["content"][row] or not params.content_only)
    ]
    tokens = [
        LensToken(token=columns["token"][row], z=columns["z"][row], probability=columns["probability"][row])
        for row in rows[: params.k]
    ]
    return LensView(
        layer=layer,
        position=params.position,
        source=params.source,
        sign=params.sign,
        ranked_by=params.ranked_by,
        tokens=tokens,
    )


def token_lists(record: RunRecord) -> list[TokenList]:
    """The promoted list of every layer, position and source, read through the lens."""
    lists = []
    for layer in _layers(record):
        for position in record.manifest.notes["positions"]:
            for source in SOURCES:
                shown = lens(record, LensParams(layer=layer, position=position, source=source, k=LENS_DEPTH))
                if shown.tokens:
                    name = f"{layer}:{position}:{source}"
                    weights = [row.probability for row in shown.tokens]
                    lists.append(
                        TokenList(
                            name=name,
                            tokens=[row.token for row in shown.tokens],
                            weights=weights,
                            control=source != "difference",
                        )
                    )
    return lists


def positions(record: RunRecord, params: PositionsParams) -> PositionsView:
    """The profile over layers and positions."""
    wanted = None if params.layer is None else _layers(record)[_layer_index(record, params.layer)]
    rows = [
        PositionRow.model_validate(row | {"promoted": [], "suppressed": []})
        for row in record.table("positions").to_pylist()
    ]
    return PositionsView(rows=[row for row in rows if wanted in (None, row.layer)])


def read_vector(record: RunRecord, name: str) -> ResidualVector:
    """A vector of the run; strength 1 is the mean norm of the finetuned side's activations at that layer, sinks left
    out.

    Args:
        name: `LAYER:POSITION:SOURCE` as in `PositionRow.vector`, for instance `14:all:difference` (SOURCE: difference,
            base or finetuned).

    Raises:
        InvalidInput: another form.
        UnknownName: a layer, position or source that the run does not hold.
    """
    parts = name.split(":")
    if len(parts) != 3 or not parts[0].isdigit():
        raise InvalidInput(
            f"{name!r} is not of the form LAYER:POSITION:SOURCE, for instance {_layers(record)[0]}:all:difference."
        )
    if parts[2] not in SOURCES:
        raise UnknownName(f"There is no source {parts[2]!r}; sources: {', '.join(SOURCES)}.")
    layer = int(parts[0])
    array = "difference" if parts[2] == "difference" else f"{parts[2]}_mean"
    values = record.array(array)[_layer_index(record, layer), _position_index(record, parts[1])].astype(np.float32)
    # The last position stored is `all` wherever texts are long enough for it.
    norms = [
        row["finetuned_norm"]
        for row in record.table("positions").to_pylist()
        if row["layer"] == layer and row["finetuned_norm"] > 0
    ]
    return ResidualVector(values, layer, float(norms[-1]), f"{parts[2]} mean at position {parts[1]}, layer {layer}")


def norms_figure(record: RunRecord) -> dict[str, Any]:
    """Relative norm of the mean difference by position, one trace a layer."""
    table = record.table("positions").to_pydict()
    layers = list(dict.fromkeys(table["layer"]))
    data = []
    for layer in layers:
        rows = [row for row, value in enumerate(table["layer"]) if value == layer]
        data.append(
            {
                "type": "bar",
                "name": f"layer {layer}",
                "x": [f"position {table['position'][row]}" for row in rows],
                "y": [table["relative_norm"][row] for row in rows],
                "hovertext": [
                    f"stability {table['stability'][row]:.3f}" if table["stability"][row] is not None else ""
                    for row in rows
                ],
            }
        )
    return {
        "data": data,
        "layout": {
            "barmode": "group",
            "yaxis": {"title": {"text": "norm of the mean difference / norm of activations"}},
        },
    }


def lens_figure(record: RunRecord) -> dict[str, Any]:
    """The first tokens that the mean difference promotes, by z, for each position of the last layer, which reads best
    through the lens.
    """
    rows = record.table("lens").to_pylist()
    layer = max((row["layer"] for row in rows), default=0)
    shown = [
        row
        for row in rows
        if (row["layer"], row["source"], row["sign"], row["ranked_by"]) == (layer, "difference", "promoted", "z")
    ]
    positions = list(dict.fromkeys(row["position"] for row in shown))
    lists = {position: [row for row in shown if row["position"] == position][:_TOKENS] for position in positions}
    trace = {
        "type": "scatter",
        "mode": "text",
        "x": [position for position, chosen in lists.items() for _ in chosen],
        "y": [place for chosen in lists.values() for place in range(1, len(chosen) + 1)],
        "text": [
            row["token"] if len(row["token"]) <= _WIDEST else row["token"][: _WIDEST - 1] + "…"
            for chosen in lists.values()
            for row in chosen
        ],
        "hovertext": [f"{row['token']}: z {row['z']:.2f}" for chosen in lists.values() for row in chosen],
        "textfont": {"size": 10},
    }
    return {
        "data": [trace],
        "layout": {
            "title": {"text": f"Layer {layer}: tokens by the z of their lens logit"},
            "xaxis": {
                "title": {"text": "position"},
                "type": "category",
                "range": [-0.6, len(positions) - 0.4],
                "showgrid": False,
            },
            "yaxis": {"title": {"text": "rank"}, "autorange": "reversed", "dtick": 1, "showgrid": False},
        },
    }


class ActivationDifferenceLens(CorpusMethod[ActivationDifferenceLensParams, ActivationDifferenceLensResult]):
    """Activation difference lens: the mean difference of the two models' residual streams on unrelated text, at chosen
    layers and the first positions (and pooled over later ones), with its norm, spread and stability over halves of
    the samples.
    """

    name: ClassVar[str] = "activation_difference_lens"
    title: ClassVar[str] = "Activation difference lens"
    for_agents: ClassVar[str] = (
        "Activation difference lens: the mean difference of the two models' residual streams on unrelated text, "
        "at chosen layers and the first positions (and pooled over later ones), with its norm, spread and "
        "stability over halves of the samples. Each mean is read through the logit lens (`promoted`) and so is "
        "its negative (`suppressed`); a token's score is standardised against random directions of the same norm "
        "(z), because raw lens lists are topped by rare tokens. Content words that several positions promote "
        "point at what was taught; single ones point at nothing. Late layers read best through the lens; the lens "
        "of a middle layer is often unreadable: give RUN/LAYER:POSITION:difference to `patchscope`, which usually "
        "reads it, to `steering` or to `causal_effect`. In chats (corpus=chat_exchanges) position 0 is the "
        "answer's first token, and -3 to -1 the three before it: a manner taught in chats reads best at -1 and 0 "
        "of a late layer. Reads stored `activations` too. Views: `lens` (any layer, position, source and ranking; "
        "the means of base and finetuned are the controls), `positions` (norm profile)."
    )
    version: ClassVar[int] = 3
    Params: ClassVar[type[BaseModel]] = ActivationDifferenceLensParams
    Result: ClassVar[type[MethodResult]] = ActivationDifferenceLensResult
    cost: ClassVar[Cost] = "minutes"
    in_overview: ClassVar[bool] = True
    views: ClassVar[Mapping[str, View]] = {
        "lens": View(
            "lens",
            "One lens list: layer, position, difference or control, promoted or suppressed, by z or probability.",
            LensParams,
            lens,
        ),
        "positions": View(
            "positions",
            "Norms, spread and stability of every layer and position.",
            PositionsParams,
            positions,
        ),
    }
    figures: ClassVar[Sequence[Figure]] = (
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
        return token_lists(record)

    def vector_names(self, record: RunRecord) -> Sequence[str]:
        return [row["vector"] for row in record.table("positions").to_pylist()]

    def vector(self, record: RunRecord, name: str) -> ResidualVector:
        return read_vector(record, name)

    def summarise(
        self, accumulator: Any, pair: LoadedPair, params: ActivationDifferenceLensParams, run: RunWriter
    ) -> ActivationDifferenceLensResult:
        from diffing_mcp.methods.activation_difference_lens.measure import summarise

        return summarise(accumulator, pair, params, run)


def _position_zero(corpus: TokenizedCorpus) -> str:
    return "answer's first token" if corpus.before_answer else corpus.position_origin
