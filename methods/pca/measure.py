"""From activations to the stored components, what they read as, and when that stands out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.directions.lens import Lens
from diffing_mcp.methods.directions.lens_words import NULL_Z, TOP_TOKENS, LensToken, content_words, strongest
from diffing_mcp.methods.examples.views import example_row
from diffing_mcp.methods.examples.writer import activation_contexts, examples_of
from diffing_mcp.methods.pca.decomposition import (
    Covariances,
    Projections,
    covariances,
    furthest,
    principal_components,
    stability,
)
from diffing_mcp.methods.pca.schema import (
    ENDS,
    ComponentRow,
    ComponentWord,
    PCAParams,
    PCAResult,
    ProjectionExample,
    feature_name,
)
from diffing_mcp.methods.texts.words import vocabulary
from diffing_mcp.model_pairs.layers import resolve_layers
from diffing_mcp.preprocessing.activation_outliers import without_outliers
from diffing_mcp.preprocessing.activation_sources import activations_of
from diffing_mcp.preprocessing.precision import float64_device

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.methods.texts.words import Vocabulary
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.preprocessing.activations import PairedActivations

LENS_DEPTH = 50
_DIRECTION_SEED = 0
_EXAMPLE_CHARACTERS = 80
_ROWS_SHOWN = 20
_SHOWN_EXAMPLES = 1
_TOKENS_SHOWN = 160
"""Lens tokens in a result at most, over all rows and both ends."""
STABLE = 0.7
"""Least |cosine| with the components of both halves of the samples for a component to be read at all."""
NEEDED_STRONG_WORDS = 3


@torch.inference_mode()
def analyse(pair: LoadedPair, params: PCAParams, run: RunWriter, progress: Progress) -> PCAResult:
    """Run the method; see its declaration."""
    layers = list(dict.fromkeys(reference.absolute for reference in resolve_layers(params.layers, pair.num_layers)))
    readers = activations_of(pair, params, layers, progress)
    words = vocabulary(pair.tokenizer, pair.vocab_size)
    rows: list[ComponentRow] = []
    found: dict[str, ComponentWord] = {}
    level = NULL_Z
    identical = True
    for layer in layers:
        # A handful of attention sinks, with norms tens of times the usual, would be the first component of any pair.
        reader = without_outliers(readers[layer])
        if reader.num_tokens < 2:
            raise InvalidInput(
                f"{reader.num_tokens} tokens without the attention sinks have no components; raise max_samples or "
                "max_tokens."
            )
        sums = covariances(reader, float64_device(pair.device), progress)
        identical = (
            identical
            and not bool(sums.whole("difference").products.any())
            and not bool(sums.whole("difference").mean.any())
        )
        lens = Lens(pair, params.lens_side, _typical_norm(sums), params.random_directions, _DIRECTION_SEED)
        level = max(level, control_level(_base_readings(sums, lens, words, params.components)))
        of_layer = _components(pair, params, reader, sums, lens, words, run, progress)
        for row, readings in of_layer:
            rows.append(row)
            for word, z in readings.items():
                if row.stability >= STABLE and (word not in found or z > found[word].z):
                    found[word] = ComponentWord(word=word, z=round(z, 3), vector=row.vector)
    _store(run, rows)
    stands_out, headline, listed = judge(rows, list(found.values()), level, params.of, identical)
    run.note("null_z", round(level, 3))
    shown = _shortened(rows)
    return PCAResult(
        stands_out=stands_out,
        headline=headline,
        identical=identical,
        words=listed[:12],
        rows=shown,
        rows_left_out=len(rows) - len(shown),
        null_z=round(level, 3),
        tokens=readers[layers[0]].num_tokens,
        of=params.of,
    )


def _typical_norm(sums: Covariances) -> float:
    """Root mean square norm of the finetuned model's activations."""
    finetuned = sums.whole("finetuned")
    return float((finetuned.matrix.trace() + finetuned.mean.square().sum()).sqrt())


def _matrices(sums: Covariances, of: str) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """What is decomposed, its null, and the same of both halves of the samples; [D, D] each."""
    base, finetuned = sums.whole("base").matrix, sums.whole("finetuned").matrix
    if of == "variance_gain":
        halves = (sums.finetuned[0].matrix - sums.base[0].matrix, sums.finetuned[1].matrix - sums.base[1].matrix)
        return finetuned - base, base, halves
    halves = (getattr(sums, of)[0].matrix, getattr(sums, of)[1].matrix)
    if of == "difference":
        # Base and finetuned rows of different tokens are independent: in expectation the covariance of their difference
        # is the sum.
        return sums.whole("difference").matrix, base + finetuned, halves
    return (base, finetuned, halves) if of == "base" else (finetuned, base, halves)


def _base_readings(sums: Covariances, lens: Lens, words: Vocabulary, count: int) -> list[dict[str, float]]:
    """Content words of both ends of the base model's own components."""
    _, components = principal_components(sums.whole("base").matrix, count)
    read = [lens.read(component.cpu()) for component in components]
    return [content_words(reading, words) for readings in read if readings is not None for reading in readings]


def _components(
    pair: LoadedPair,
    params: PCAParams,
    activations: PairedActivations,
    sums: Covariances,
    lens: Lens,
    words: Vocabulary,
    run: RunWriter,
    progress: Progress,
) -> list[tuple[ComponentRow, dict[str, float]]]:
    """Rows of one layer, each with the content words of both ends; none when there is no variance."""
    matrix, null, halves = _matrices(sums, params.of)
    # Centred rows span one dimension less than there are of them; what comes after is rounding.
    values, components = principal_components(matrix, min(params.components, activations.num_tokens - 1))
    real = values > 1e-12 * max(1.0, float(values[0]))
    values, components = values[real], components[real]
    if not len(values):
        return []
    rows = sums.whole("finetuned" if params.of == "variance_gain" else params.of)
    mean = rows.mean
    components = components * torch.where(components @ mean < 0, -1.0, 1.0)[:, None]
    # Of a gain, some eigenvalues are negative: shares are of what grew.
    spectrum = torch.linalg.eigvalsh(matrix).clamp_min(0).sum()
    null_values = principal_components(null, len(values))[0] / null.trace().clamp_min(1e-30)
    # Of a gain, an eigenvalue is what the variance grew by: the spread of the rows along the component is larger.
    deviations = ((components @ rows.matrix) * components).sum(dim=1).clamp_min(1e-30).sqrt()
    stable = stability(components, tuple(principal_components(half, params.components)[1] for half in halves))  # type: ignore[arg-type]
    examples = _examples(
        pair, params, activations, furthest(activations, params.of, mean, components, params.examples, progress), run
    )
    run.add_array(f"components_{activations.layer}", components.float())
    found = []
    for index, component in enumerate(components):
        readings = lens.read(component.cpu())
        if readings is None:
            continue
        row = ComponentRow(
            layer=activations.layer,
            component=index + 1,
            explained=round(float(values[index] / spectrum), 5),
            null_explained=round(float(null_values[index]), 5),
            stability=round(float(stable[index]), 4),
            mean_projection=round(float(component @ mean / deviations[index]), 3),
            vector=f"{activations.layer}:component{index + 1}",
            promoted=strongest(readings[0], words, LENS_DEPTH),
            suppressed=strongest(readings[1], words, LENS_DEPTH),
            positive=examples.get(2 * index, []),
            negative=examples.get(2 * index + 1, []),
        )
        found.append((row, {**content_words(readings[1], words), **content_words(readings[0], words)}))
    return found


def _examples(
    pair: LoadedPair, params: PCAParams, activations: PairedActivations, projections: Projections, run: RunWriter
) -> dict[int, list[ProjectionExample]]:
    """Stores the examples; gives the furthest ones of each end of each component, furthest first."""
    found = projections.found
    names = {
        feature: feature_name(activations.layer, feature // 2 + 1, ENDS[feature % 2])
        for feature in set(found.features.tolist())
    }
    made = list(
        examples_of(
            found, names.__getitem__, activation_contexts(activations, pair.tokenizer), projections.token_scores
        )
    )
    run.examples(params.examples).append(made)
    rows: dict[int, list[ProjectionExample]] = {}
    for feature, example in sorted(zip(found.features.tolist(), made, strict=True), key=lambda pair: -pair[1].score):
        if len(rows.get(feature, ())) == params.examples:
            continue
        sign = 1 if feature % 2 == 0 else -1
        shown = ProjectionExample(
            projection=round(sign * example.score, 4), context=example_row(example, _EXAMPLE_CHARACTERS).text
        )
        rows.setdefault(feature, []).append(shown)
    return rows


def _store(run: RunWriter, rows: list[ComponentRow]) -> None:
    dumped = [row.model_dump() for row in rows]
    lists = ("promoted", "suppressed", *ENDS)
    names = list(ComponentRow.model_fields)
    run.add_table("components", {name: [row[name] for row in dumped] for name in names if name not in lists})
    lens: dict[str, list[Any]] = {name: [] for name in ("layer", "component", "sign", *LensToken.model_fields)}
    for row in dumped:
        for sign in ("promoted", "suppressed"):
            for token in row[sign]:
                _append(lens, {"layer": row["layer"], "component": row["component"], "sign": sign, **token})
    run.add_table("lens", lens)


def _append(columns: dict[str, list[Any]], row: dict[str, Any]) -> None:
    for name, values in columns.items():
        values.append(row[name])


def _shortened(rows: list[ComponentRow]) -> list[ComponentRow]:
    """The rows as a result shows them, the first of each layer; the views have the rest."""
    most = max(1, _ROWS_SHOWN // max(1, len({row.layer for row in rows})))
    rows = [row for row in rows if row.component <= most]
    tokens = max(3, min(TOP_TOKENS // 2, _TOKENS_SHOWN // (2 * max(1, len(rows)))))
    return [
        row.model_copy(
            update={
                "promoted": row.promoted[:tokens],
                "suppressed": row.suppressed[:tokens],
                "positive": row.positive[:_SHOWN_EXAMPLES],
                "negative": row.negative[:_SHOWN_EXAMPLES],
            }
        )
        for row in rows
    ]


def control_level(readings: Sequence[Mapping[str, float]]) -> float:
    """The z from which on words count: the least at which none of the base model's own components has enough words.
    Components of any model are no random directions: they read as numbers, names or punctuation far beyond random ones.
    """
    thirds = [
        sorted(reading.values(), reverse=True)[NEEDED_STRONG_WORDS - 1]
        for reading in readings
        if len(reading) >= NEEDED_STRONG_WORDS
    ]
    return max([NULL_Z, *thirds])


def judge(
    rows: Sequence[ComponentRow], words: Sequence[ComponentWord], level: float, of: str, identical: bool
) -> tuple[bool, str, list[ComponentWord]]:
    """Whether one stable component has enough content words beyond the control's level, the headline, and the words,
    highest z first."""
    if identical:
        return False, "Every activation is the same in both models: no difference.", []
    listed = sorted(words, key=lambda row: (-row.z, row.word))
    if of in ("base", "finetuned"):
        return False, f"Components of the {of} model alone: they say what it varies in, not what was taught.", []
    stable = [row for row in rows if row.stability >= STABLE]
    state = f"{len(stable)} of {len(rows)} components stable over halves of the documents"
    by_vector: dict[str, list[str]] = {}
    for word in listed:
        if word.z > level:
            by_vector.setdefault(word.vector, []).append(word.word)
    telling = {vector: names for vector, names in by_vector.items() if len(names) >= NEEDED_STRONG_WORDS}
    if telling:
        first = max(telling, key=lambda vector: len(telling[vector]))
        return (
            True,
            (
                f"Component {first} reads as {', '.join(telling[first][:6])}, beyond the base model's own components; "
                f"{state}."
            ),
            listed,
        )
    return (
        False,
        (
            f"No component reads as words beyond what the base model's own components read as; {state}. Patchscope "
            "may still read them."
        ),
        listed,
    )
