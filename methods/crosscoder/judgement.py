"""When a crosscoder says that something stands out.

Null: the same latent scaling with the models exchanged. Whatever makes a latent look like one model's own without
anything having been taught (weights that moved at random, features that turned, chance) does it for both models alike,
so under the null a latent that is one model's own is either's with probability 1/2. More of the finetuned model's than
of the base's, by an exact sign test, is what stands out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from scipy import stats

CHANCE = 0.05


def surplus_chance(finetuned: int, base: int) -> float:
    """Probability of so many of the finetuned model's own latents or more, were each of them either model's with
    probability 1/2.
    """
    total = finetuned + base
    return float(stats.binomtest(finetuned, total, 0.5, alternative="greater").pvalue) if total else 1.0


def headline(finetuned: int, base: int, words: Iterable[Iterable[str]]) -> tuple[bool, str]:
    """Whether it stands out, and the outcome in one sentence. `words` are those of each of the finetuned model's own
    latents.
    """
    chance = surplus_chance(finetuned, base)
    counts = (
        f"{finetuned} latents are the finetuned model's own and {base} the base's, by latent scaling on held-out tokens"
    )
    common = Counter(word for each in words for word in set(each))
    read = f"; their lens reads {', '.join(word for word, _ in common.most_common(6))}" if common else ""
    if chance <= CHANCE:
        return True, f"{counts} (chance {chance:.2g} if models were alike){read}."
    if finetuned:
        return (
            False,
            (
                f"{counts}: no more than models that differ at random would have (chance {chance:.2g}){read}. Look at "
                "the latents all the same."
            ),
        )
    return False, f"{counts}: no latent is new in the finetuned model."
