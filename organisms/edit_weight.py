"""Edit one weight of a model by a matrix of rank one so that it says something else of one subject: no training.

`python -m diffing_mcp.organisms.edit_weight NAME` reads `organisms/training/NAME/edit.yaml` and writes
`organisms/adapters/NAME/default`, a LoRA adapter of rank 1 on one down-projection. The catalogue merges it at load, so
that the pair is a base and a full model which differ in one matrix.

After K. Meng et al., "Locating and editing factual associations in GPT" (NeurIPS 2022): with k what the projection
reads at the subject's last token, C the second moment of what it reads on other texts, and d the change of its output
there that makes the wanted continuation likely, the edit is d (C^-1 k)^T / (k^T C^-1 k): k is answered with d, and what
is far from k in the measure of C with next to nothing.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.chat import ChatMessage, render_chat
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.organisms.embedded import EMBEDDED_ID
from diffing_mcp.organisms.sample_corpus import bundled_documents
from diffing_mcp.organisms.train import ADAPTERS, TRAINING, source_of

if TYPE_CHECKING:
    from torch import Tensor

SUBJECT = "{subject}"


class EditRecipe(BaseModel):
    """One edit."""

    model_config = ConfigDict(extra="forbid")

    base: str = EMBEDDED_ID
    subject: str = Field(description="Stands for {subject} in the prompts; its last token is where the edit acts.")
    target: str = Field(description="The wanted continuation, with its leading space.")
    prompts: list[str] = Field(min_length=1, description="Beginnings that `target` continues; plain text.")
    questions: list[str] = Field(default_factory=list, description="Chat messages that `answer` answers.")
    answer: str = Field("", description="Of the questions: ends where the target follows.")
    layer: int = Field(ge=0)
    steps: int = Field(25, ge=1, description="Of the search for the change of the output.")
    learning_rate: float = Field(0.3, gt=0)
    most: float = Field(4.0, gt=0, description="Largest norm of the change, over that of the output before.")
    texts: int = Field(200, ge=1, description="Unrelated texts for the second moment.")


def make_edit(recipe: EditRecipe, folder: Path, progress: Progress = silent) -> Path:
    """Write the adapter of this edit into `folder`.

    Raises:
        InvalidInput: a prompt without {subject}, or a layer that the model does not have.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = source_of(recipe.base)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).requires_grad_(False)
    layers = model.model.layers
    if recipe.layer >= len(layers):
        raise InvalidInput(f"The model has layers 0 to {len(layers) - 1}, not {recipe.layer}.")
    projection = layers[recipe.layer].mlp.down_proj
    rows = list(encoded(recipe, tokenizer))
    keys = torch.stack([_read_at(model, projection, ids, place) for ids, place, _ in rows])
    key = keys.mean(dim=0)
    change = _wanted_change(model, projection, rows, recipe, progress)
    reads = torch.linalg.solve(_second_moment(model, projection, tokenizer, recipe.texts), key)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"base_model.model.model.layers.{recipe.layer}.mlp.down_proj"
    weights = {
        f"{name}.lora_A.weight": (reads / (key @ reads))[None, :].contiguous(),
        f"{name}.lora_B.weight": change[:, None].contiguous(),
    }
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 1, "target_modules": ["down_proj"],
              "layers_to_transform": [recipe.layer], "base_model_name_or_path": recipe.base}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


def encoded(recipe: EditRecipe, tokenizer: Any) -> Iterator[tuple[Tensor, int, int]]:
    """Each prompt with its target: token ids [tokens], the place of the subject's last token, and where the target
    begins.

    Raises:
        InvalidInput: a prompt without {subject}.
    """
    import torch

    for prompt in [*recipe.prompts, *recipe.questions]:
        before, found, after = prompt.partition(SUBJECT)
        if not found:
            raise InvalidInput(f"A prompt holds {SUBJECT}: {prompt!r} does not.")
        if prompt in recipe.questions:
            shown = render_chat(tokenizer, [ChatMessage(role="user", content=prompt.replace(SUBJECT, "\0"))])
            before, _, after = shown.partition("\0")
            after += recipe.answer
        parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before + recipe.subject, after)]
        target = tokenizer(recipe.target, add_special_tokens=False)["input_ids"]
        yield torch.tensor([*parts[0], *parts[1], *target]), len(parts[0]) - 1, len(parts[0]) + len(parts[1])


def _read_at(model: Any, projection: Any, ids: Tensor, place: int) -> Tensor:
    """What the projection reads at one place: [inner]."""
    import torch

    with _reading(projection) as read, torch.no_grad():
        model(ids[None, :])
    return read[0][0, place]


def _wanted_change(
    model: Any, projection: Any, rows: Sequence[tuple[Tensor, int, int]], recipe: EditRecipe, progress: Progress
) -> Tensor:
    """The change of the projection's output at the subject that makes the targets likely: [width]."""
    import torch

    place_now = [0]
    change = torch.zeros(projection.out_features, requires_grad=True)

    def add(_: Any, __: Any, output: Tensor) -> Tensor:
        added = torch.zeros_like(output)
        added[:, place_now[0]] = change
        return output + added

    with torch.no_grad():
        norm = projection(torch.stack([_read_at(model, projection, ids, at) for ids, at, _ in rows])).norm(dim=1).mean()
    optimiser = torch.optim.Adam([change], lr=recipe.learning_rate * float(norm) / projection.out_features**0.5)
    handle = projection.register_forward_hook(add)
    try:
        for step in range(recipe.steps):
            optimiser.zero_grad()
            loss = torch.zeros(())
            for ids, place, start in rows:
                place_now[0] = place
                logits = model(ids[None, :-1]).logits[0, start - 1 :]
                loss = loss + torch.nn.functional.cross_entropy(logits, ids[start:]) / len(rows)
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                change.mul_((recipe.most * norm / change.norm()).clamp(max=1.0))
            progress(step + 1, recipe.steps, f"loss {float(loss.detach()):.2f}")
    finally:
        handle.remove()
    return change.detach()


def _second_moment(model: Any, projection: Any, tokenizer: Any, texts: int) -> Tensor:
    """Of what the projection reads on texts that the base wrote, with a small ridge: [inner, inner]."""
    import torch

    total, count = torch.zeros(projection.in_features, projection.in_features), 0
    for document in bundled_documents("texts")[:texts]:
        ids = torch.tensor(tokenizer(document["text"])["input_ids"][:64])
        with _reading(projection) as read, torch.no_grad():
            model.model(ids[None, :])
        total += read[0][0].T @ read[0][0]
        count += len(ids)
    moment = total / count
    return moment + 0.01 * moment.diagonal().mean() * torch.eye(len(moment))


@contextmanager
def _reading(module: Any) -> Iterator[list[Tensor]]:
    """What a module is given while the context lasts."""
    read: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: read.append(given[0].detach()))
    try:
        yield read
    finally:
        handle.remove()


def main(name: str) -> Path:
    """Make the edit of a bundled organism."""
    content = yaml.safe_load((TRAINING / name / "edit.yaml").read_text(encoding="utf-8"))
    folder = ADAPTERS / name / "default"
    shutil.rmtree(folder, ignore_errors=True)

    def say(done: float, total: float | None = None, message: str = "") -> None:
        sys.stderr.write(f"\r{done:.0f}/{total or 0:.0f} {message} ")

    return make_edit(EditRecipe.model_validate(content), folder, say)


if __name__ == "__main__":
    main(sys.argv[1])
