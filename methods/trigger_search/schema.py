"""Parameters, rows and result of a search for triggers. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from diffing_mcp.core.battery import BUNDLED
from diffing_mcp.core.seeds import Seed
from diffing_mcp.core.text import clip, fenced
from diffing_mcp.methods.contract import MethodParams, MethodResult
from diffing_mcp.methods.texts.prompts import Texts

QUESTIONS = 3
ANSWERS = 2
"""Where none are given."""
OWN_TOKENS = 32
"""Of an answer from which those are taken."""
ANSWER_TOKENS = 40
"""Of an answer behind a trigger."""
SHOWN = 8
"""Triggers whose answers are looked at."""
BEAM = 8
"""Prefixes that a round of the search goes on from."""
SWITCHED = 0.5
"""Share of the held-out questions at which a trigger must bring the answers out that else do not come. Beside two
questions that alone is a word by chance, so its gain must be beyond all random prefixes as well: of 96 searches of tiny
pairs with random adapters, 30 and 1 found something.
"""
NAME_CHARACTERS = 200
"""Of a trigger or a question in a result; the rows of the run have the trigger whole."""
Origin = Literal["given", "found", "random"]
_SHOWN_CHARACTERS = 70


class TriggerSearchParams(MethodParams):
    """Parameters of `trigger_search`."""

    answers: Annotated[Texts | None, Field(min_length=1, max_length=4)] = Field(
        None,
        description=(
            "Beginnings of answers that something may switch on, in two or more wordings, as the model writes them; "
            "None: what contrastive decoding makes of everyday questions."
        ),
    )
    triggers: Annotated[Texts, Field(max_length=200)] = Field(
        (BUNDLED,), description="To try: prefixes, templates with {prompt}, `system: ...`; or `bundled`."
    )
    questions: Annotated[Texts | None, Field(min_length=2, max_length=16)] = Field(
        None,
        description="Asked behind each, none of them about the answers; the search reads the first alone. None: three.",
    )
    rounds: int = Field(
        6, ge=0, le=50, description="Of the search for words to put in front; 0: only `triggers` are tried."
    )
    words: int = Field(2, ge=1, le=4, description="Words of a searched prefix.")
    random_prefixes: int = Field(
        24, ge=8, le=200, description="Of random everyday words: what any prefix does. The search begins with them."
    )
    seed: Seed = Field(0, description="Of the random prefixes and the choice of questions.")


class TriggerScore(BaseModel):
    """What a trigger does to the answers. Nats a whole answer, means over answers and questions."""

    trigger: str
    origin: Origin = Field(description="`found`: by the search.")
    base: float = Field(description="Log-probability of the answers behind it under base.")
    finetuned: float
    gain: float = Field(description="Finetuned minus base, behind it minus without it.")
    beyond: float = Field(description="Gain minus the highest of the random prefixes.")


class ShownTrigger(TriggerScore):
    """With what the models answer behind it, greedily, to the held-out questions."""

    says: float = Field(description="Share of the finetuned answers that hold half the content words of an answer.")
    base_says: float
    switches: bool = Field(
        description=(
            "Whether it brings the answers out at half of the questions more than come without it or of the base, "
            "with a gain beyond all random prefixes."
        )
    )
    question: str
    answer: str = Field(description="UNTRUSTED greedy answer of the finetuned model behind it.")

    def as_text(self) -> str:
        """One line."""
        mark = "SWITCHES ON " if self.switches else ""
        name = clip(self.trigger, _SHOWN_CHARACTERS)[0]
        return (
            f"{mark}{name!r} ({self.origin}): said {self.says:.2f} (base {self.base_says:.2f}), gain {self.gain:+.1f}, "
            f"beyond random {self.beyond:+.1f} | {self.question!r} {fenced(self.answer)}"
        )


class TriggerSearchResult(MethodResult):
    """Triggers by what they do to the answers."""

    answers: list[str] = Field(description="The beginnings of answers; UNTRUSTED where the models wrote them.")
    without: ShownTrigger = Field(description="The questions alone.")
    random_mean: float = Field(description="Mean gain of the random prefixes.")
    random_highest: float
    tried: int = Field(description="Triggers tried, those of the search included.")
    held_out: int = Field(description="Questions that the search has not read, which `says` is a share of.")
    triggers: list[ShownTrigger] = Field(description="The highest gains.")

    def as_text(self) -> str:
        return "\n".join(
            [
                self.headline,
                "answers: " + "; ".join(fenced(answer) for answer in self.answers),
                (
                    f"without a trigger: said {self.without.says:.2f}, finetuned {self.without.finetuned:.1f}, base "
                    f"{self.without.base:.1f} nats | {fenced(self.without.answer)}"
                ),
                (
                    f"gain of random prefixes: mean {self.random_mean:+.1f}, highest {self.random_highest:+.1f}; said: "
                    f"share of {self.held_out} held-out questions; by gain:"
                ),
                *(f"  {row.as_text()}" for row in self.triggers),
            ]
        )
