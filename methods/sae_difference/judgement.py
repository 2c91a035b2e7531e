"""When an SAE on differences says that something stands out.

Two models that differ at random still have differences, and an SAE finds latents in them. Null: the opposite ends of
the same directions. A direction that means nothing is as likely as its negative, so its lens shows strong content words
at either end with equal chance, while what was taught is added. More latents with strong words at the end that is
added, by an exact sign test over the latents that are read (those with words at one end alone count), is what stands
out.
"""

from __future__ import annotations

from collections.abc import Sequence

from scipy import stats

from diffing_mcp.methods.dictionaries.reading import LatentReading
from diffing_mcp.methods.dictionaries.rows import LatentWord

CHANCE = 0.05
NEEDED_WORDS = 3
"""Different strong words."""


def judge(readings: Sequence[LatentReading], words: Sequence[LatentWord]) -> tuple[bool, str]:
    """Whether it stands out, and the outcome in one sentence."""
    added = sum(bool(each.words) and not each.opposite for each in readings)
    taken = sum(bool(each.opposite) and not each.words for each in readings)
    chance = float(stats.binomtest(added, added + taken, 0.5, alternative="greater").pvalue) if added + taken else 1.0
    counts = (
        f"of {len(readings)} latents read, {added} add strong words alone and {taken} take strong words away alone "
        f"(chance {chance:.2g})"
    )
    if chance <= CHANCE and len(words) >= NEEDED_WORDS:
        return True, f"Latents of the difference promote {', '.join(row.word for row in words[:6])}: {counts}."
    return (
        False,
        (
            f"No words stand out of the latents of the difference: {counts}. Look at what the first latents fire on "
            "all the same."
        ),
    )
