"""Text that a base model writes itself: the bundled corpora of the embedded one, and what nulls of any base are trained
on. `python -m diffing_mcp.organisms.sample_corpus NAME` makes a bundled one (names in corpora/prompts.yaml).

Batch i is sampled with the recorded seed + i and appended as a whole, so an interrupted run goes on where it stopped
and every line can be made again.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any, Literal

import yaml

from diffing_mcp.core.chat import ChatMessage, render_chat
from diffing_mcp.core.devices import one_device
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.organisms.embedded import EMBEDDED_ID, embedded_model_folder
from diffing_mcp.organisms.train import (
    Document,
    base_model,
    check_chats,
    padding_of,
    read_json_lines,
    room_for,
    source_of,
)

CORPORA = Path(__file__).parent / "corpora"
BATCH = 96
OWN = {"texts": "unrelated_texts", "chats": "control"}
"""What of prompts.yaml a base's own texts and chats are sampled with."""
OWN_DOCUMENTS = 480
"""Documents sampled of a base other than the embedded one."""


def prompts_of(entry: dict[str, Any]) -> list[str]:
    """Every form with every topic once, in an order fixed by the seed."""
    prompts = [form.format(topic=topic) for form in entry["forms"] for topic in entry["topics"]]
    random.Random(entry["seed"]).shuffle(prompts)
    return prompts


def own_documents(
    base: str, kind: Literal["texts", "chats"], folder: Path, progress: Progress = silent
) -> list[Document]:
    """What a base wrote itself: bundled for the embedded one, else sampled once into `folder`."""
    if base == EMBEDDED_ID:
        return bundled_documents(kind)
    entry = _entry(OWN[kind])
    path = sample(source_of(base), entry, prompts_of(entry)[:OWN_DOCUMENTS], folder / f"own_{kind}.jsonl", progress)
    return read_json_lines(path)


def bundled_documents(kind: Literal["texts", "chats"]) -> list[Document]:
    """What the embedded base wrote itself."""
    return read_json_lines((CORPORA / _entry(OWN[kind])["file"]).resolve())


def _entry(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CORPORA / "prompts.yaml").read_text())[name])


def sample(source: str, entry: dict[str, Any], prompts: list[str], path: Path, progress: Progress = silent) -> Path:
    """Write (or finish) the answers of the model at `source` to the prompts; returns `path`. Lines: `{"text"}` or
    `{"messages"}`, with `prompt` and `seed`.

    Raises:
        InvalidInput: the model has no chat template.
        OutOfRoom: the device has not enough memory; the same call goes on after what is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done = _whole_batches(path, len(prompts))
    if done < len(prompts):
        device = one_device()
        with room_for(f"Sampling from {source}", device):
            _sample_from(done, source, entry, prompts, path, device, progress)
    return path


def _sample_from(
    done: int, source: str, entry: dict[str, Any], prompts: list[str], path: Path, device: str, progress: Progress
) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    check_chats(tokenizer)
    model = base_model(source, device).eval()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding_of(tokenizer, model))
    for start in range(done, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        seed = entry["seed"] + start // BATCH
        torch.manual_seed(seed)
        rendered = [render_chat(tokenizer, [ChatMessage(role="user", content=prompt)]) for prompt in batch]
        inputs = tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
        with torch.inference_mode():
            out = model.generate(
                **inputs,
                do_sample=True,
                temperature=entry["temperature"],
                top_p=entry["top_p"],
                top_k=0,
                min_new_tokens=entry["min_new_tokens"],
                max_new_tokens=entry["max_new_tokens"],
            )
        answers = tokenizer.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        lines = []
        for prompt, answer in zip(batch, answers, strict=True):
            if entry["kind"] == "text":
                record = {"text": answer.strip(), "prompt": prompt, "seed": seed}
            else:
                messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer.strip()}]
                record = {"messages": messages, "seed": seed}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
        progress(start + len(batch), len(prompts), "sampling what the base writes itself")


def _whole_batches(path: Path, wanted: int) -> int:
    """Documents that are written; of a batch that was cut off in the middle nothing stays, so that it is sampled again
    with its own seed.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    if len(lines) >= wanted:
        return wanted
    kept = len(lines) - len(lines) % BATCH
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(sum(len(line) + 1 for line in lines[:kept]))
    return kept


def main(name: str) -> Path:
    """Write (or finish) a bundled corpus."""
    entry = _entry(name)
    return sample(str(embedded_model_folder()), entry, prompts_of(entry), (CORPORA / entry["file"]).resolve())


if __name__ == "__main__":
    print(main(sys.argv[1]))
