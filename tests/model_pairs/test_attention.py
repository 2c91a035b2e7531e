"""Models run with the attention that they were trained with, and both sides of a pair with the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffing_mcp.core.attention import attention_of
from diffing_mcp.model_pairs.fingerprint import model_identity
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.resolve import resolve_pair
from diffing_mcp.model_pairs.specs import ModelFiles, PairSpec
from tests.conftest import TinyModels

IDS = torch.tensor([[7, 30, 41, 52, 63, 74, 85, 96]])


@pytest.mark.parametrize(
    ("named", "config", "expected"),
    [
        (None, {}, None),
        (None, {"attn_logit_softcapping": None}, None),
        (None, {"attn_logit_softcapping": 50.0}, "eager"),
        ("sdpa", {"attn_logit_softcapping": 50.0}, "eager"),
        ("flash_attention_2", {"attn_logit_softcapping": 50.0}, "flash_attention_2"),
        ("sdpa", {"final_logit_softcapping": 30.0}, "sdpa"),
        (None, {"text_config": {"attn_logit_softcapping": 50.0}}, "eager"),
    ],
)
def test_soft_capped_scores_are_not_left_to_sdpa(named: str | None, config: dict, expected: str | None) -> None:
    assert attention_of(named, config) == expected


def test_soft_capped_models_compute_what_was_trained(
    tiny_models: TinyModels, make_pair: Callable[..., PairSpec], pairs: ModelPairs
) -> None:
    """The cap is far below the scores, so that leaving it out shows."""
    from transformers import AutoModelForCausalLM

    folder = tiny_models(kind="gemma2", attn_logit_softcapping=0.05, query_pre_attn_scalar=1)
    trained = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    other = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    with torch.inference_mode():
        expected, uncapped = trained(IDS).logits, other(IDS).logits
    assert float((expected - uncapped).abs().max()) > 0.05, "the cap matters here"
    with pairs.use(make_pair(folder, declared_identical=True)) as pair:
        found = pair.forward("base", IDS, torch.ones_like(IDS)).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert model_identity(ModelFiles(id=str(folder)))["attn_implementation"] == "eager"


def test_a_finetune_runs_and_ends_as_the_catalogues_base_does(tiny_models: TinyModels) -> None:
    """Of the two sides of an ad hoc pair the catalogue often knows one."""
    folder = tiny_models()
    for text in (f"gemma-3-1b-it::{folder}", f"{folder}::gemma-3-1b-it"):
        spec = resolve_pair(text)
        for files in (spec.base.files, spec.finetuned.files):
            assert (files.attn_implementation, files.end_of_turn_token) == ("eager", "<end_of_turn>")
    spec = resolve_pair(f"{folder}::{tiny_models(seed=1)}")
    assert spec.base.files == ModelFiles(id=str(Path(folder)))


def test_permission_to_run_code_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_models) -> None:
    from diffing_mcp.model_pairs import resolve

    trusted = ModelFiles(id="some/model", trust_remote_code=True, thinking_switch=True)
    monkeypatch.setattr(resolve, "_files_named", lambda catalogue, name: trusted)
    spec = resolve_pair(f"smollm2-135m::{tiny_models()}")
    assert spec.finetuned.files.thinking_switch
    assert not spec.finetuned.files.trust_remote_code
