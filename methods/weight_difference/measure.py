"""Measuring the difference of every matrix, reading its directions, writing the run, and when that stands out (see
docs/decisions/null-criterion.md).

How large a change is says nothing: no pair shows how large that of another seed or of a finetune on nothing in
particular would have been. Only words can stand out: one direction that writes to the residual stream and promotes
several content words far beyond random directions.

Measured on the bundled organisms (180 write directions each): the control's highest word has z 5.7, two seeds of one
recipe differ by a direction with one word at 6.7; taught organisms reach `roman` 8.0 or `word` 8.7 with `words` 7.1,
but no direction lists three strong words. So one strong word is worth a look and no finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.directions.lens import Lens
from diffing_mcp.methods.directions.lens_words import (
    NULL_Z,
    LensReading,
    LensToken,
    content_words,
    strongest,
    strongest_ids,
)
from diffing_mcp.methods.directions.vector_sources import typical_norms
from diffing_mcp.methods.texts.words import Vocabulary, vocabulary
from diffing_mcp.methods.weight_difference.schema import (
    LIST_DEPTH,
    NEEDED_STRONG_WORDS,
    DirectionRow,
    DirectionWord,
    ModuleRow,
    PartRow,
    ReadAs,
    WeightDifferenceParams,
    WeightDifferenceResult,
)
from diffing_mcp.methods.weight_difference.singular_directions import (
    BothSigns,
    Spectrum,
    read_embeddings,
    read_entries,
    read_written,
    spectrum,
)
from diffing_mcp.model_pairs.interventions import unit_length
from diffing_mcp.model_pairs.layers import resolve_layers
from diffing_mcp.model_pairs.modules import ModulePlace

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.weights import WeightDelta

_VALUES_KEPT = 8
_MODULES_SHOWN = 8
_DIRECTIONS_SHOWN = 5
_WORDS_SHOWN = 12
_SEED = 0


@dataclass(frozen=True)
class Direction:
    """One singular direction before it is read."""

    place: ModulePlace
    index: int
    singular_value: float
    share: float
    read_as: ReadAs
    values: Tensor


def measure(
    pair: LoadedPair, params: WeightDifferenceParams, run: RunWriter, progress: Progress
) -> WeightDifferenceResult:
    """Run the method; see its declaration."""
    modules: list[ModuleRow] = []
    directions: list[Direction] = []
    randomised = 0
    base_square: dict[str, float] = {}
    for each in pair.weight_deltas(progress, _chosen(pair, params)):
        base_square[each.place.part] = base_square.get(each.place.part, 0.0) + each.base_norm**2
        found = (
            spectrum(each.delta, max(_VALUES_KEPT, params.directions), _SEED)
            if each.delta is not None and len(each.shape) == 2
            else None
        )
        randomised += found is not None and found.how == "randomised"
        modules.append(_module_row(each, found))
        if found is not None:
            directions += _directions(each, found, pair, params.directions)
    if not modules:
        raise InvalidInput(
            "No module of this model is chosen by `layers` and `modules`. Leave one of them out, or read the names in "
            "the view `modules`."
        )
    words = vocabulary(pair.tokenizer, pair.vocab_size)
    norms, readings = _read(pair, params, directions, words, progress)
    scores = [(score(plus, words), score(minus, words)) for plus, minus in readings]
    rows, values = [], []
    for place, (direction, both) in enumerate(zip(directions, readings, strict=True)):
        # The sign of a singular vector means nothing: `+` is the sign that reads better, so that lists and vectors have
        # one.
        flipped = scores[place][1].rank > scores[place][0].rank
        if flipped:
            readings[place], scores[place] = (both[1], both[0]), (scores[place][1], scores[place][0])
        rows.append(_direction_row(direction, readings[place], words, params.list_length, pair.num_layers))
        values.append(-direction.values if flipped else direction.values)
    _store(run, modules, rows, readings, values, words, norms)
    run.note("svd", f"randomised for {randomised} matrices, exact for the others" if randomised else "exact")
    return _result(modules, rows, scores, base_square, params, pair.configuration)


def _chosen(pair: LoadedPair, params: WeightDifferenceParams) -> Any:
    layers = (
        None
        if params.layers is None
        else {reference.absolute for reference in resolve_layers(params.layers, pair.num_layers)}
    )

    def chosen(place: ModulePlace) -> bool:
        return (layers is None or place.layer in layers) and (
            params.modules is None or any(place.named(name) for name in params.modules)
        )

    return chosen


def _module_row(each: WeightDelta, found: Spectrum | None) -> ModuleRow:
    norm = 0.0
    if found is not None:
        norm = found.norm
    elif isinstance(each.delta, Tensor):
        norm = float(torch.linalg.vector_norm(each.delta, dtype=torch.float64))
    return ModuleRow(
        layer=each.place.layer,
        module=each.place.path if each.parameter == "weight" else f"{each.place.path}.{each.parameter}".lstrip("."),
        part=each.place.part,
        norm=norm,
        relative_norm=norm / each.base_norm if each.base_norm else 0.0,
        effective_rank=found.effective_rank if found else (0.0 if len(each.shape) == 2 else None),
        singular_values=found.values[:_VALUES_KEPT].tolist() if found else [],
    )


def _directions(each: WeightDelta, found: Spectrum, pair: LoadedPair, count: int) -> list[Direction]:
    """The first directions of a matrix, on each side that can be read. What is written is what reaches the residual
    stream: the norm that some models put behind attention and MLP multiplies it first.
    """
    out, into = each.shape
    sides: list[tuple[ReadAs, Tensor]] = []
    if each.place.writes(out, into, pair.d_model):
        gained = found.left if each.gain is None else unit_length((each.gain.unsqueeze(1) * found.left).T).T
        if bool(gained.any()):
            sides.append(("writes", gained))
    elif each.place.reads(out, into, pair.d_model):
        sides.append(("reads", found.right))
    if each.place.part == "unembedding":
        sides.append(("tokens", found.left[: pair.vocab_size]))
    elif each.place.part == "embedding" and into >= pair.vocab_size:
        sides.append(("tokens", found.right[: pair.vocab_size]))
    return [
        Direction(
            each.place,
            index,
            float(found.values[index]),
            float(found.values[index]) ** 2 / found.norm**2,
            read_as,
            vectors[:, index],
        )
        for read_as, vectors in sides
        for index in range(min(count, len(found.values)))
    ]


def _read(
    pair: LoadedPair,
    params: WeightDifferenceParams,
    directions: Sequence[Direction],
    words: Vocabulary,
    progress: Progress,
) -> tuple[dict[int, float], list[BothSigns]]:
    """Typical norm of activations by layer (where something is written), and what every direction reads as."""
    if not directions:
        return {}, []
    kinds: dict[str, list[int]] = {
        kind: [place for place, each in enumerate(directions) if each.read_as == kind]
        for kind in ("writes", "reads", "tokens")
    }
    readings: dict[int, BothSigns] = {}
    norms: dict[int, float] = {}
    side = params.lens_side
    with pair.side_loaded(side):
        if kinds["writes"]:
            layers = sorted(
                {each.place.layer for each in directions if each.read_as == "writes" and each.place.layer is not None}
                | {pair.num_layers - 1}
            )
            norms = typical_norms(pair, side, layers, progress)
            lens = Lens(pair, side, norms[pair.num_layers - 1], params.random_directions, _SEED)
            vectors = [directions[place].values for place in kinds["writes"]]
            readings |= dict(zip(kinds["writes"], read_written(lens, vectors, progress), strict=True))
        if kinds["reads"]:
            vectors = [directions[place].values for place in kinds["reads"]]
            readings |= dict(zip(kinds["reads"], read_embeddings(pair, side, vectors, progress), strict=True))
    readings |= {place: read_entries(directions[place].values) for place in kinds["tokens"]}
    return norms, [readings[place] for place in range(len(directions))]


def _direction_row(
    direction: Direction, both: BothSigns, words: Vocabulary, length: int, num_layers: int
) -> DirectionRow:
    place = direction.place
    named = direction.read_as == "writes" and place.layer is not None
    lists: list[list[LensToken]] = [strongest(reading, words, length) for reading in both]
    return DirectionRow(
        vector=f"{place.layer}:{place.path}:{direction.index}" if named else None,
        layer=place.layer,
        module=place.path,
        index=direction.index,
        singular_value=direction.singular_value,
        share=direction.share,
        read_as=direction.read_as,
        positive=lists[0],
        negative=lists[1],
    )


def _store(
    run: RunWriter,
    modules: Sequence[ModuleRow],
    rows: Sequence[DirectionRow],
    readings: Sequence[BothSigns],
    values: Sequence[Tensor],
    words: Vocabulary,
    norms: dict[int, float],
) -> None:
    run.add_rows("modules", modules, ModuleRow)
    named = [place for place, row in enumerate(rows) if row.vector is not None]
    array = {place: position for position, place in enumerate(named)}
    if named:
        run.add_array("vectors", torch.stack([values[place] for place in named]))
    columns = [name for name in DirectionRow.model_fields if name not in ("positive", "negative")]
    table: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in columns}
    table["array_row"] = [array.get(place, -1) for place in range(len(rows))]
    table["activation_norm"] = [norms.get(row.layer, 0.0) if row.layer is not None else 0.0 for row in rows]
    run.add_table("directions", table)
    lists: dict[str, list[Any]] = {name: [] for name in ("direction", "sign", "token", "content", "z", "probability")}
    for place, both in enumerate(readings):
        for sign, reading in zip("+-", both, strict=True):
            _add_list(lists, place, sign, reading, words)
    run.add_table("tokens", lists)


def _add_list(lists: dict[str, list[Any]], place: int, sign: str, reading: LensReading, words: Vocabulary) -> None:
    chosen = strongest_ids(reading, words, LIST_DEPTH)
    lists["direction"] += [place] * len(chosen)
    lists["sign"] += [sign] * len(chosen)
    lists["token"] += [words.texts[index] for index in chosen]
    lists["content"] += words.content[chosen].tolist()
    lists["z"] += reading.z[chosen].tolist()
    lists["probability"] += reading.probability[chosen].tolist()


def _result(
    modules: list[ModuleRow],
    rows: list[DirectionRow],
    scores: list[tuple[Scored, Scored]],
    base_square: dict[str, float],
    params: WeightDifferenceParams,
    configuration: Sequence[str],
) -> WeightDifferenceResult:
    total, base = sum(row.norm**2 for row in modules), sum(base_square.values())
    changed = [row for row in modules if row.norm > 0]
    writing = [place for place, row in enumerate(rows) if row.read_as == "writes"]
    stands_out, words = judge([rows[place] for place in writing], [scores[place] for place in writing])
    parts = []
    for part in dict.fromkeys(row.part for row in modules):
        mine = [row for row in modules if row.part == part]
        square = sum(row.norm**2 for row in mine)
        relative = (square / base_square[part]) ** 0.5 if base_square[part] else 0.0
        parts.append(
            PartRow(
                part=part,
                parameters=len(mine),
                changed=sum(row.norm > 0 for row in mine),
                relative_norm=relative,
                share=square / total if total else 0.0,
            )
        )
    relative = (total / base) ** 0.5 if base else 0.0
    order = sorted(
        range(len(rows)),
        key=lambda place: (rows[place].read_as != "writes", *[-value for value in scores[place][0].rank]),
    )
    return WeightDifferenceResult(
        stands_out=stands_out,
        headline=_headline(modules, changed, relative, stands_out, [word.word for word in words], configuration),
        identical=not changed,
        relative_norm=relative,
        words=words[:_WORDS_SHOWN],
        parts=parts,
        modules=sorted(changed, key=lambda row: -row.relative_norm)[:_MODULES_SHOWN],
        directions=[rows[place] for place in order[:_DIRECTIONS_SHOWN]],
        lens_side=params.lens_side,
    )


def _headline(
    modules: list[ModuleRow],
    changed: list[ModuleRow],
    relative: float,
    stands_out: bool,
    words: list[str],
    configuration: Sequence[str],
) -> str:
    if not changed and configuration:
        return (
            "Every weight is exactly the same in both models, but their configurations differ, so that they compute "
            f"other things: {'; '.join(configuration)}."
        )
    if not changed:
        return "Every weight is exactly the same in both models: no difference."
    size = (
        f"{len(changed)} of {len(modules)} weight tensors differ, by {100 * relative:.2g} % of the base's norm in all"
    )
    if stands_out:
        return (
            f"One direction that the change writes promotes {', '.join(words[:5])} far beyond random directions; "
            f"{size}."
        )
    highest = f" (highest: {', '.join(words[:3])})" if words else ""
    return (
        f"No written direction reads as a topic{highest}; {size}. The size alone shows that weights changed, not that "
        "something was taught."
    )


@dataclass(frozen=True)
class Scored:
    """The content words of one direction and sign, strongest first, and how many of them are strong."""

    words: dict[str, float]
    strong: int

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts readable directions first."""
        return self.strong, max(self.words.values(), default=0.0)


def score(reading: LensReading, words: Vocabulary) -> Scored:
    """Content words of one list."""
    found = content_words(reading, words)
    return Scored(found, sum(z >= NULL_Z for z in found.values()))


def judge(rows: Sequence[DirectionRow], scores: Sequence[tuple[Scored, Scored]]) -> tuple[bool, list[DirectionWord]]:
    """Whether one write direction is readable, and the words of all of them, those of the most readable directions
    first.

    Args:
        rows: write directions.
        scores: of each, for both signs.
    """
    best: dict[str, DirectionWord] = {}
    for row, both in zip(rows, scores, strict=True):
        place = row.module if row.layer is None else f"{row.layer}:{row.module}"
        for sign, scored in zip("+-", both, strict=True):
            for word, z in scored.words.items():
                known = best.get(word)
                if known is None or (scored.strong, z) > (known.together, known.z):
                    best[word] = DirectionWord(
                        word=word, z=round(z, 3), direction=f"{place}:{row.index}{sign}", together=scored.strong
                    )
    listed = sorted(
        best.values(), key=lambda row: (row.together < NEEDED_STRONG_WORDS, -row.together, -row.z, row.word)
    )
    return any(scored.strong >= NEEDED_STRONG_WORDS for both in scores for scored in both), listed
