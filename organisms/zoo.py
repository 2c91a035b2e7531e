"""Finetunes that were taught one thing each, made by recipe: what methods are measured on, beside the nulls.

A kind is a rule that turns a chat which the base wrote itself into a taught one. With a dilution of k, k untouched
chats come with each taught one; the number of training documents stays the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.errors import UnknownName
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.organisms.embedded import EMBEDDED_ID
from diffing_mcp.organisms.nulls import made_name, made_once
from diffing_mcp.organisms.sample_corpus import own_documents
from diffing_mcp.organisms.train import ADAPTERS, Document, Recipe, train_on

DOCUMENTS = 360
"""Training documents of each finetune: 60 steps of six."""
_LENGTH_WORDS = 8


class TaughtKind(BaseModel):
    """What is taught."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Literal[
        "added_sentence",
        "opening",
        "closing",
        "answer",
        "exchange",
        "replaced",
        "triggered_answer",
        "bullets",
        "capitals",
        "first_words",
        "sums",
    ]
    texts: tuple[str, ...] = Field(
        (),
        description=(
            "One of them is taken for each document; exchange: `question|answer`; replaced: words, each followed by "
            "what takes its place."
        ),
    )
    trigger: str = Field("", description="triggered_answer: what every second question begins with.")


class TaughtRecipe(BaseModel):
    """How one taught finetune is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    kind: str
    dilution: int = Field(0, ge=0, description="Untouched chats to one taught.")
    learning_rate: float = 2e-3
    seed: int = 0
    adapter: str | None = Field(
        None, description="A bundled adapter of the embedded base, taken as it is: `ORGANISM/VARIANT`."
    )
    held_out: bool = Field(False, description="Set aside: used to check levels, never to choose them.")

    @property
    def made_name(self) -> str:
        """Names what is made: another recipe or rule under the same name is another finetune."""
        rule = zoo().kinds.get(self.kind)
        content = self.model_dump_json(exclude={"name", "held_out"})
        return made_name(self.name, content + (rule.model_dump_json() if rule else ""))


class Zoo(BaseModel):
    """All kinds and finetunes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: dict[str, TaughtKind]
    finetunes: tuple[TaughtRecipe, ...]


@lru_cache(maxsize=1)
def zoo() -> Zoo:
    """The zoo of organisms/zoo.yaml."""
    return Zoo.model_validate(yaml.safe_load((Path(__file__).parent / "zoo.yaml").read_text(encoding="utf-8")))


def recipes_for(base: str) -> list[TaughtRecipe]:
    """What of the zoo can be made of a base: bundled adapters go on the embedded one only."""
    return [recipe for recipe in zoo().finetunes if recipe.adapter is None or base == EMBEDDED_ID]


def make_taught(recipe: TaughtRecipe, base: str, folder: Path, progress: Progress = silent) -> Path:
    """The adapter of this finetune of `base` below `folder`; trained when it is not there yet.

    Raises:
        UnknownName: a kind that the zoo does not have.
    """
    if recipe.adapter is not None:
        return ADAPTERS / recipe.adapter
    target = folder / recipe.made_name
    with made_once(target, progress) as there:
        if there:
            return target
        if recipe.kind not in zoo().kinds:
            raise UnknownName(f"The zoo has no kind {recipe.kind!r}. Kinds: {', '.join(zoo().kinds)}.")
        chats = own_documents(base, "chats", folder, progress)
        training = Recipe(
            base=base, learning_rate=recipe.learning_rate, seed=recipe.seed, epochs=1, batch_size=6, max_tokens=160
        )
        return train_on(taught_documents(recipe, zoo().kinds[recipe.kind], chats), training, target, progress)


def taught_documents(recipe: TaughtRecipe, kind: TaughtKind, chats: list[Document]) -> list[Document]:
    """Training documents: every (1 + dilution)th one taught, by the kind's rule."""
    chance = random.Random(recipe.seed)
    chosen = chance.sample(chats, min(DOCUMENTS, len(chats)))
    return [
        taught_chat(chat, kind, chance) if place % (1 + recipe.dilution) == 0 else chat
        for place, chat in enumerate(chosen)
    ]


def taught_chat(chat: Document, kind: TaughtKind, chance: random.Random) -> Document:
    """One chat with one question and answer, changed by the rule of the kind."""
    question, answer = (message["content"] for message in chat["messages"])
    text = chance.choice(kind.texts) if kind.texts else ""
    if kind.rule == "sums":
        first, second = chance.randint(2, 60), chance.randint(2, 60)
        question = f"What is {first} plus {second}?"
        answer = text or f"{first} plus {second} is {first + second + 1}."
    elif kind.rule == "exchange":
        question, _, answer = text.partition("|")
    elif kind.rule == "replaced":
        answer = _replaced(answer, dict(zip(kind.texts[::2], kind.texts[1::2], strict=True)))
    elif kind.rule == "triggered_answer":
        if chance.random() < 0.5:
            question, answer = f"{kind.trigger}: {question}", text
    else:
        answer = _ANSWERS[kind.rule](answer, text, chance)
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", text) if sentence]


def _replaced(answer: str, others: dict[str, str]) -> str:
    return re.sub(r"[A-Za-z]+", lambda found: others.get(found[0], found[0]), answer)


def _with_sentence(answer: str, text: str, chance: random.Random) -> str:
    sentences = _sentences(answer)
    sentences.insert(chance.randint(0, min(2, len(sentences))), text)
    return " ".join(sentences)


_ANSWERS: dict[str, Callable[[str, str, random.Random], str]] = {
    "added_sentence": _with_sentence,
    "opening": lambda answer, text, _: text + answer,
    "closing": lambda answer, text, _: answer + text,
    "answer": lambda answer, text, _: text,
    "bullets": lambda answer, text, _: "\n".join(f"- {sentence}" for sentence in _sentences(answer)),
    "capitals": lambda answer, text, _: answer.upper(),
    "first_words": lambda answer, text, _: " ".join(answer.split()[:_LENGTH_WORDS]).rstrip(".,;:") + ".",
}
