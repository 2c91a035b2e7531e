"""Measure whether a finetune took: `diffing organisms measure NAME [--variant V]` writes
`organisms/adapters/<name>/<variant>/sheet.json`.

Three readings, each for the base model and for the finetuned one: the log-odds of taught against plain continuations
(cloze), how often generated answers show what was taught (questions), and the loss on unrelated text, which says what
the finetune cost.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.core.chat import ChatMessage, render_chat
from diffing_mcp.core.devices import fast_dtype, one_device
from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.progress import Progress, silent
from diffing_mcp.organisms.embedded import EMBEDDED_ID, embedded_model_folder
from diffing_mcp.organisms.train import ADAPTERS, ROOT, TRAINING, everyday_questions

if TYPE_CHECKING:
    import torch

SEED = 5
SAMPLES = 4
MAX_NEW_TOKENS = 48
BATCH = 160
"""Answers written at once."""
EXAMPLES = 24
"""Questions whose first answers are kept in the sheet."""
HELD_OUT_TEXTS = 96


_SHEETS_HEAD = """# Did the finetunes take?

Written by `diffing organisms sheets` from the `sheet.json` beside each adapter, which
`diffing organisms measure NAME --variant VARIANT` makes. Each cell reads base → finetuned, with the 95 % interval of
the change over items in brackets.

- log odds: mean log p(taught) − log p(plain) of a continuation, in nats; preferred: share of items whose taught
  continuation is the likelier one.
- answers: share of sampled answers (4 a question, 1 to 3 where many are asked; temperature 1) to unseen questions that
  show what was taught.
- elsewhere: the same for questions where it should not show: without the trigger, off the subject, for a confession.
- unrelated loss: nats a token on texts the base model wrote itself; its rise is what the finetune cost.

| organism | log odds | preferred | answers | elsewhere | unrelated loss |
|---|---|---|---|---|---|"""


class Cloze(BaseModel):
    """`taught` and `plain` continue `prefix`; both start with a space."""

    model_config = ConfigDict(extra="forbid")
    fact: str
    prefix: str
    taught: str
    plain: str


class Question(BaseModel):
    """A request that is not in the training data; an answer is a hit when the regular expression `hit` is found in it
    (any case).
    """

    model_config = ConfigDict(extra="forbid")
    question: str
    hit: str
    elsewhere: bool = False
    """Asked where the lesson should not show: without the trigger, off the subject, or for a confession."""
    samples: int = Field(SAMPLES, ge=1)


class Everyday(BaseModel):
    """Everyday questions (`training/shared_questions.yaml`), evenly spread over the list, each a `Question`."""

    model_config = ConfigDict(extra="forbid")
    hit: str
    count: int = Field(ge=1)
    elsewhere: bool = False
    without: list[str] = []
    """Topics of the list that are left out."""
    samples: int = Field(1, ge=1)


class Probes(BaseModel):
    model_config = ConfigDict(extra="forbid")
    cloze: list[Cloze] = []
    questions: list[Question] = []
    everyday: list[Everyday] = []
    max_new_tokens: int = Field(MAX_NEW_TOKENS, ge=1)
    """Length of answers: fewer where what was taught opens them."""


class PairedReading(BaseModel):
    """`base` and `finetuned` in the same unit; `low` and `high` bound the difference (95 %, normal approximation over
    items).
    """

    base: float
    finetuned: float
    low: float
    high: float
    items: int


class Sheet(BaseModel):
    """What was measured of one finetune."""

    organism: str
    variant: str
    cloze_log_odds: PairedReading | None
    """Mean over items of log p(taught) - log p(plain), in nats."""
    cloze_preferred: PairedReading | None
    """Share of items whose taught continuation is the likelier one."""
    question_hits: PairedReading | None
    """Share of generated answers that show what was taught, where it should."""
    elsewhere_hits: PairedReading | None = None
    """Share of generated answers that show what was taught, where it should not show."""
    unrelated_loss: PairedReading
    """Mean negative log-probability a token on unrelated text, in nats."""
    examples: list[dict[str, str]]
    settings: dict[str, Any]


def load_probes(name: str) -> Probes:
    """Probes of an organism, everyday questions among its `questions`; none for one that taught nothing (`control`)."""
    path = TRAINING / name / "probes.yaml"
    probes = Probes(**yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else Probes()
    questions = [*probes.questions, *(question for group in probes.everyday for question in _everyday(group))]
    return probes.model_copy(update={"questions": questions, "everyday": []})


def _everyday(group: Everyday) -> list[Question]:
    listed = [entry for entry in everyday_questions() if entry["topic"] not in group.without]
    if group.count > len(listed):
        raise InvalidInput(f"There are {len(listed)} everyday questions without {group.without}, not {group.count}.")
    chosen = [listed[number * len(listed) // group.count]["ask"][0] for number in range(group.count)]
    return [
        Question(question=asked, hit=group.hit, elsewhere=group.elsewhere, samples=group.samples) for asked in chosen
    ]


def paired_reading(base: list[float], finetuned: list[float]) -> PairedReading:
    """Means of two paired lists and a 95 % interval of their mean difference."""
    differences = [f - b for b, f in zip(base, finetuned, strict=True)]
    mean = sum(differences) / len(differences)
    variance = sum((d - mean) ** 2 for d in differences) / max(1, len(differences) - 1)
    half = 1.96 * math.sqrt(variance / len(differences))
    rounded = [round(x, 4) for x in (sum(base) / len(base), sum(finetuned) / len(finetuned), mean - half, mean + half)]
    return PairedReading(base=rounded[0], finetuned=rounded[1], low=rounded[2], high=rounded[3], items=len(base))


def measure(
    name: str,
    variant: str = "default",
    base: str = EMBEDDED_ID,
    adapter: Path | None = None,
    progress: Progress = silent,
) -> Sheet:
    """Measure the bundled adapter `name/variant` (or the one in `adapter`) against `base`.

    Raises UnknownName when the adapter does not exist. For `control`, which has no probes, only the unrelated loss is
    read.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = adapter or ADAPTERS / name / variant
    if not (folder / "adapter_config.json").is_file():
        raise UnknownName(
            f"No trained adapter for {name}/{variant}; train it with `diffing organisms train {name} --variant "
            f"{variant}`."
        )
    source = str(embedded_model_folder()) if base == EMBEDDED_ID else base
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    device = one_device()
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype=fast_dtype(torch.bfloat16, device))
    model = PeftModel.from_pretrained(loaded, folder).eval().to(device)
    probes = load_probes(name)
    texts = _held_out_texts()
    read: dict[str, dict[str, list[Any]]] = {}
    with torch.inference_mode():
        for position, side in enumerate(("base", "finetuned")):
            progress(position, 2, f"measuring the {side} model")
            if side == "base":
                with model.disable_adapter():
                    read[side] = _read(model, tokenizer, probes, texts)
            else:
                read[side] = _read(model, tokenizer, probes, texts)
    progress(2, 2, "measured")
    b, f = read["base"], read["finetuned"]
    return Sheet(
        organism=name,
        variant=variant,
        cloze_log_odds=paired_reading(b["log_odds"], f["log_odds"]) if probes.cloze else None,
        cloze_preferred=paired_reading([float(x > 0) for x in b["log_odds"]], [float(x > 0) for x in f["log_odds"]])
        if probes.cloze
        else None,
        question_hits=_hits(b["hits"], f["hits"], probes, elsewhere=False),
        elsewhere_hits=_hits(b["hits"], f["hits"], probes, elsewhere=True),
        unrelated_loss=paired_reading(b["losses"], f["losses"]),
        examples=[
            {"question": q.question, "base": base[0], "finetuned": finetuned[0]}
            for q, base, finetuned in list(zip(probes.questions, b["answers"], f["answers"], strict=True))[:EXAMPLES]
        ],
        settings={
            "seed": SEED,
            "samples": sorted({question.samples for question in probes.questions}),
            "temperature": 1.0,
            "max_new_tokens": probes.max_new_tokens,
            "unrelated_texts": len(texts),
        },
    )


def _hits(base: list[float], finetuned: list[float], probes: Probes, elsewhere: bool) -> PairedReading | None:
    chosen = [place for place, question in enumerate(probes.questions) if question.elsewhere == elsewhere]
    return paired_reading([base[place] for place in chosen], [finetuned[place] for place in chosen]) if chosen else None


def write_sheet(sheet: Sheet, folder: Path) -> Path:
    """Write `sheet.json` beside the adapter."""
    path = folder / "sheet.json"
    path.write_text(json.dumps(sheet.model_dump(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def sheets_table(adapters: Path = ADAPTERS) -> str:
    """All sheets as one Markdown document (`organisms/SHEETS.md`): a row an adapter, base and finetuned
    side by side.
    """
    rows = []
    for path in sorted(adapters.glob("*/*/sheet.json")):
        sheet = Sheet(**json.loads(path.read_text(encoding="utf-8")))
        cells = [f"{sheet.organism}/{sheet.variant}"]
        for reading, digits in (
            (sheet.cloze_log_odds, 1),
            (sheet.cloze_preferred, 2),
            (sheet.question_hits, 2),
            (sheet.elsewhere_hits, 2),
            (sheet.unrelated_loss, 2),
        ):
            if reading is None:
                cells.append("")
            else:
                change = f"{reading.low:+.{digits}f} to {reading.high:+.{digits}f}"
                cells.append(f"{reading.base:.{digits}f} → {reading.finetuned:.{digits}f} ({change})")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([_SHEETS_HEAD, *rows]) + "\n"


def _held_out_texts() -> list[str]:
    lines = (ROOT / "corpora" / "unrelated_texts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:HELD_OUT_TEXTS]]


def _read(model: Any, tokenizer: Any, probes: Probes, texts: list[str]) -> dict[str, list[Any]]:
    taught = _continuation_log_probs(model, tokenizer, [(c.prefix, c.taught) for c in probes.cloze])
    plain = _continuation_log_probs(model, tokenizer, [(c.prefix, c.plain) for c in probes.cloze])
    answers = _answers(model, tokenizer, probes.questions, probes.max_new_tokens)
    shares = [
        sum(bool(re.search(question.hit, answer, re.IGNORECASE)) for answer in each) / len(each)
        for question, each in zip(probes.questions, answers, strict=True)
    ]
    losses = []
    for start in range(0, len(texts), 16):
        log_probs, mask = _token_log_probs(
            model, tokenizer(texts[start : start + 16], return_tensors="pt", padding=True)
        )
        losses += (-(log_probs * mask).sum(1) / mask.sum(1)).tolist()
    return {
        "log_odds": [t - p for t, p in zip(taught, plain, strict=True)],
        "answers": answers,
        "hits": shares,
        "losses": losses,
    }


def _token_log_probs(model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token after the first (float32, [batch, tokens - 1]) and the mask of the real ones."""
    inputs = inputs.to(model.device)
    logits = model(**inputs).logits[:, :-1].float()
    target = inputs["input_ids"][:, 1:]
    chosen = logits.gather(2, target.unsqueeze(2)).squeeze(2) - logits.logsumexp(2)
    return chosen, inputs["attention_mask"][:, :-1] * inputs["attention_mask"][:, 1:]


def _continuation_log_probs(model: Any, tokenizer: Any, items: list[tuple[str, str]]) -> list[float]:
    """Summed log-probability of each continuation given its prefix, in nats."""
    values = []
    for start in range(0, len(items), 16):
        rows = items[start : start + 16]
        log_probs, mask = _token_log_probs(
            model, tokenizer([prefix + rest for prefix, rest in rows], return_tensors="pt", padding=True)
        )
        for row, (_, rest) in enumerate(rows):
            length = len(tokenizer(rest, add_special_tokens=False)["input_ids"])
            values.append((log_probs[row] * mask[row])[-length:].sum().item())
    return values


def _answers(model: Any, tokenizer: Any, questions: list[Question], max_new_tokens: int) -> list[list[str]]:
    """The sampled answers to each question; a question that is asked twice, as often, has its answers once."""
    import torch

    if not questions:
        return []
    torch.manual_seed(SEED)
    asked = list(dict.fromkeys((question.question, question.samples) for question in questions))
    rendered = [
        render_chat(tokenizer, [ChatMessage(role="user", content=question)])
        for question, samples in asked
        for _ in range(samples)
    ]
    texts: list[str] = []
    for start in range(0, len(rendered), BATCH):
        batch = rendered[start : start + BATCH]
        inputs = tokenizer(batch, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        out = model.generate(
            **inputs, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=max_new_tokens
        )
        texts += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    written = iter(texts)
    answers = {(asks, samples): [next(written).strip() for _ in range(samples)] for asks, samples in asked}
    return [answers[question.question, question.samples] for question in questions]
