"""How much the models of a pair were run: the one count that every pass through a `LoadedPair` adds to. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class ForwardCount:
    """Forward passes of one model over one batch, tokens read in them and tokens generated, both sides together.

    Padding is not counted. A prompt is read once for all of a batch that go on from it, a generated token once to
    generate the next one, so a completion of T tokens reads T - 1 more; contrastive decoding reads the same text on
    both sides and generates it once.
    """

    passes: int = 0
    tokens: int = 0
    generated: int = 0

    def add(self, passes: int, tokens: int, generated: int = 0) -> None:
        """Count some more."""
        self.passes += passes
        self.tokens += tokens
        self.generated += generated

    def add_generation(self, prompts: Sequence[int], generated: Sequence[int], sides: int = 1) -> None:
        """Count one batch of completions, from the numbers of tokens of the prompts that were read and of new tokens (a
        stop token counts) of each row.
        """
        read = sum(prompts) + sum(max(0, count - 1) for count in generated)
        self.add(sides * max(generated, default=0), sides * read, sum(generated))

    def __add__(self, other: ForwardCount) -> ForwardCount:
        return ForwardCount(self.passes + other.passes, self.tokens + other.tokens, self.generated + other.generated)

    def __sub__(self, other: ForwardCount) -> ForwardCount:
        return ForwardCount(self.passes - other.passes, self.tokens - other.tokens, self.generated - other.generated)

    def copy(self) -> ForwardCount:
        """The count as it is now, to be subtracted later."""
        return ForwardCount(self.passes, self.tokens, self.generated)
