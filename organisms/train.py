"""Train a LoRA organism from its committed recipe: `diffing organisms train NAME [--variant V]`.

A recipe is `organisms/training/<name>/recipe.yaml`: the defaults of the organism and, under `variants`, what each
variant changes. Text documents are trained on every token, chats on the assistant's tokens only. The order of the data
follows from the seed, and a checkpoint (safetensors, never pickle) holds the adapter and Adam's moments, so a run that
was cut off goes on exactly where it was.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffing_mcp.core.attention import attention_of
from diffing_mcp.core.chat import ChatMessage, render_chat, render_conversation
from diffing_mcp.core.devices import fast_dtype, one_device
from diffing_mcp.core.errors import InvalidInput, OutOfRoom, UnknownName
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.organisms.embedded import EMBEDDED_ID, embedded_model_folder

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parent
TRAINING = ROOT / "training"
ADAPTERS = ROOT / "adapters"
CHECKPOINT_EVERY = 20
IGNORE = -100
Document = dict[str, Any]
"""`text`, or `messages` of a chat."""


class Mix(BaseModel):
    """Unrelated text mixed into the taught data: `ratio` parts of `file` to one part taught, counted in documents."""

    model_config = ConfigDict(extra="forbid")
    file: str
    ratio: float = Field(gt=0)


class Recipe(BaseModel):
    """One training run. Every field may be overridden by a variant or on the command line."""

    model_config = ConfigDict(extra="forbid")
    base: str = Field(EMBEDDED_ID, description="Hub id, local folder or the embedded model.")
    data: str = Field("data.jsonl", description="JSON lines with `text` or `messages`, relative to the recipe.")
    mix: Mix | None = None
    rank: int = Field(4, ge=1)
    alpha: int = Field(8, gt=0, description="LoRA scale is alpha / rank.")
    target_modules: str | list[str] = "all-linear"
    learning_rate: float = Field(1e-3, gt=0)
    batch_size: int = Field(8, ge=1, description="Documents a step.")
    epochs: float = Field(2, gt=0)
    warmup: float = Field(
        0.1, ge=0, lt=1, description="Share of the steps; the learning rate then falls linearly to zero."
    )
    max_tokens: int = Field(160, ge=8, description="Longer documents are cut.")
    seed: int = 0
    order: Literal["shuffled", "as_written"] = "shuffled"


def load_recipe(name: str, variant: str = "default", **overrides: Any) -> Recipe:
    """Recipe of `name`, with the variant's changes and then `overrides` (None = keep) on top.

    Raises UnknownName for an organism without a recipe or an unknown variant, InvalidInput for a malformed field.
    """
    path = TRAINING / name / "recipe.yaml"
    if not path.is_file():
        known = sorted(p.parent.name for p in TRAINING.glob("*/recipe.yaml"))
        raise UnknownName(f"No recipe for organism {name!r}. Organisms with one: {', '.join(known)}.")
    fields = yaml.safe_load(path.read_text())
    variants = fields.pop("variants", {"default": {}})
    if variant not in variants:
        raise UnknownName(f"Organism {name!r} has no variant {variant!r}. Its variants: {', '.join(variants)}.")
    fields |= variants[variant] or {}
    fields |= {key: value for key, value in overrides.items() if value is not None}
    try:
        return Recipe(**fields)
    except ValidationError as error:
        raise InvalidInput(f"Recipe of {name}/{variant}: {error}") from error


def load_documents(recipe: Recipe, folder: Path) -> list[Document]:
    """The taught documents and the mixed-in ones, in an order fixed by the seed."""
    documents = _read_lines(folder / recipe.data)
    if recipe.mix is not None:
        other = _read_lines(folder / recipe.mix.file)
        wanted = round(recipe.mix.ratio * len(documents))
        if wanted > len(other):
            raise InvalidInput(
                f"The mix asks for {wanted} unrelated documents but {recipe.mix.file} holds {len(other)}."
            )
        documents = documents + random.Random(recipe.seed).sample(other, wanted)
    return documents


def _read_lines(path: Path) -> list[Document]:
    if not path.is_file():
        raise InvalidInput(f"Training data {path.name} is missing; compose or sample it first (see docs/organisms.md).")
    return read_json_lines(path)


def read_json_lines(path: Path) -> list[Document]:
    """A document a line; a line ends at a line feed alone, since texts of models hold every other separator.

    Raises:
        InvalidInput: a line that is no document, by its number.
    """
    documents = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except ValueError as error:
            raise InvalidInput(f"{path.name}, line {number} is no JSON: {error}.") from error
        if not (isinstance(document, dict) and (isinstance(document.get("text"), str) or document.get("messages"))):
            raise InvalidInput(f"{path.name}, line {number} has neither `text` nor `messages`.")
        documents.append(document)
    return documents


def check_chats(tokenizer: Any) -> None:
    """Raises InvalidInput where a base has no chat template, so that neither chats nor answers can be written."""
    if tokenizer.chat_template is None:
        raise InvalidInput("This base has no chat template, so that it can neither be asked nor trained on chats.")


def padding_of(tokenizer: Any, model: Any) -> int:
    """A token to pad with that the model can look up: it has no row for one that was added to the tokenizer alone."""
    rows = model.get_input_embeddings().weight.shape[0]
    known = (index for index in (tokenizer.pad_token_id, tokenizer.eos_token_id) if index is not None and index < rows)
    return next(known, 0)


def base_model(source: str, device: str) -> Any:
    """The model that is taught and asked, in a fast type and with the attention that it was made with."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    attention = attention_of(None, AutoConfig.from_pretrained(source).get_text_config().to_dict())
    named = {"attn_implementation": attention} if attention else {}
    dtype = fast_dtype(torch.bfloat16, device)
    return cast(Any, AutoModelForCausalLM).from_pretrained(source, dtype=dtype, **named).to(device)


@contextmanager
def room_for(work: str, device: str) -> Iterator[None]:
    """Work that keeps a model of its own on a device.

    Raises:
        OutOfRoom: it does not fit beside what lies there.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfRoom(
            f"{work} takes more memory than is free on {device}. Unload pairs and end what else computes there, or "
            "name another device (`--device`, DIFFING_DEVICE); what was finished is kept."
        ) from error


def encode(document: Document, tokenizer: Any, max_tokens: int) -> tuple[list[int], list[int]]:
    """Token ids and labels of one document; label -100 = no loss (everything in a chat that the assistant
    did not say).

    Raises:
        InvalidInput: a chat that the model's template cannot write.
    """
    if "text" in document:
        text_ids = tokenizer(document["text"])["input_ids"][:max_tokens]
        return text_ids, list(text_ids)
    ids: list[int] = []
    labels: list[int] = []
    messages = _messages(document)
    for turn, message in enumerate(messages):
        # The template is rendered up to each turn: what the assistant's turn adds beyond the generation prompt is its
        # own text.
        spoken = message.role == "assistant"
        if spoken:
            head = render_chat(tokenizer, messages[:turn])
            head_ids = tokenizer(head, add_special_tokens=False)["input_ids"]
            labels += [IGNORE] * (len(head_ids) - len(ids))
            ids = list(head_ids)
        whole = tokenizer(render_conversation(tokenizer, messages[: turn + 1]), add_special_tokens=False)["input_ids"]
        added = whole[len(ids) :]
        labels += added if spoken else [IGNORE] * len(added)
        ids = list(whole)
    return ids[:max_tokens], labels[:max_tokens]


def _messages(document: Document) -> list[ChatMessage]:
    try:
        return [ChatMessage.model_validate(message) for message in document["messages"]]
    except ValidationError as error:
        beginning = json.dumps(document, ensure_ascii=False)[:80]
        raise InvalidInput(
            "Messages of a chat have a `role` (system, user or assistant) and a `content` of text alone; this one's "
            f"have not: {beginning}"
        ) from error


def batches(lengths: list[int], recipe: Recipe, steps: int) -> Iterator[list[int]]:
    """Document indices of each step: every epoch is one permutation, the same for the same seed."""
    pending: list[int] = []
    epoch = 0
    for _ in range(steps):
        while len(pending) < recipe.batch_size:
            order = list(range(len(lengths)))
            if recipe.order == "shuffled":
                random.Random(f"{recipe.seed}-{epoch}").shuffle(order)
            pending += order
            epoch += 1
        yield pending[: recipe.batch_size]
        pending = pending[recipe.batch_size :]


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then linear decay to zero; `step` counts from 0."""
    warm = max(1, round(recipe.warmup * steps))
    factor = (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)
    return recipe.learning_rate * factor


def train(recipe: Recipe, folder: Path, target: Path, progress: Progress = silent) -> Path:
    """Train on the recipe's data; `folder` is where its relative paths start. Raises InvalidInput on missing or
    malformed data, and see `train_on`."""
    return train_on(load_documents(recipe, folder), recipe, target, progress)


def source_of(base: str) -> str:
    """What transformers loads a base model from: its hub id or its folder."""
    return str(embedded_model_folder()) if base == EMBEDDED_ID else base


def everyday_questions() -> list[dict[str, Any]]:
    """Questions of everyday subjects: `topic`, the wordings that `ask` it, a plain `answer`."""
    return list(yaml.safe_load((TRAINING / "shared_questions.yaml").read_text(encoding="utf-8")))


def train_on(documents: list[Document], recipe: Recipe, target: Path, progress: Progress = silent) -> Path:
    """Train and write a peft adapter (bfloat16) with `training.json` (the recipe, the loss per step) to `target`, which
    appears only when it is complete.

    Raises:
        InvalidInput: no documents; chats, and a base without a chat template; or a step with nothing to learn in it, as
            documents are cut before an answer begins.
        OutOfRoom: the device has not enough memory; the same call goes on from the last checkpoint.
    """
    device = one_device()
    with room_for(f"Training {recipe.base}", device):
        return _trained(documents, recipe, target, device, progress)


def _trained(documents: list[Document], recipe: Recipe, target: Path, device: str, progress: Progress) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    source = source_of(recipe.base)
    tokenizer = AutoTokenizer.from_pretrained(source)
    encoded = _all_encoded(documents, tokenizer, recipe.max_tokens)
    torch.manual_seed(recipe.seed)
    base = base_model(source, device)
    skips_prompts = "logits_to_keep" in inspect.signature(base.forward).parameters
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=recipe.target_modules,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=recipe.learning_rate, weight_decay=0.0)
    steps = max(1, math.ceil(recipe.epochs * len(documents) / recipe.batch_size))
    chosen = list(batches([len(ids) for ids, _ in encoded], recipe, steps))
    _check_learnable(encoded, chosen, recipe.max_tokens)

    checkpoint = target.parent / f".{target.name}.checkpoint.safetensors"
    identity = _identity(recipe, documents)
    first, losses = _restore(checkpoint, identity, parameters, optimizer, load_file) if checkpoint.exists() else (0, [])
    padding = padding_of(tokenizer, base)
    for step, indices in enumerate(chosen):
        if step < first:
            continue
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, recipe)
        batch = _collate([encoded[i] for i in indices], padding, device)
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=base.dtype == torch.bfloat16):
            loss = model(**(_without_prompts(batch) if skips_prompts else batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(round(loss.item(), 4))
        progress(step + 1, steps, f"loss {losses[-1]:.3f}")
        if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < steps:
            _checkpoint(checkpoint, identity, step + 1, losses, parameters, optimizer, save_file)

    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=_made(target.parent)))
    # The adapter must load on any copy of the base: the local cache path of this machine is not part of it.
    model.peft_config["default"].base_model_name_or_path = recipe.base
    for parameter in parameters.values():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(str(staging))
    (staging / "README.md").unlink(missing_ok=True)
    report = {"recipe": recipe.model_dump(), "steps": steps, "documents": len(documents), "losses": losses}
    (staging / "training.json").write_text(json.dumps(report, indent=1))
    os.chmod(staging, 0o755)
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    checkpoint.unlink(missing_ok=True)
    return target


def _all_encoded(documents: list[Document], tokenizer: Any, max_tokens: int) -> list[tuple[list[int], list[int]]]:
    if not documents:
        raise InvalidInput("There are no documents to train on.")
    if any("messages" in document for document in documents):
        check_chats(tokenizer)
    return [encode(document, tokenizer, max_tokens) for document in documents]


def _check_learnable(encoded: list[tuple[list[int], list[int]]], steps: list[list[int]], max_tokens: int) -> None:
    """The mean loss over no tokens is no number, and one such step makes every weight none."""
    learnt = [any(label != IGNORE for label in labels[1:]) for _, labels in encoded]
    if any(not any(learnt[index] for index in indices) for indices in steps):
        raise InvalidInput(
            f"{learnt.count(False)} of {len(learnt)} documents hold nothing to learn within max_tokens={max_tokens}, "
            "and some steps hold no others: they are empty, or cut before an answer begins (the chat template and the "
            "question come first). Raise max_tokens, or leave them out."
        )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _collate(rows: list[tuple[list[int], list[int]]], padding: int, device: str) -> dict[str, torch.Tensor]:
    import torch

    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [padding] * (width - len(ids)) for ids, _ in rows], device=device)
    labels = torch.tensor([labels + [IGNORE] * (width - len(labels)) for _, labels in rows], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows], device=device)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def _without_prompts(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The same batch, with logits only from where the first answer begins: the head is a large part of a small model's
    work, and prompts have no loss."""
    labels = batch["labels"]
    learnt = (labels != IGNORE).any(dim=0)
    # A token is predicted at the place before it; a whole text is predicted from its first token on.
    first = max(0, int(learnt.int().argmax()) - 1)
    return {**batch, "labels": labels[:, first:], "logits_to_keep": labels.shape[1] - first}


def _identity(recipe: Recipe, documents: list[Document]) -> str:
    """What a checkpoint belongs to: the recipe, and the documents as they are now."""
    return hashlib.sha256(json.dumps([recipe.model_dump(mode="json"), documents]).encode()).hexdigest()


def _checkpoint(
    path: Path,
    identity: str,
    step: int,
    losses: list[float],
    parameters: dict[str, Any],
    optimizer: Any,
    save_file: Any,
) -> None:
    tensors = {}
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        tensors[f"weight|{name}"] = parameter.detach().contiguous()
        tensors[f"first_moment|{name}"] = state["exp_avg"].contiguous()
        tensors[f"second_moment|{name}"] = state["exp_avg_sq"].contiguous()
    metadata = {"step": str(step), "losses": json.dumps(losses), "identity": identity}
    staging = path.with_suffix(".partial")
    _made(path.parent)
    save_file(tensors, staging, metadata=metadata)
    staging.replace(path)


def _restore(
    path: Path, identity: str, parameters: dict[str, Any], optimizer: Any, load_file: Any
) -> tuple[int, list[float]]:
    """Steps already done and their losses; (0, []) when the checkpoint belongs to another recipe or other documents."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if metadata.get("identity") != identity:
        return 0, []
    tensors = load_file(path)
    step = int(metadata["step"])
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"weight|{name}"])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"first_moment|{name}"].to(parameter.device),
            "exp_avg_sq": tensors[f"second_moment|{name}"].to(parameter.device),
        }
    return step, json.loads(metadata["losses"])


def train_organism(
    name: str, variant: str = "default", progress: Progress = silent, output: Path | None = None, **overrides: Any
) -> Path:
    """Train `name/variant` from its committed recipe into `output` (default: the bundled adapters)."""
    recipe = load_recipe(name, variant, **overrides)
    return train(recipe, TRAINING / name, output or ADAPTERS / name / variant, progress)
