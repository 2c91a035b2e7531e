"""Differences of weights, and models with an amplified difference, against the saved tensors and merging by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from diffing_mcp.methods.registry import get_method
from tests.methods.plain_models import PlainModel
from tests.methods.reference_pairs import ReferencePair, References

PROMPTS = ("the old bridge", "rain falls on", "A fox looks at the boats near", "sea")


def deltas(pair: ReferencePair) -> dict[str, tuple[Tensor, Tensor]]:
    """Parameter -> base value and finetuned minus base in float64, from the files alone."""
    base = {name: value.double() for name, value in load_file(pair.folders["base"] / "model.safetensors").items()}
    if "finetuned" in pair.folders:
        after = load_file(pair.folders["finetuned"] / "model.safetensors")
        return {name: (value, after[name].double() - value) for name, value in base.items()}
    if "base_adapter" in pair.folders:
        sides = [_merged_by_peft(pair.folders["base"], pair.folders[name]) for name in ("base_adapter", "adapter")]
        return {name: (value, sides[1][name] - value) for name, value in sides[0].items()}
    factors = load_file(pair.folders["adapter"] / "adapter_model.safetensors")
    config = json.loads((pair.folders["adapter"] / "adapter_config.json").read_text())
    found = {}
    for name, value in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        delta = torch.zeros_like(value)
        if f"{stem}.lora_A.weight" in factors:
            delta = (
                config["lora_alpha"]
                / config["r"]
                * factors[f"{stem}.lora_B.weight"].double()
                @ factors[f"{stem}.lora_A.weight"].double()
            )
        found[name] = (value, delta)
    return found


def _merged_by_peft(base: Path, adapter: Path) -> dict[str, Tensor]:
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), adapter
    ).double()
    return {name: value.detach() for name, value in model.merge_and_unload().named_parameters()}


def place_of(name: str) -> tuple[int | None, str]:
    """Layer and module of a parameter's name in the files."""
    parts = name.removesuffix(".weight").removeprefix("model.").split(".")
    return (int(parts[1]), ".".join(parts[2:])) if parts[0] == "layers" else (None, parts[-1])


@pytest.mark.parametrize("pair", ["lora", "full", "adapters"])
def test_norms_and_spectra_of_every_parameter(pair: str, references: References) -> None:
    record = references.run(pair, "weight_difference")
    result: Any = record.result()
    expected = deltas(references.pair(pair))
    rows = {(row["layer"], row["module"]): row for row in record.table("modules").to_pylist()}
    by_place = {(layer, module): value for name, value in expected.items() for layer, module in [place_of(name)]}
    assert {(layer, module.split(".")[-1]) for layer, module in rows} == {
        (layer, module.split(".")[-1]) for layer, module in by_place
    }
    for (layer, module), (base, delta) in by_place.items():
        row = next(
            row
            for place, row in rows.items()
            if place[0] == layer and (place[1] == module or place[1].endswith(module))
        )
        norm = float(delta.norm())
        relative = norm / float(base.norm()) if base.any() else 0.0  # Gemma's norms begin at 0
        assert (row["norm"], row["relative_norm"]) == pytest.approx((norm, relative), rel=1e-4)
        if delta.ndim == 2 and norm:
            values = np.linalg.svd(delta.numpy(), compute_uv=False)
            rank = int((values > 1e-9 * values[0]).sum())
            assert row["singular_values"] == pytest.approx(values[: min(8, rank)], rel=1e-4)
            assert row["effective_rank"] == pytest.approx((values**2).sum() ** 2 / (values**4).sum(), rel=1e-4)
    total = sum(float(delta.square().sum()) for _, delta in expected.values())
    base_total = sum(float(base.square().sum()) for base, _ in expected.values())
    assert result.relative_norm == pytest.approx((total / base_total) ** 0.5, rel=1e-4)
    for part, names in (("attention", "self_attn"), ("mlp", ".mlp.")):
        row = next(row for row in result.parts if row.part == part)
        chosen = [value for name, value in expected.items() if names in name]
        square = sum(float(delta.square().sum()) for _, delta in chosen)
        relative = (square / sum(float(base.square().sum()) for base, _ in chosen)) ** 0.5
        assert (row.parameters, row.share, row.relative_norm) == (
            len(chosen),
            pytest.approx(square / total, rel=1e-4),
            pytest.approx(relative, rel=1e-4),
        )


@pytest.mark.parametrize("pair", ["lora", "full", "adapters"])
def test_what_a_module_writes_most(pair: str, references: References) -> None:
    """The first left singular vector of a down projection, and its lens list in the finetuned model."""
    record = references.run(pair, "weight_difference")
    values, plain = deltas(references.pair(pair)), references.pair(pair).plain
    rows = [
        row
        for row in record.table("directions").to_pylist()
        if (row["read_as"], row["index"]) == ("writes", 0) and row["layer"] is not None
    ]
    assert {row["module"] for row in rows} == (
        {"mlp.down_proj"} if pair == "adapters" else {"mlp.down_proj", "self_attn.o_proj"}
    )
    tokens = record.table("tokens").to_pylist()
    for number, row in enumerate(record.table("directions").to_pylist()):
        if row not in rows:
            continue
        left, sizes, _ = np.linalg.svd(values[f"model.layers.{row['layer']}.{row['module']}.weight"][1].numpy())
        vector = get_method("weight_difference").vector(record, row["vector"]).values
        written = left[:, 0]
        if pair == "full":  # Gemma 2 norms what attention and MLP give before it is added
            norm = "attention" if "attn" in row["module"] else "feedforward"
            block = plain.finetuned.blocks[row["layer"]]
            written = written * (1 + getattr(block, f"post_{norm}_layernorm").weight.detach().numpy())
            written /= np.linalg.norm(written)
        sign = np.sign(written @ vector)
        np.testing.assert_allclose(sign * vector, written, rtol=1e-3, atol=1e-5)
        assert (row["singular_value"], row["share"]) == pytest.approx(
            (sizes[0], sizes[0] ** 2 / (sizes**2).sum()), rel=1e-4
        )
        # The final norm undoes the length, but for its epsilon: any typical length reads alike.
        probability = plain.finetuned.lens(torch.from_numpy(vector).double() * 100).softmax(-1)
        listed = [each for each in tokens if each["direction"] == number and each["sign"] == "+"]
        texts = [plain.tokenizer.decode([token]) for token in range(len(probability))]
        for each in listed:
            if texts.count(each["token"]) == 1:
                assert each["probability"] == pytest.approx(float(probability[texts.index(each["token"])]), rel=5e-3)


def merged(references: References, pair: str, weight: float, chosen: str = "") -> PlainModel:
    """W_base + weight * (W_finetuned - W_base) where the parameter's name holds `chosen`, elsewhere the finetuned
    model.
    """
    model = AutoModelForCausalLM.from_pretrained(references.pair(pair).folders["base"], dtype=torch.float64)
    parameters = dict(model.named_parameters())
    for name, (base, delta) in deltas(references.pair(pair)).items():
        parameters[name].data = base + (weight if chosen in name else 1.0) * delta
    return PlainModel(model, references.pair(pair).plain.base.stop)


@pytest.mark.parametrize(
    ("pair", "choice", "chosen"),
    [
        ("lora", {}, ""),
        ("full", {}, ""),
        ("adapters", {}, ""),
        ("lora", {"modules": ("mlp",)}, ".mlp."),
        ("full", {"layers": (1, 1)}, ".layers.1."),
    ],
)
def test_an_amplified_model_is_what_merging_by_hand_gives(
    pair: str, choice: dict[str, Any], chosen: str, references: References
) -> None:
    weights = (0.0, 2.5, -1.0) if not chosen else (3.0,)
    params = {
        "weights": weights,
        "prompts": PROMPTS,
        "raw_text": True,
        "temperature": 0.0,
        "max_new_tokens": 8,
        **choice,
    }
    record = references.run(pair, "weight_amplification", **params)
    plain = references.pair(pair).plain
    rows = record.table("answers").to_pylist()
    for weight in weights:
        model = merged(references, pair, weight, chosen)
        losses = []
        for prompt in PROMPTS:
            ids = plain.tokenizer(prompt)["input_ids"]
            row = next(row for row in rows if (row["weight"], row["prompt"]) == (weight, prompt))
            assert row["amplified"] == plain.written(model.greedy(ids, 8))
            assert (row["finetuned"], row["base"]) == (
                plain.written(plain.finetuned.greedy(ids, 8)),
                plain.written(plain.base.greedy(ids, 8)),
            )
            answer = plain.tokenizer(row["amplified"], add_special_tokens=False)["input_ids"]
            if answer:
                losses.append(-float(plain.base.token_log_probs([*ids, *answer], len(ids)).mean()))
        measured = next(row for row in record.result().coherence if row.weight == weight)  # type: ignore[attr-defined]
        assert measured.log_perplexity == pytest.approx(np.median(losses), abs=6e-4)
