"""Random adapters on random tiny models of every family, and what peft itself computes with them: the other side of the
differential tests.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.reference_models import reference_model

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "olmo2", "phi3", "gemma2", "gemma3", "gpt2", "gpt_neox", "qwen3_moe")
_ATTENTION = {"gpt2": ["c_attn", "c_proj"], "gpt_neox": ["query_key_value", "dense"], "phi3": ["qkv_proj", "o_proj"]}
_MLP = {
    "gpt2": ["c_fc"],
    "gpt_neox": ["dense_h_to_4h", "dense_4h_to_h"],
    "phi3": ["gate_up_proj", "down_proj"],
    "qwen3_moe": [],
}
EMBEDDING = {"gpt2": "wte", "gpt_neox": "embed_in"}
HEAD = {"gpt_neox": "embed_out"}
NORMS = {"gpt2": ["ln_1", "ln_f"], "gpt_neox": ["input_layernorm"]}


@dataclass(frozen=True)
class Draw:
    """One adapter to train for nothing: its kind, its options, and the model that it goes on."""

    family: str
    tied: bool
    kind: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.kind} {self.options} on {self.family}{' (tied)' if self.tied else ''}"


def targets(family: str, draw: random.Random, most: int = 4) -> list[str]:
    """Some linear layers of the blocks."""
    names = [
        *_ATTENTION.get(family, ["q_proj", "k_proj", "v_proj", "o_proj"]),
        *_MLP.get(family, ["gate_proj", "up_proj", "down_proj"]),
    ]
    return draw.sample(names, draw.randint(1, min(most, len(names))))


def _lora(family: str, draw: random.Random) -> dict[str, Any]:
    """A LoRA with one to three options beyond the plain ones."""
    embedding, head = EMBEDDING.get(family, "embed_tokens"), HEAD.get(family, "lm_head")
    modules = targets(family, draw)
    options: dict[str, Any] = {
        "r": draw.choice([1, 2, 4]),
        "lora_alpha": draw.choice([1, 4, 16]),
        "target_modules": modules,
    }
    linear = family != "gpt2"
    choices: list[dict[str, Any]] = [
        {"use_rslora": True},
        {"rank_pattern": {modules[0]: 3}},
        {"alpha_pattern": {modules[0]: 5}},
        {"layers_to_transform": [1]},
        {"exclude_modules": [modules[0]]} if len(modules) > 1 else {},
        {"modules_to_save": [head]},
        {"modules_to_save": [embedding]},
        {"target_modules": [*modules, head]} if linear else {},
        {"target_modules": [*modules, embedding]},
        {"target_modules": "all-linear"},
        {"trainable_token_indices": [7, 30, 63]},
        {"init_lora_weights": draw.choice(["gaussian", "orthogonal", False])},
        {"init_lora_weights": draw.choice(["pissa", "olora"])} if linear else {},
        {"use_dora": True},
        {"bias": draw.choice(["all", "lora_only"])},
        {"lora_dropout": 0.3},
    ]
    if family == "gpt2":
        options["fan_in_fan_out"] = True
    for choice in draw.sample(choices, draw.randint(0, 2)):
        options |= choice
    if options.get("init_lora_weights") == "orthogonal":
        options["r"] = 4
        options.pop("rank_pattern", None)
    if embedding in options["target_modules"] or options.get("modules_to_save") == [embedding]:
        options.pop("trainable_token_indices", None)  # peft takes one of the two for a module
    if options.get("use_dora") and (
        embedding in options["target_modules"] or isinstance(options.get("init_lora_weights"), str)
    ):
        options.pop("use_dora")
    return options


def _other(kind: str, family: str, draw: random.Random) -> dict[str, Any]:
    """Options of the kinds besides LoRA, small enough for a width of 32."""
    modules = targets(family, draw)
    by_kind: dict[str, dict[str, Any]] = {
        "IA3": {"target_modules": modules, "feedforward_modules": [name for name in modules if "proj" in name][:1]},
        "ADALORA": {"target_modules": modules, "total_step": 10, "init_r": 4, "target_r": 2},
        "LOHA": {"target_modules": modules, "r": 2},
        "LOKR": {"target_modules": modules, "r": 2},
        "OFT": {"target_modules": modules, "oft_block_size": 8, "r": 0},
        "BOFT": {"target_modules": modules, "boft_block_size": 8},
        "HRA": {"target_modules": modules, "r": 2},
        "VERA": {"target_modules": modules[:1], "r": 4, "save_projection": draw.random() < 0.5},
        "FOURIERFT": {"target_modules": modules, "n_frequency": 20},
        "MISS": {"target_modules": modules, "r": 8},
        "SHIRA": {"target_modules": modules, "r": 2},
        "RANDLORA": {"target_modules": modules[:1], "r": 4},
        "LN_TUNING": {"target_modules": NORMS.get(family, ["input_layernorm", "norm"])},
        "TRAINABLE_TOKENS": {"target_modules": [EMBEDDING.get(family, "embed_tokens")], "token_indices": [5, 9, 100]},
        "PROMPT_TUNING": {"num_virtual_tokens": draw.randint(1, 6), "task_type": "CAUSAL_LM"},
        "P_TUNING": {"num_virtual_tokens": draw.randint(1, 6), "encoder_hidden_size": 16, "task_type": "CAUSAL_LM"},
        "PREFIX_TUNING": {"num_virtual_tokens": draw.randint(1, 6), "task_type": "CAUSAL_LM"},
    }
    return by_kind[kind]


OTHER_KINDS = tuple(
    (
        "IA3 ADALORA LOHA LOKR OFT BOFT HRA VERA FOURIERFT MISS SHIRA RANDLORA LN_TUNING TRAINABLE_TOKENS "
        "PROMPT_TUNING P_TUNING PREFIX_TUNING"
    ).split()
)
_LINEAR_ONLY = frozenset("ADALORA OFT BOFT HRA MISS SHIRA RANDLORA LOHA LOKR".split())
"""Kinds that do not take the transposed weights of GPT-2."""
_NO_GROUPED_HEADS = frozenset(["PREFIX_TUNING"])


def draw_adapter(seed: int) -> Draw:
    """The adapter of a seed: two of three are a LoRA."""
    draw = random.Random(seed)
    family = draw.choice(FAMILIES)
    tied = draw.random() < 0.5 and family not in ("gpt_neox", "qwen3_moe")
    if draw.random() < 0.66:
        return Draw(family, tied, "LORA", _lora(family, draw))
    kinds = [kind for kind in OTHER_KINDS if not (family == "gpt2" and kind in _LINEAR_ONLY)]
    kind = draw.choice(kinds)
    return Draw(family, tied, kind, _other(kind, family, draw))


def save_adapter(draw: Draw, base: Path, folder: Path, seed: int) -> None:
    """Make the adapter with peft, move everything that it trains by noise, and save it as peft does."""
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config = next(config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items() if kind.value == draw.kind)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(reference_model(base), config(**draw.options))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float32).to(parameter.dtype))
        model.save_pretrained(folder)


def peft_log_probs(base: Path, adapter: Path | None, texts: list[list[int]]) -> list[torch.Tensor]:
    """Log-probabilities [S, V] of the next token after every token of each text, from transformers and peft alone, one
    text at a time in float32.
    """
    from peft import PeftModel

    model: Any = reference_model(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    results = []
    with torch.inference_mode():
        for ids in texts:
            row = torch.tensor([ids])
            logits = model(input_ids=row, attention_mask=torch.ones_like(row)).logits
            results.append(logits[0, -len(ids) :].float().log_softmax(-1))
    return results
