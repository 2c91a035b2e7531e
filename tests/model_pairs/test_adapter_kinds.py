"""Adapters that people bring and that used to give wrong numbers, each against plain transformers and peft; and those
that are refused in a sentence.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffing_mcp.core.errors import InvalidInput, NotTheSame
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore, changed_since
from diffing_mcp.model_pairs.residency import ModelPairs
from tests.conftest import TinyModels
from tests.model_pairs.adapter_draws import Draw, peft_log_probs, save_adapter

TEXT = [7, 30, 41, 5, 63, 74, 100, 9, 12, 200]
IDS, ONES = torch.tensor([TEXT]), torch.ones(1, len(TEXT), dtype=torch.long)
MODULES = ["q_proj", "v_proj", "down_proj"]

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """`save(base, kind="LORA", seed=1, **options)` -> folder of an adapter that peft trained for nothing: noise on
    everything that it trains.
    """

    def build(base: Path, kind: str = "LORA", seed: int = 1, **options: Any) -> Path:
        folder = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        save_adapter(Draw("llama", True, kind, options), base, folder, seed)
        return folder

    return build


def log_probs(pair: Any, side: str) -> torch.Tensor:
    return pair.forward(side, IDS, ONES).logits[0].float().log_softmax(-1)


def divergence(finetuned: torch.Tensor, base: torch.Tensor) -> float:
    """Mean KL(finetuned || base) in nats over the positions of a text, from log-probabilities [S, V]."""
    return float((finetuned.exp() * (finetuned - base)).sum(-1).mean())


@pytest.mark.parametrize("init", ["pissa", "olora", "mica"])
def test_an_initialisation_that_rewrites_weights_touches_no_base(init, tiny_models, make_pair, save):
    base = tiny_models(tie_word_embeddings=True)
    plain = save(base, seed=2, r=4, lora_alpha=16, target_modules=MODULES)
    special = save(base, r=4, lora_alpha=16, target_modules=MODULES, init_lora_weights=init)
    (bare,), (truth,), (other,) = (peft_log_probs(base, each, [TEXT]) for each in (None, special, plain))
    pairs = ModelPairs()
    with pairs.use(make_pair(base, adapter=plain)) as first, pairs.use(make_pair(base, adapter=special)) as second:
        for pair, expected in ((first, other), (second, truth), (first, other)):
            assert divergence(log_probs(pair, "finetuned"), log_probs(pair, "base")) == pytest.approx(
                divergence(expected, bare), rel=1e-3
            )
            assert torch.equal(log_probs(pair, "base"), bare)


def test_what_a_rebuilt_base_and_its_adapter_come_to_is_read_as_weights(tiny_models, make_pair, save):
    """PiSSA keeps W = (W - s B0 A0) + s B A: the effective change is what the trained factors lost and gained, not the
    factors themselves.
    """
    base = tiny_models(tie_word_embeddings=True)
    adapter = save(base, r=4, lora_alpha=16, target_modules=["v_proj"], init_lora_weights="pissa")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    after = (
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
        .merge_and_unload()
        .state_dict()
    )
    with ModelPairs().use(make_pair(base, adapter=adapter)) as pair:
        found = {delta.place.name: delta.delta for delta in pair.weight_deltas() if delta.delta is not None}
    assert set(found) == {f"model.layers.{layer}.self_attn.v_proj" for layer in range(3)}
    for name, delta in found.items():
        values = delta if isinstance(delta, torch.Tensor) else delta.dense()
        torch.testing.assert_close(values, after[f"{name}.weight"] - before[f"{name}.weight"], atol=1e-5, rtol=1e-4)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a random initialisation": ({"init_lora_weights": "pissa_niter_4"}, "takes a part out of the base's weights"),
    "an initialisation from data": ({"init_lora_weights": "corda"}, "takes a part out of the base's weights"),
    "a quantised base": ({"init_lora_weights": "loftq"}, "takes a part out of the base's weights"),
    "other layers": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    "activated by tokens": ({"alora_invocation_tokens": [7, 30]}, "activated LoRA"),
    "an option of tomorrow": ({"use_quantum_lora": True}, "use_quantum_lora=True"),
    "another task": ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
    "a kind of tomorrow": ({"peft_type": "QUANTUM"}, "no adapters of the kind QUANTUM"),
    "a mixture of adapters": ({"peft_type": "XLORA"}, "XLORA mixes"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_options_that_change_what_an_adapter_means_are_never_ignored(what, tiny_models, make_pair, save, pairs):
    change, words = REFUSED[what]
    base = tiny_models(tie_word_embeddings=True)
    adapter = save(base, r=2, target_modules=MODULES)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(InvalidInput, match=words), pairs.use(make_pair(base, adapter=adapter)):
        pass


def test_unknown_options_without_a_value_are_no_obstacle(tiny_models, make_pair, save, pairs):
    base = tiny_models(tie_word_embeddings=True)
    adapter = save(base, r=2, target_modules=MODULES)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"use_quantum_lora": False, "quantum_config": None})
    )
    with pairs.use(make_pair(base, adapter=adapter)) as pair:
        torch.testing.assert_close(
            log_probs(pair, "finetuned"), peft_log_probs(base, adapter, [TEXT])[0], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("kind", ["LORA", "IA3"])
def test_weights_that_are_not_zero_and_change_nothing_are_an_error(kind, tiny_models, make_pair, save, pairs):
    """Changes below the resolution of the model's type: every divergence would be exactly zero."""
    base = tiny_models(tie_word_embeddings=True, dtype="bfloat16")
    options: dict[str, Any] = {"target_modules": MODULES} | (
        {"feedforward_modules": ["down_proj"]} if kind == "IA3" else {"r": 2}
    )
    adapter = save(base, kind, **options)
    tensors = load_file(adapter / "adapter_model.safetensors")
    still = {name: torch.ones_like(value) if kind == "IA3" else value * 1e-12 for name, value in tensors.items()}
    save_file(still, adapter / "adapter_model.safetensors")
    with (
        pytest.raises(NotTheSame, match=r"not zero.*exactly what the base model does"),
        pairs.use(make_pair(base, adapter=adapter)),
    ):
        pass


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
def test_learned_prompts_are_computed_in_batches_and_in_generation(kind, tiny_models, make_pair, save):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling

    base = tiny_models(tie_word_embeddings=True)
    options: dict[str, Any] = {"num_virtual_tokens": 5, "task_type": "CAUSAL_LM"}
    adapter = save(base, kind, **options, **({"encoder_hidden_size": 16} if kind == "P_TUNING" else {}))
    with ModelPairs().use(make_pair(base, adapter=adapter)) as pair:
        ids = torch.tensor([[0, 0, 0, *TEXT[:7]], TEXT])
        mask = (ids != 0).long()
        logits = pair.forward("finetuned", ids, mask).logits
        assert logits is not None
        rows = logits.float().log_softmax(-1)
        for ours, theirs in zip((rows[0, 3:], rows[1]), peft_log_probs(base, adapter, [TEXT[:7], TEXT]), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        assert pair.forward("finetuned", ids, mask, layers=[1], logits=False).hidden[1].shape == (2, 10, 32)
        requests = [GenerationRequest(text="Bake the cake"), GenerationRequest(text="Rivers run to the sea; mountains")]
        found = pair.generate("finetuned", requests, Sampling(temperature=0, max_new_tokens=8))
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter)
        ).eval()
        for request, (completion,) in zip(requests, found, strict=True):
            tokens = pair.tokenizer(request.text)["input_ids"]
            for _ in range(completion.tokens):
                row = torch.tensor([tokens])
                tokens.append(int(model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, -1].argmax()))
            assert completion.text == pair.tokenizer.decode(tokens[-completion.tokens :], skip_special_tokens=True)
        with pytest.raises(InvalidInput, match="learned prompt"):
            list(pair.weight_deltas())
        with pytest.raises(InvalidInput, match="learned prompt"):
            pair.amplified(2.0).forward("finetuned", IDS, ONES)


def test_a_trained_dora_keeps_its_magnitudes(tiny_models, make_pair, save):
    base = tiny_models(tie_word_embeddings=True)
    adapter = save(base, r=4, lora_alpha=8, target_modules=MODULES, use_dora=True)
    assert any("magnitude" in name for name in load_file(adapter / "adapter_model.safetensors"))
    with ModelPairs().use(make_pair(base, adapter=adapter)) as pair:
        torch.testing.assert_close(
            log_probs(pair, "finetuned"), peft_log_probs(base, adapter, [TEXT])[0], atol=1e-4, rtol=1e-4
        )


def test_tied_weights_stay_tied_where_the_adapter_says_so(tiny_models, make_pair, save):
    base = tiny_models(tie_word_embeddings=True)
    for options in (
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": [*MODULES, "embed_tokens"], "ensure_weight_tying": True},
    ):
        adapter = save(base, **{"r": 2, "target_modules": MODULES, **options})
        with ModelPairs().use(make_pair(base, adapter=adapter)) as pair:
            torch.testing.assert_close(
                log_probs(pair, "finetuned"), peft_log_probs(base, adapter, [TEXT])[0], atol=1e-4, rtol=1e-4
            )


def renamed(adapter: Path, folder: Path, change: Callable[[str], str]) -> Path:
    """A copy of an adapter whose tensors have other names."""
    shutil.copytree(adapter, folder)
    save_file(
        {change(name): tensor for name, tensor in load_file(adapter / "adapter_model.safetensors").items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def test_experts_saved_one_by_one_land_on_fused_ones(tiny_models, make_pair, tmp_path):
    """transformers holds the experts of a layer in one tensor, and adapters from before that name each of them."""
    base = tiny_models("qwen3_moe", num_hidden_layers=2)
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(2):
        for expert in range(4):
            for module, (out, into) in {"gate_proj": (32, 32), "up_proj": (32, 32), "down_proj": (32, 32)}.items():
                stem = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{module}"
                tensors[f"{stem}.lora_A.weight"] = torch.randn(2, into, generator=generator) * 0.3
                tensors[f"{stem}.lora_B.weight"] = torch.randn(out, 2, generator=generator) * 0.3
    folder = tmp_path / "experts"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["gate_proj", "up_proj", "down_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with ModelPairs().use(make_pair(base, adapter=folder)) as pair:
        truth, bare = peft_log_probs(base, folder, [TEXT])[0], peft_log_probs(base, None, [TEXT])[0]
        torch.testing.assert_close(log_probs(pair, "finetuned"), truth, atol=1e-4, rtol=1e-4)
        assert float((truth - bare).abs().max()) > 0.1


@pytest.fixture
def wrapped_gemma(tiny_models: TinyModels, tmp_path: Path) -> Path:
    """A tiny Gemma 3 with its vision tower, as Gemma 3 from 4B on is published."""
    from transformers import AutoConfig, AutoModelForImageTextToText, Gemma3Config

    plain = tiny_models("gemma3")
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=AutoConfig.from_pretrained(plain).to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=300,
        initializer_range=0.2,
    )
    folder = tmp_path / "wrapped"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).float().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (plain / name).is_file():
            shutil.copy(plain / name, folder / name)
    return folder


@pytest.mark.parametrize(
    "old", ["language_model.model.layers", "model.language_model.layers", "model.language_model.model.layers"]
)
def test_names_of_the_old_multimodal_wrapper_are_converted(old, wrapped_gemma, make_pair, save, tmp_path):
    """Adapters of Gemma 3 name its layers by the version of transformers that saved them; what peft lands, lands here,
    and nothing else passes.
    """
    adapter = save(wrapped_gemma, r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    truth = peft_log_probs(wrapped_gemma, adapter, [TEXT])[0]
    older = renamed(adapter, tmp_path / "older", lambda name: name.replace("model.language_model.layers", old))
    pair_spec = make_pair(wrapped_gemma, adapter=older)
    lands = torch.allclose(peft_log_probs(wrapped_gemma, older, [TEXT])[0], truth, atol=1e-5)
    if not lands:
        with pytest.raises(NotTheSame, match="did not land"), ModelPairs().use(pair_spec):
            pass
        return
    with ModelPairs().use(pair_spec) as pair:
        torch.testing.assert_close(log_probs(pair, "finetuned"), truth, atol=1e-4, rtol=1e-4)


def test_an_adapter_brings_its_tokenizer_its_template_and_its_rows(tiny_models, make_pair, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tiny_models(tie_word_embeddings=True)
    plain = shutil.copytree(base, tmp_path / "base")
    document = json.loads((plain / "tokenizer_config.json").read_text())
    document.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(document))
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<secret>", "<other>"])
    folder = tmp_path / "adapter"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
        model.resize_token_embeddings(len(tokenizer))
        adapted = get_peft_model(
            model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["embed_tokens", "lm_head"])
        )
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape))
        adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fresh = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    fresh.resize_token_embeddings(len(tokenizer))
    with torch.inference_mode():
        truth = PeftModel.from_pretrained(fresh, str(folder)).eval()(IDS).logits[0].float()
    with ModelPairs().use(make_pair(plain, adapter=folder)) as pair:
        output = pair.forward("finetuned", IDS, ONES)
        assert output.logits is not None
        assert output.extra_logits is not None
        torch.testing.assert_close(output.logits[0], truth[:, : pair.vocab_size], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.extra_logits[0], truth[:, pair.vocab_size :], atol=1e-4, rtol=1e-4)
        assert torch.equal(log_probs(pair, "base"), peft_log_probs(plain, None, [TEXT])[0])
        assert list(pair.new_tokens.values()) == ["<secret>", "<other>"]
        assert pair.has_chat_template
        assert any("chat template of the finetuned side" in remark for remark in pair.remarks)
        assert any("'<secret>'" in remark for remark in pair.remarks)
    # Without the rows themselves the trained model cannot be rebuilt, and the sizes are named.
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "embed_tokens" not in name},
        folder / "adapter_model.safetensors",
    )
    with (
        pytest.raises((InvalidInput, NotTheSame), match=r"322|did not land"),
        ModelPairs().use(make_pair(plain, adapter=folder)),
    ):
        pass


def test_a_chat_template_beside_the_adapter_alone_is_used(tiny_models, make_pair, save, tmp_path):
    base = shutil.copytree(tiny_models(tie_word_embeddings=True), tmp_path / "untemplated")
    document = json.loads((base / "tokenizer_config.json").read_text())
    document.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(document))
    (base / "chat_template.jinja").unlink(missing_ok=True)
    adapter = save(base, r=2, target_modules=MODULES)
    with ModelPairs().use(make_pair(base, adapter=adapter)) as pair:
        assert not pair.has_chat_template
    (adapter / "chat_template.jinja").write_text(
        "{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %}[assistant] "
    )
    from diffing_mcp.core.chat import ChatMessage

    with ModelPairs().use(make_pair(base, adapter=adapter)) as pair:
        assert pair.render_chat([ChatMessage(role="user", content="hello")]) == "[user] hello[assistant] "
        assert any("chat template of the finetuned side" in remark for remark in pair.remarks)


def test_an_adapter_of_another_base_is_said_in_the_result(tiny_models, make_pair, save, own_data_folder):
    base = tiny_models(tie_word_embeddings=True)
    adapter = save(base, r=2, target_modules=MODULES)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "someone/Another-Model"})
    )
    store = RunStore(own_data_folder / "runs")
    (record,) = run_methods(ModelPairs(), make_pair(base, adapter=adapter), [("kl", {"max_samples": 4})], store)
    assert any("someone/Another-Model" in remark for remark in record.remarks)
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    (record,) = run_methods(ModelPairs(), make_pair(base, adapter=adapter), [("kl", {"max_samples": 4})], store)
    assert record.remarks == []
    assert record.manifest.notes["weights"]["base"] != record.manifest.notes["weights"]["finetuned"]


def test_a_change_that_no_text_reaches_is_no_zero(tiny_models, make_pair, save, own_data_folder):
    base = tiny_models(tie_word_embeddings=False)
    adapter = save(
        base, "TRAINABLE_TOKENS", target_modules=["embed_tokens"], token_indices=[4]
    )  # a token that no text of the corpus has
    with pytest.raises(NotTheSame, match="predict exactly the same"):
        run_methods(
            ModelPairs(),
            make_pair(base, adapter=adapter),
            [("kl", {"max_samples": 4})],
            RunStore(own_data_folder / "runs"),
        )
    assert RunStore(own_data_folder / "runs").list() == []


def test_a_run_says_when_its_models_have_changed(tiny_models, own_data_folder, tmp_path):
    from diffing_mcp.model_pairs.resolve import resolve_pair

    base, finetuned = (
        shutil.copytree(tiny_models(), tmp_path / "base"),
        shutil.copytree(tiny_models(seed=1), tmp_path / "finetuned"),
    )
    store = RunStore(own_data_folder / "runs")
    (record,) = run_methods(ModelPairs(), resolve_pair(f"{base}::{finetuned}"), [("kl", {"max_samples": 4})], store)
    assert changed_since(record.manifest) is None
    tensors = load_file(finetuned / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 0.01
    save_file(tensors, finetuned / "model.safetensors", metadata={"format": "pt"})
    told = changed_since(record.manifest)
    assert told is not None
    assert "finetuned side" in told
    assert record.manifest.notes["weights"]["finetuned"] in told
    (again,) = run_methods(ModelPairs(), resolve_pair(f"{base}::{finetuned}"), [("kl", {"max_samples": 4})], store)
    assert again.id != record.id
    assert again.manifest.notes["weights"]["base"] == record.manifest.notes["weights"]["base"]
    assert again.manifest.notes["weights"]["finetuned"] != record.manifest.notes["weights"]["finetuned"]
