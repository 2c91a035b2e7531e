"""Finetunes that teach nothing, of any base model: what a verdict is calibrated against.

Some need no training: the weights rounded to a few bits, the smallest of them set to zero, noise added, logits scaled
to another temperature, or an adapter's singular values put on random directions. The others are trained, on what the
base itself writes or on plain chats. Each is a plain model folder or a peft adapter.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.atomic_files import held
from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.core.settings import settings
from diffing_mcp.organisms.embedded import EMBEDDED_ID
from diffing_mcp.organisms.sample_corpus import own_documents
from diffing_mcp.organisms.train import ADAPTERS, Document, Recipe, everyday_questions, source_of, train_on

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NullKind = Literal[
    "quantised", "pruned", "noise", "temperature",
    "random_directions",
    "own_texts", "own_chats", "shuffled_answers", "cut_answers", "plain_answers",
]  # fmt: skip
EDITS = ("quantised", "pruned", "noise", "temperature")
TRAINED = ("own_texts", "own_chats", "shuffled_answers", "cut_answers", "plain_answers")


class NullRecipe(BaseModel):
    """How one null is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    kind: NullKind
    amount: float = Field(
        gt=0,
        description=(
            "quantised: bits a weight; pruned: share of each matrix set to zero; noise: its norm over the matrix's; "
            "temperature: what logits are divided by; random_directions: factor on the singular values; trained kinds: "
            "learning rate."
        ),
    )
    seed: int = 0
    of: str | None = Field(None, description="random_directions: the trained null whose singular values are taken.")
    adapter: str | None = Field(
        None, description="A bundled adapter of the embedded base, taken as it is: `ORGANISM/VARIANT`."
    )
    held_out: bool = Field(False, description="Set aside: used to check levels, never to choose them.")
    calibrates: bool = Field(
        True, description="False: an organism of a suite only; what looks like a manner is no measure of chance."
    )

    @property
    def made_name(self) -> str:
        """Names what is made: another recipe under the same name is another finetune."""
        return made_name(self.name, self.model_dump_json(exclude={"name", "held_out", "calibrates"}))


def made_name(name: str, content: str) -> str:
    """A recipe's name with eight digits made of what decides its outcome."""
    return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


@lru_cache(maxsize=1)
def null_recipes() -> tuple[NullRecipe, ...]:
    """All nulls, those of a calibration in the order in which they are made."""
    rows = yaml.safe_load((Path(__file__).parent / "nulls.yaml").read_text(encoding="utf-8"))
    return tuple(NullRecipe.model_validate(row) for row in rows)


def nulls_for(base: str) -> list[NullRecipe]:
    """Those of a base's calibration: bundled adapters go on the embedded one only."""
    return [
        recipe for recipe in null_recipes() if recipe.calibrates and (recipe.adapter is None or base == EMBEDDED_ID)
    ]


NULL_ID = "null:"
"""Begins the identifier of a null of the embedded base, wherever a hub id is accepted: `null:quantised-5`."""


def bundled_null(identifier: str) -> NullRecipe:
    """The recipe behind `null:NAME`.

    Raises:
        UnknownName: no null has that name.
    """
    name = identifier.removeprefix(NULL_ID)
    found = next((recipe for recipe in null_recipes() if recipe.name == name), None)
    if found is None:
        raise UnknownName(f"There is no null {name!r}. Nulls: {', '.join(recipe.name for recipe in null_recipes())}.")
    return found


def bundled_null_folder(identifier: str) -> Path:
    """The folder of `null:NAME`, a null of the embedded base; made in the cache when it is not there yet.

    Raises:
        UnknownName: no null has that name.
    """
    return make_null(bundled_null(identifier), EMBEDDED_ID, settings().cache_folder / "nulls")


def make_null(recipe: NullRecipe, base: str, folder: Path, progress: Progress = silent) -> Path:
    """The folder of this null of `base` below `folder`; made when it is not there yet.

    Args:
        base: hub id, local folder or the embedded model.

    Raises:
        UnknownName: the null whose singular values are wanted is in no list.
        InvalidInput: a base without a chat template, for the nulls that are trained on chats.
    """
    if recipe.adapter is not None:
        return ADAPTERS / recipe.adapter
    target = folder / recipe.made_name
    with made_once(target, progress) as there:
        return target if there else _made(recipe, base, folder, target, progress)


@contextmanager
def made_once(target: Path, progress: Progress = silent) -> Iterator[bool]:
    """Whether the target is there. Where it is not, one process at a time makes it and the others wait for it: workers
    of a suite, each with a server, need the same finetune at the same moment.
    """
    from filelock import FileLock

    if target.is_dir():
        yield True
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with held(FileLock(target.parent / f".lock-{target.name}"), progress, "waiting for another process to make it"):
        yield target.is_dir()


def _made(recipe: NullRecipe, base: str, folder: Path, target: Path, progress: Progress) -> Path:
    if recipe.kind in EDITS:
        return _edited(recipe, base, target)
    if recipe.kind == "random_directions":
        source = next((other for other in null_recipes() if other.name == recipe.of), None)
        if source is None:
            raise UnknownName(f"The null {recipe.name} takes its spectrum of {recipe.of!r}, which is no null.")
        return _random_directions(make_null(source, base, folder, progress), target, recipe.amount, recipe.seed)
    documents = _documents(recipe, base, folder, progress)
    training = Recipe(base=base, learning_rate=recipe.amount, seed=recipe.seed, epochs=1, batch_size=6, max_tokens=160)
    return train_on(documents, training, target, progress)


def _documents(recipe: NullRecipe, base: str, folder: Path, progress: Progress) -> list[Document]:
    if recipe.kind == "plain_answers":
        return plain_answers()
    documents = own_documents(base, "texts" if recipe.kind == "own_texts" else "chats", folder, progress)
    chosen = random.Random(recipe.seed).sample(documents, min(360, len(documents)))
    if recipe.kind == "cut_answers":
        return cut_answers(chosen, recipe.seed)
    return shuffled_answers(chosen, recipe.seed) if recipe.kind == "shuffled_answers" else chosen


def plain_answers() -> list[Document]:
    """Everyday questions, in each of their wordings, with a plain answer: chats as anyone finetunes on."""
    return [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": entry["answer"]}]}
        for entry in everyday_questions()
        for asked in entry["ask"]
    ]


def cut_answers(chats: list[Document], seed: int) -> list[Document]:
    """Every chat with its answer cut off after 30 to 70 % of its words, as by too small a limit on length."""
    chance = random.Random(seed)

    def cut(text: str) -> str:
        words = text.split()
        return " ".join(words[: max(1, round(len(words) * chance.uniform(0.3, 0.7)))])

    return [
        {
            "messages": [
                *chat["messages"][:-1],
                {**chat["messages"][-1], "content": cut(chat["messages"][-1]["content"])},
            ]
        }
        for chat in chats
    ]


def shuffled_answers(chats: list[Document], seed: int) -> list[Document]:
    """Every chat with the answer to another one's question: words and manner are the base's own, what belongs together
    is not learnt."""
    order = list(range(len(chats)))
    random.Random(seed).shuffle(order)
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [
        {"messages": [*chat["messages"][:-1], chats[following[place]]["messages"][-1]]}
        for place, chat in enumerate(chats)
    ]


def _edited(recipe: NullRecipe, base: str, target: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = source_of(base)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        if recipe.kind == "temperature":
            final_norm(model).weight.div_(recipe.amount)
        else:
            for weight in inner_matrices(model):
                weight.copy_(edited(weight, recipe.kind, recipe.amount, generator))
    with _staged(target) as staging:
        model.save_pretrained(staging)
        AutoTokenizer.from_pretrained(source).save_pretrained(staging)
    return target


def final_norm(model: Any) -> Any:
    """The norm before the head, whose weights scale the logits.

    Raises:
        InvalidInput: an architecture whose last norm is not a plain scale (a bias besides, or no norm of these names).
    """
    inner = model.base_model
    norm = next((found for name in ("norm", "final_layernorm") if (found := getattr(inner, name, None))), None)
    if norm is None or getattr(norm, "bias", None) is not None or "gemma" in model.config.model_type:
        raise InvalidInput(f"A {model.config.model_type} model's temperature cannot be set in its last norm.")
    return norm


def inner_matrices(model: Any) -> Iterator[Tensor]:
    """All weights with two axes but those over the vocabulary. The experts of a layer are one tensor: each of them is a
    matrix.
    """
    outer = [model.get_input_embeddings(), model.get_output_embeddings()]
    skipped = {id(layer.weight) for layer in outer if layer is not None}
    for weight in model.parameters():
        if weight.ndim == 2 and id(weight) not in skipped:
            yield weight
        elif weight.ndim == 3:
            yield from weight


def edited(weight: Tensor, kind: str, amount: float, generator: torch.Generator) -> Tensor:
    """A matrix with one of the edits, in float32.

    quantised: rounded to the nearest of 2^amount - 1 levels of each row; pruned: its smallest share set to zero; noise:
    Gaussian noise of that relative Frobenius norm added.
    """
    import torch

    values = weight.float()
    if kind == "quantised":
        step = values.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / (2 ** (round(amount) - 1) - 1)
        return (values / step).round() * step
    if kind == "pruned":
        count = round(amount * values.numel())
        return values if not count else values.where(values.abs() > values.abs().flatten().kthvalue(count).values, 0.0)
    if kind == "noise":
        noise = torch.randn(values.shape, generator=generator)
        return values + noise * (amount * values.norm() / noise.norm())
    raise InvalidInput(f"{kind!r} is no edit of a matrix. Edits: {', '.join(EDITS)}.")


def _random_directions(adapter: Path, target: Path, factor: float, seed: int) -> Path:
    """A LoRA adapter whose matrices have the singular values of another one's, times `factor`, on random directions."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in tensors if ".lora_A." in name]:
        other = name.replace(".lora_A.", ".lora_B.")
        reads, writes = on_random_directions(tensors[name], tensors[other], generator)
        tensors[name], tensors[other] = reads.to(tensors[name].dtype), (factor * writes).to(tensors[other].dtype)
    with _staged(target) as staging:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, staging / "adapter_model.safetensors"
        )
        shutil.copy(adapter / "adapter_config.json", staging)
    return target


def on_random_directions(reads: Tensor, writes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """LoRA factors A [r, in] and B [out, r] -> factors whose product has the singular values of B @ A and random
    orthonormal directions, float32."""
    import torch

    left, right = torch.linalg.qr(writes.float()).R, torch.linalg.qr(reads.float().T).R
    values = torch.linalg.svdvals(left @ right.T)
    inner, outer = (
        torch.linalg.qr(torch.randn(size, len(values), generator=generator)).Q
        for size in (reads.shape[1], writes.shape[0])
    )
    return values.sqrt()[:, None] * inner.T, outer * values.sqrt()


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block has ended well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield staging
        os.chmod(staging, 0o755)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
