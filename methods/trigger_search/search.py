"""A search for words that make the finetuned model give the answers: a beam of prefixes, whose words
are exchanged for those that the gradient points to (GCG, Zou et al. 2023; trigger inversion, Liu et al. 2022), each
scored as a whole text. Imports torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from diffing_mcp.core import battery
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, stage
from diffing_mcp.methods.texts.words import is_content_word, normalise, vocabulary, words_of
from diffing_mcp.methods.trigger_search.probe import Probe, as_trigger
from diffing_mcp.methods.trigger_search.schema import BEAM
from diffing_mcp.model_pairs.pair import LoadedPair

SAME_WORD = 2
"""Prefixes of the beam that may have the same word in the same place."""
_BY_OWN_GRADIENT = 4
_BY_SHARED_GRADIENT = 16
_CROSSED = 3

Prefix = tuple[int, ...]
"""Rows of `WordTable`, one a word."""


@dataclass(frozen=True)
class WordTable:
    """Words that are one token each.

    Attributes:
        words: their texts, lower-cased.
        tokens: [W] int64 token ids.
        directions: [W, d_model] float32, their input embeddings in the base, centred and of length 1.
    """

    words: list[str]
    tokens: np.ndarray
    directions: torch.Tensor

    @classmethod
    def of(cls, pair: LoadedPair) -> WordTable:
        """Every content word that the tokenizer writes in one token, the first of its variants.

        Raises:
            InvalidInput: there is none.
        """
        known = vocabulary(pair.tokenizer, pair.vocab_size)
        content = np.flatnonzero(known.content)
        if not content.size:
            raise InvalidInput(
                "This tokenizer writes no word behind a space as one token, so there are no words to search among and "
                "no random prefixes to compare with. Try triggers with test_hypothesis or sweep_behaviours instead."
            )
        _, first = np.unique(known.word_index[content], return_index=True)
        tokens = content[np.sort(first)]
        rows = pair.token_rows("base", tokens.tolist(), "input")
        directions = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
        return cls([normalise(known.texts[token]) for token in tokens], tokens, directions)

    def text(self, prefix: Prefix) -> str:
        """As it stands before a question."""
        return " ".join(self.words[word] for word in prefix)

    def random_prefixes(self, count: int, words: int, seed: int) -> list[Prefix]:
        """Prefixes of words of everyday questions; of any words, where the tokenizer knows hardly one of those."""
        everyday = {
            word
            for prompts in battery.subjects().values()
            for prompt in prompts
            for word in words_of(prompt)
            if is_content_word(word)
        }
        known = [row for row, word in enumerate(self.words) if word in everyday]
        drawn = random.Random(seed)
        pool = known if len(known) >= 4 * words else list(range(len(self.words)))
        return [tuple(drawn.choices(pool, k=words)) for _ in range(count)]


@dataclass
class Search:
    """Prefixes tried so far and their scores: log-probability of the answers under the finetuned model, nats. What the
    base makes of them is looked at once, of those that are found: a score against it is raised by lowering the base's.
    """

    probe: Probe
    table: WordTable
    seed: int
    scores: dict[Prefix, float] = field(default_factory=dict)

    def run(self, start: Sequence[Prefix], rounds: int, progress: Progress) -> list[Prefix]:
        """The beam after so many rounds, the best first; fewer rounds where one tries nothing new."""
        drawn = random.Random(self.seed)
        self._try(start, stage(progress, 0, 1, rounds + 1, "first prefixes"))
        for number in range(rounds):
            shown = stage(progress, number + 1, number + 2, rounds + 1, f"round {number + 1}")
            if not self._try(self._next(drawn), shown):
                break
        return self.beam()

    def beam(self) -> list[Prefix]:
        """The best prefixes, of which not all have the same word."""
        chosen: list[Prefix] = []
        used: dict[tuple[int, int], int] = {}
        for prefix in sorted(self.scores, key=lambda each: -self.scores[each]):
            if all(used.get(slot, 0) < SAME_WORD for slot in enumerate(prefix)):
                chosen.append(prefix)
                for slot in enumerate(prefix):
                    used[slot] = used.get(slot, 0) + 1
            if len(chosen) == BEAM:
                break
        return chosen

    def _try(self, prefixes: Iterable[Prefix], progress: Progress) -> int:
        """Scores those that are new; how many they were."""
        new = [each for each in dict.fromkeys(prefixes) if each not in self.scores]
        if new:
            texts = [as_trigger(self.table.text(each)) for each in new]
            found = self.probe.log_probs("finetuned", texts, self.probe.questions[:1], progress)
            self.scores.update(zip(new, found.tolist(), strict=True))
        return len(new)

    def _next(self, drawn: random.Random) -> list[Prefix]:
        """The beam with each word exchanged for those that its own gradient points to, and that the mean gradient of
        the beam does; the best prefixes crossed, and turned round.
        """
        beam = self.beam()
        gradients = self.probe.gradients([self.table.tokens[list(prefix)].tolist() for prefix in beam])
        shared = torch.nn.functional.normalize(gradients, dim=-1).mean(0)
        found: list[Prefix] = []
        for place in range(gradients.shape[1]):
            for prefix, gradient in zip(beam, gradients[:, place], strict=True):
                found += [_exchanged(prefix, place, word) for word in self._towards(gradient, _BY_OWN_GRADIENT)]
            for word in self._towards(shared[place], _BY_SHARED_GRADIENT):
                found.append(_exchanged(drawn.choice(beam[: BEAM // 2]), place, word))
        best = beam[:_CROSSED]
        found += [(*left[:place], *right[place:]) for left in best for right in best for place in range(1, len(left))]
        return [*found, *(prefix[::-1] for prefix in best)]

    def _towards(self, gradient: torch.Tensor, count: int) -> list[int]:
        along = self.table.directions @ gradient
        return [int(word) for word in along.topk(min(count, len(along))).indices]


def _exchanged(prefix: Prefix, place: int, word: int) -> Prefix:
    return (*prefix[:place], word, *prefix[place + 1 :])
