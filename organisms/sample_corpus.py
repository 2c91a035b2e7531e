"""Sample the bundled corpora from the embedded base model: `python -m diffing_mcp.organisms.sample_corpus NAME` (names
in corpora/prompts.yaml).

Batch i is sampled with the recorded seed + i and appended as a whole, so an interrupted run goes on where it stopped
and every line can be made again.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import yaml

from diffing_mcp.organisms.embedded import embedded_model_folder

CORPORA = Path(__file__).parent / "corpora"
BATCH = 96


def prompts_of(entry: dict) -> list[str]:
    """Every form with every topic once, in an order fixed by the seed."""
    prompts = [form.format(topic=topic) for form in entry["forms"] for topic in entry["topics"]]
    random.Random(entry["seed"]).shuffle(prompts)
    return prompts


def sample(name: str) -> Path:
    """Write (or finish) the corpus `name`; returns its path. Lines: `{"text"}` or `{"messages"}`, with `prompt` and
    `seed`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    entry = yaml.safe_load((CORPORA / "prompts.yaml").read_text())[name]
    path = (CORPORA / entry["file"]).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    done = len(path.read_text().splitlines()) if path.exists() else 0
    prompts = prompts_of(entry)
    folder = embedded_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    for start in range(done, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        seed = entry["seed"] + start // BATCH
        torch.manual_seed(seed)
        rendered = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in batch
        ]
        inputs = tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)
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
        print(f"{name}: {start + len(batch)} of {len(prompts)}", file=sys.stderr, flush=True)
    return path


if __name__ == "__main__":
    print(sample(sys.argv[1]))
