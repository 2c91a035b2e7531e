"""How well a verbalizer answers on held-out texts and words, against the same questions with another example's
activations and with none.

`diffing verbalizer measure` writes the sheet beside the adapter.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, Field

from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.methods.activation_oracle.asking import ask
from diffing_mcp.methods.activation_oracle.training import VerbalizerRecipe
from diffing_mcp.methods.activation_oracle.training_data import Example, example, load_material
from diffing_mcp.methods.activation_oracle.verbalizers import Verbalizer
from diffing_mcp.methods.texts.words import words_of
from diffing_mcp.model_pairs.generation import Sampling
from diffing_mcp.model_pairs.layers import resolve_layer
from diffing_mcp.model_pairs.specs import AdapterFiles
from diffing_mcp.preprocessing.padding import padded

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from diffing_mcp.model_pairs.pair import LoadedPair

Task = Literal["sentence", "keywords", "occurs", "either"]
TASKS: tuple[Task, ...] = ("sentence", "keywords", "occurs", "either")
_BATCH = 32
_CENTRE_TEXTS = 32
_CENTRE_TOKENS = 32


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
    texts = [
        ids[:_CENTRE_TOKENS]
        for _, ids in random.Random(f"{seed}-centre").sample(material.texts, min(_CENTRE_TEXTS, len(material.texts)))
    ]
    centre = torch.cat([rows[4:] for rows in _hidden(pair, texts, layer)]).double().mean(0).float()
    scores = []
    for number, task in enumerate(TASKS):
        progress(number, len(TASKS), task)
        draw = random.Random(f"{seed}-{task}")
        examples = [example(material, pair.tokenizer, draw, task) for _ in range(questions)]
        vectors = [
            _read(rows, each, centre)
            for rows, each in zip(
                _hidden(pair, [each.ids[: each.stop] for each in examples], layer), examples, strict=True
            )
        ]
        shares = []
        for given, coefficient in ((vectors, 1.0), (vectors[1:] + vectors[:1], 1.0), (vectors, 0.0)):
            asked = [(each.question, rows) for each, rows in zip(examples, given, strict=True)]
            answers = ask(pair, verbalizer, asked, layer, recipe.injection_layer, coefficient, sampling)
            shares.append(
                sum(_right(pair, each, answer) for each, answer in zip(examples, answers, strict=True)) / questions
            )
        scores.append(TaskScore(task=task, questions=questions, injected=shares[0], shuffled=shares[1], none=shares[2]))
    return scores


def _hidden(pair: LoadedPair, texts: Sequence[Sequence[int]], layer: int) -> list[Tensor]:
    """Residual stream [T, d_model] float32 of each text in the base model."""
    result: list[Tensor] = []
    for start in range(0, len(texts), _BATCH):
        part = texts[start : start + _BATCH]
        hidden = pair.forward("base", *padded(part, pair.tokenizer.pad_token_id), layers=[layer], logits=False).hidden[
            layer
        ]
        result += [hidden[row, : len(ids)].float().cpu() for row, ids in enumerate(part)]
    return result


def _read(rows: Tensor, each: Example, centre: Tensor) -> Tensor:
    chosen = rows[each.start : each.stop]
    if each.reading != "raw":
        chosen = chosen - centre
    return chosen.mean(0, keepdim=True) if each.reading == "mean" else chosen


def _right(pair: LoadedPair, each: Example, answer: str) -> bool:
    words = words_of(answer)
    if each.kind == "sentence":
        return each.answer in words
    if each.kind == "keywords":
        return bool(words) and words[0] in words_of(pair.tokenizer.decode(each.ids[: each.stop]))
    return words[:1] == words_of(each.answer)[:1]
