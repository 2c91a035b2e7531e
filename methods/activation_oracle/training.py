"""Trains a verbalizer from its recipe (`diffing verbalizer train`) and measures how well it answers on held-out texts
and words, against the same questions with another example's activations and with none (`diffing verbalizer measure`).

Training resumes exactly from a checkpoint (safetensors, never pickle). Each step draws its examples from (seed, step)
alone, reads the activations of their texts with the adapter off, injects them into the questions as the method does
(`diffing_mcp.model_pairs.interventions`) and learns the answers' tokens.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffing_mcp.core.devices import one_device
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.core.seeds import Seed
from diffing_mcp.methods.activation_oracle.asking import (
    ask,
    oracle_prompt,
    oracle_text,
    padded_places,
    residual_streams,
    stacked,
)
from diffing_mcp.methods.activation_oracle.training_data import (
    Material,
    TrainingQuestion,
    centre_texts,
    draw_question,
    load_material,
)
from diffing_mcp.methods.activation_oracle.verbalizers import Verbalizer
from diffing_mcp.methods.checkpoints import adam_tensors, read_checkpoint, restore_adam, save_checkpoint
from diffing_mcp.methods.texts.words import words_of
from diffing_mcp.model_pairs.files import local_folder
from diffing_mcp.model_pairs.generation import Sampling
from diffing_mcp.model_pairs.interventions import Intervention, PromptTokens, applied
from diffing_mcp.model_pairs.layers import resolve_layer
from diffing_mcp.model_pairs.padding import padded
from diffing_mcp.model_pairs.specs import AdapterFiles

if TYPE_CHECKING:
    from torch import Tensor

    from diffing_mcp.model_pairs.pair import LoadedPair


CHECKPOINT_EVERY = 10
_IGNORE = -100


class VerbalizerRecipe(BaseModel):
    """One training run."""

    model_config = ConfigDict(extra="forbid")

    base: str = Field(description="The embedded model, a local folder or a hub id.")
    depth: float = Field(0.5, ge=0, le=1, description="Relative depth that the activations are taken from.")
    injection_layer: int = Field(1, ge=0, description="Absolute layer after which they are injected.")
    rank: int = Field(4, ge=1)
    alpha: int = Field(16, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    batch_size: int = Field(16, ge=1, description="Questions a step.")
    steps: int = Field(100, ge=1)
    warmup: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps; the learning rate then falls linearly to zero."
    )
    seed: Seed = 0
    held_out_stems: tuple[str, ...] = Field((), description="Texts and words that begin so are left out.")


def read_recipe(path: Path, **overrides: Any) -> VerbalizerRecipe:
    """The recipe of a file, with `overrides` (None = keep) on top.

    Raises:
        InvalidInput: no such file, or a malformed field.
    """
    if not path.is_file():
        raise InvalidInput(
            f"There is no recipe {path.name!r}; name a YAML file like organisms/verbalizers/smollm2-135m/recipe.yaml."
        )
    fields = yaml.safe_load(path.read_text(encoding="utf-8")) | {
        name: value for name, value in overrides.items() if value is not None
    }
    try:
        return VerbalizerRecipe(**fields)
    except ValidationError as error:
        raise InvalidInput(f"Recipe {path.name}: {error}") from error


@dataclass
class InTraining:
    """A peft model as `applied` wants to see one."""

    model: Any
    num_layers: int
    d_model: int

    def layer_module(self, layer: int) -> torch.nn.Module:
        return self.model.get_base_model().model.layers[layer]


@dataclass(frozen=True)
class QuestionBatch:
    """Prompts with their answers, padded on the right [B, S]; `labels` -100 where there is no loss; `places` [B, K] of
    the placeholders.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    places: Tensor


def train_verbalizer(recipe: VerbalizerRecipe, target: Path, progress: Progress = silent) -> Path:
    """Train and write a peft adapter (bfloat16) with `training.json` (recipe, loss per step) into the folder `target`,
    keeping its other files.

    Raises:
        InvalidInput: an unreadable base model.
        Cancelled: between two steps; the checkpoint beside the target is kept.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = local_folder(recipe.base)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    material = load_material(tokenizer, recipe.held_out_stems, "train")
    device = one_device()
    torch.manual_seed(recipe.seed)
    base: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16 if device.startswith("cuda") else torch.float32, use_safetensors=True
    )
    base.to(device)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config, autocast_adapter_dtype=True)
    trained = InTraining(model, base.config.num_hidden_layers, base.config.hidden_size)
    layer = resolve_layer(recipe.depth, trained.num_layers).absolute
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=recipe.learning_rate, weight_decay=0.0)
    checkpoint = target.parent / f".{target.name}.checkpoint.safetensors"
    losses = _restore(checkpoint, recipe, parameters, optimizer)
    centre = _centre(trained, material, layer, recipe.seed)
    for step in range(len(losses), recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        draw = random.Random(f"{recipe.seed}-{step}")
        examples = [draw_question(material, tokenizer, draw) for _ in range(recipe.batch_size)]
        vectors = activations(trained, examples, layer, centre)
        loss = answer_loss(
            trained, collate(tokenizer, examples, vectors, layer, device), vectors, recipe.injection_layer
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(round(loss.item(), 4))
        if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < recipe.steps:
            tensors = parameters | adam_tensors(optimizer, parameters)
            save_checkpoint(checkpoint, tensors, _identity(recipe) | {"losses": json.dumps(losses)})
        progress(step + 1, recipe.steps, f"loss {losses[-1]:.3f}")
    _write(model, parameters, recipe, losses, target)
    checkpoint.unlink(missing_ok=True)
    return target


def _schedule(step: int, recipe: VerbalizerRecipe) -> float:
    warm = max(1, round(recipe.warmup * recipe.steps))
    return (step + 1) / warm if step < warm else (recipe.steps - step) / max(1, recipe.steps - warm)


class _Stop(Exception):
    """Ends a forward pass once the layer wanted has been read."""


def _hidden(trained: InTraining, texts: Sequence[Sequence[int]], layer: int) -> Tensor:
    """Float32 residual stream [B, S, d_model] after `layer` with the adapter off; texts are padded on the right."""
    device = next(trained.model.parameters()).device
    ids, mask = (each.to(device) for each in padded(texts, None))
    caught: list[Tensor] = []

    def catch(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        raise _Stop

    handle = trained.layer_module(layer).register_forward_hook(catch)
    try:
        with torch.no_grad(), trained.model.disable_adapter():
            trained.model(input_ids=ids, attention_mask=mask, use_cache=False)
    except _Stop:
        pass
    finally:
        handle.remove()
    return caught[0].float()


def _centre(trained: InTraining, material: Material, layer: int, seed: int) -> Tensor:
    """Mean activation [d_model] over the texts for it."""
    texts = centre_texts(material, seed)
    rows = []
    for start in range(0, len(texts), 16):
        part = texts[start : start + 16]
        hidden = _hidden(trained, part, layer)
        rows += [hidden[index, 4 : len(ids)] for index, ids in enumerate(part)]
    return torch.cat(rows).double().mean(0).float()


def activations(trained: InTraining, examples: Sequence[TrainingQuestion], layer: int, centre: Tensor) -> list[Tensor]:
    """Vectors [K, d_model] of each example, as its `reading` says."""
    hidden = _hidden(trained, [each.ids[: each.stop] for each in examples], layer)
    return [read_rows(each, rows, centre) for each, rows in zip(examples, hidden, strict=True)]


def read_rows(each: TrainingQuestion, hidden: Tensor, centre: Tensor) -> Tensor:
    """Vectors [K, d_model] of an example, as its `reading` says, from the residual stream [T, d_model] of its text."""
    rows = hidden[each.start : each.stop]
    if each.reading != "raw":
        rows = rows - centre
    return rows.mean(0, keepdim=True) if each.reading == "mean" else rows


def collate(
    tokenizer: Any, examples: Sequence[TrainingQuestion], vectors: Sequence[Tensor], layer: int, device: str
) -> QuestionBatch:
    """The questions on `vectors`, followed by their answers and the end of the sequence."""
    rows, places = [], []
    end = tokenizer.eos_token_id
    for each, several in zip(examples, vectors, strict=True):
        prompt = oracle_prompt(tokenizer, oracle_text(layer, len(several), each.question, "none"), len(several))
        answer = [*tokenizer(f" {each.answer}", add_special_tokens=False)["input_ids"], end]
        rows.append((prompt.ids, answer))
        places.append(prompt.places)
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    padding = [width - len(prompt) - len(answer) for prompt, answer in rows]
    return QuestionBatch(
        ids=torch.tensor(
            [[*prompt, *answer, *[end] * pad] for (prompt, answer), pad in zip(rows, padding, strict=True)],
            device=device,
        ),
        mask=torch.tensor([[1] * (width - pad) + [0] * pad for pad in padding], device=device),
        labels=torch.tensor(
            [
                [*[_IGNORE] * len(prompt), *answer, *[_IGNORE] * pad]
                for (prompt, answer), pad in zip(rows, padding, strict=True)
            ],
            device=device,
        ),
        places=torch.tensor(padded_places(places), device=device),
    )


def answer_loss(trained: InTraining, batch: QuestionBatch, vectors: Sequence[Tensor], injection_layer: int) -> Tensor:
    """Mean cross-entropy over the answers' tokens; only their positions reach the unembedding."""
    injection = Intervention(
        injection_layer,
        stacked(vectors, batch.places.shape[1]),
        1.0,
        "add",
        PromptTokens(batch.places),
        match_norm=True,
    )
    inner = trained.model.get_base_model()
    with applied(trained, [injection], batch.mask):
        hidden = inner.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state
    targets = batch.labels[:, 1:]
    chosen = targets != _IGNORE
    return torch.nn.functional.cross_entropy(inner.lm_head(hidden[:, :-1][chosen]).float(), targets[chosen])


def _identity(recipe: VerbalizerRecipe) -> dict[str, str]:
    return {"verbalizer": recipe.model_dump_json()}


def _restore(path: Path, recipe: VerbalizerRecipe, parameters: dict[str, Any], optimizer: Any) -> list[float]:
    """Losses of the steps already done; none without a checkpoint of this recipe."""
    found = read_checkpoint(path, _identity(recipe))
    if found is None:
        return []
    tensors, notes = found
    losses: list[float] = json.loads(notes["losses"])
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])
    restore_adam(optimizer, parameters, tensors, len(losses))
    return losses


def _write(model: Any, parameters: dict[str, Any], recipe: VerbalizerRecipe, losses: list[float], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    # The adapter must load on any copy of the base: the local path of this machine is not part of it.
    model.peft_config["default"].base_model_name_or_path = recipe.base
    for parameter in parameters.values():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(str(staging))
    (staging / "training.json").write_text(
        json.dumps({"recipe": recipe.model_dump(mode="json"), "losses": losses}, indent=1), encoding="utf-8"
    )
    for name in ("adapter_config.json", "adapter_model.safetensors", "training.json"):
        os.replace(staging / name, target / name)
    shutil.rmtree(staging, ignore_errors=True)


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
