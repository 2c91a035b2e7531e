"""How well a verbalizer answers on held-out texts and words, against the same questions with another example's
activations and with none.

`diffing verbalizer measure` writes the sheet beside the adapter.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, Field

from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.methods.activation_oracle.asking import ask, residual_streams
from diffing_mcp.methods.activation_oracle.training import VerbalizerRecipe, read_rows
from diffing_mcp.methods.activation_oracle.training_data import (
    TrainingQuestion,
    centre_texts,
    draw_question,
    load_material,
)
from diffing_mcp.methods.activation_oracle.verbalizers import Verbalizer
from diffing_mcp.methods.texts.words import words_of
from diffing_mcp.model_pairs.generation import Sampling
from diffing_mcp.model_pairs.layers import resolve_layer
from diffing_mcp.model_pairs.specs import AdapterFiles

if TYPE_CHECKING:
    from pathlib import Path

    from diffing_mcp.model_pairs.pair import LoadedPair

Task = Literal["sentence", "keywords", "occurs", "either"]
TASKS: tuple[Task, ...] = ("sentence", "keywords", "occurs", "either")
_AT_ONCE = 32


class TaskScore(BaseModel):
    """Share of right answers to the questions of one task."""

    task: Task
    questions: int
    injected: float = Field(description="With the activations asked about.")
    shuffled: float = Field(description="With another question's activations: chance.")
    none: float = Field(description="With nothing injected.")


def measure_tasks(
    pair: LoadedPair,
    adapter: Path,
    recipe: VerbalizerRecipe,
    questions: int = 48,
    seed: int = 0,
    progress: Progress = silent,
) -> list[TaskScore]:
    """Scores of every task on held-out texts and words, read from the base side of `pair`; greedy answers.

    Right is: `sentence` the word is in the answer; `keywords` the answer's first word stands in the text up to the last
    token read; `occurs` and `either` the answer begins as it should.
    """
    material = load_material(pair.tokenizer, recipe.held_out_stems, "held_out")
    layer = resolve_layer(recipe.depth, pair.num_layers).absolute
    verbalizer = Verbalizer(AdapterFiles(id=str(adapter)), "none")
    sampling = Sampling(temperature=0, max_new_tokens=8)
    hidden = residual_streams(pair, "base", centre_texts(material, seed), layer, _AT_ONCE)
    centre = torch.cat([rows[4:] for rows in hidden]).double().mean(0).float()
    scores = []
    for number, task in enumerate(TASKS):
        progress(number, len(TASKS), task)
        draw = random.Random(f"{seed}-{task}")
        examples = [draw_question(material, pair.tokenizer, draw, task) for _ in range(questions)]
        texts = [each.ids[: each.stop] for each in examples]
        hidden = residual_streams(pair, "base", texts, layer, _AT_ONCE)
        vectors = [read_rows(each, rows, centre) for each, rows in zip(examples, hidden, strict=True)]
        shares = []
        for given, coefficient in ((vectors, 1.0), (vectors[1:] + vectors[:1], 1.0), (vectors, 0.0)):
            asked = [(each.question, rows) for each, rows in zip(examples, given, strict=True)]
            answers = ask(pair, verbalizer, asked, layer, recipe.injection_layer, coefficient, sampling)
            shares.append(
                sum(_right(pair, each, answer) for each, answer in zip(examples, answers, strict=True)) / questions
            )
        scores.append(TaskScore(task=task, questions=questions, injected=shares[0], shuffled=shares[1], none=shares[2]))
    return scores


def _right(pair: LoadedPair, each: TrainingQuestion, answer: str) -> bool:
    words = words_of(answer)
    if each.kind == "sentence":
        return each.answer in words
    if each.kind == "keywords":
        return bool(words) and words[0] in words_of(pair.tokenizer.decode(each.ids[: each.stop]))
    return words[:1] == words_of(each.answer)[:1]
