"""What chosen latents read as: the logit lens of their decoder vectors, and where they fire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffing_mcp.methods.dictionaries.examples import write_examples
from diffing_mcp.methods.dictionaries.preparation import Prepared
from diffing_mcp.methods.dictionaries.rows import SHOWN_TOKENS, Example
from diffing_mcp.methods.directions.lens import Lens
from diffing_mcp.methods.directions.lens_words import NULL_Z, content_words, strongest
from diffing_mcp.methods.texts.words import vocabulary

if TYPE_CHECKING:
    from torch import Tensor

    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair

_DIRECTIONS, _DIRECTION_SEED = 128, 0
_LENS_DEPTH = 20


@dataclass(frozen=True)
class LatentReading:
    """One latent's lens.

    Attributes:
        tokens: the first promoted tokens; words: strong content words (z >= NULL_Z) among them, with their z.
        opposite: the same words for the negative of the direction, which is the null of `words`.
    """

    tokens: list[str]
    words: dict[str, float]
    opposite: dict[str, float]


def read_latents(
    pair: LoadedPair,
    prepared: Prepared,
    latents: Sequence[int],
    directions: Tensor,
    norm: float,
    run: RunWriter,
    progress: Progress,
) -> tuple[dict[int, LatentReading], dict[int, list[Example]]]:
    """Lens and examples of `latents`, the first by rank first; both are stored (table `lens`, the run's examples).

    Args:
        directions: [F, D], decoder vectors to read.
        norm: length at which the lens reads them, in units of the residual stream.
    """
    words = vocabulary(pair.tokenizer, pair.vocab_size)
    lens = Lens(pair, "finetuned", norm, _DIRECTIONS, _DIRECTION_SEED)
    readings: dict[int, LatentReading] = {}
    table: dict[str, list[Any]] = {name: [] for name in ("latent", "sign", "token", "z", "probability")}
    for number, latent in enumerate(latents):
        progress(number, len(latents), "reading latents through the lens")
        both = lens.read(directions[latent].cpu())
        if both is None:
            continue
        for sign, reading in zip(("promoted", "suppressed"), both, strict=True):
            for token in strongest(reading, words, _LENS_DEPTH):
                for name, value in {"latent": latent, "sign": sign, **token.model_dump()}.items():
                    table[name].append(value)
        strong = [{word: z for word, z in content_words(reading, words).items() if z >= NULL_Z} for reading in both]
        readings[latent] = LatentReading([token.token for token in strongest(both[0], words, SHOWN_TOKENS)], *strong)
    run.add_table("lens", table)
    return readings, write_examples(
        prepared.reader, prepared.rows_of, prepared.dictionary, latents, pair.tokenizer, run
    )
