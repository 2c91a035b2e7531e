"""Checkpoints that cannot be compared: one sentence that names the package, format or architecture, never numbers made
up by a library.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.residency import ModelPairs

IDS = torch.tensor([[7, 30, 41, 52, 63, 74]])
ONES = torch.ones_like(IDS)
UP = "model.layers.1.mlp.up_proj.weight"


def _edit_config(folder: Path, **values: Any) -> None:
    """Set fields of config.json; None removes one."""
    config = {**json.loads((folder / "config.json").read_text()), **values}
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


def _edit_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def _config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: _edit_config(folder, **values)


def _quantised(method: str, **more: Any) -> Callable[[Path], None]:
    return _config(quantization_config={"quant_method": method, **more})


def _cut_off(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1000])


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")


def _in_shards(index: bool, both: bool = True) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        parts = [dict(list(tensors.items())[start::2]) for start in (0, 1)]
        for name, part in list(zip(names, parts, strict=True))[: 2 if both else 1]:
            save_file(part, folder / name, metadata={"format": "pt"})
        if index:
            weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return edit


def _renamed(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _gguf_alone(folder: Path) -> None:
    _without_config(folder)
    (folder / "model.safetensors").rename(folder / "model.gguf")


def _diffusion(folder: Path) -> None:
    (folder / "config.json").rename(folder / "model_index.json")


def _grow(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP] = torch.zeros(3, 32)


def _drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[UP]


def _drop_head(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["lm_head.weight"]


def _bias(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.bias"] = torch.ones(64)


def _whole_numbers(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP] = (10 * tensors[UP]).to(torch.int8)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "bitsandbytes": (_quantised("bitsandbytes", load_in_4bit=True), r"bitsandbytes.*unquantised"),
    "gptq": (_quantised("gptq", bits=4, group_size=128), r"`gptq`.*optimum.*unquantised"),
    "awq": (_quantised("awq", bits=4, group_size=128), r"`awq`.*gptqmodel.*unquantised"),
    "compressed-tensors": (
        _quantised("compressed-tensors", format="int-quantized", config_groups={}),
        "compressed-tensors.*unquantised",
    ),
    "torchao": (_quantised("torchao", quant_type="int4_weight_only"), "torchao.*unquantised"),
    "modelopt": (_quantised("modelopt", quant_algo="NVFP4"), "`modelopt`, which transformers does not read"),
    "scales of a quantisation": (_quantised("bitnet"), r"bitnet|random numbers"),
    "whole numbers": (_edit_weights(_whole_numbers), "stored as I8, and config.json names no quantisation"),
    "unknown architecture": (_config(model_type="foonet"), "does not know the architecture `foonet`"),
    "code of its own": (
        _config(model_type="foonet", auto_map={"AutoConfig": "configuration_foo.FooConfig"}),
        "trust_remote_code: true",
    ),
    "no model_type": (_config(model_type=None), "no `model_type`"),
    "wrong value in the configuration": (_config(hidden_size="wide"), "`llama` model cannot be read"),
    "configuration cut off": (lambda folder: (folder / "config.json").write_text("{"), "config.json.*no valid JSON"),
    "configuration is a list": (lambda folder: (folder / "config.json").write_text("[]"), "instead of a JSON object"),
    "no configuration": (_without_config, "no config.json"),
    "classification": (
        _config(architectures=["LlamaForSequenceClassification"]),
        "LlamaForSequenceClassification` has a head for another task",
    ),
    "reward": (_config(architectures=["LlamaForRewardModel"]), "another task"),
    "diffusion": (_diffusion, "diffusion pipeline"),
    "GGUF with a configuration": (_renamed("model.gguf"), "GGUF"),
    "GGUF": (_gguf_alone, "GGUF"),
    "pickled": (_renamed("pytorch_model.bin"), "pytorch_model.bin.*execute code"),
    "pt": (_renamed("model.pt"), "model.pt.*execute code"),
    "onnx": (_renamed("model.onnx"), "another framework"),
    "other name": (_renamed("weights.safetensors"), "`weights.safetensors`, but no model.safetensors"),
    "cut off": (_cut_off, "cut off"),
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "no whole safetensors file"),
    "LFS pointer": (_pointer, "git lfs pull"),
    "shard missing": (_in_shards(index=True, both=False), "1 of the 2 weight files.*model-00002-of-00002"),
    "index missing": (_in_shards(index=False), "model.safetensors.index.json"),
    "weights missing": (_edit_weights(_drop), rf"lack 1 .*`{UP}`; they would be random"),
    "head missing": (_edit_weights(_drop_head), "`lm_head.weight`; they would be random"),
    "biases left over": (_edit_weights(_bias), "1 weights inside of blocks.*up_proj.bias"),
    "other shapes": (_edit_weights(_grow), "do not have the shapes"),
}


@pytest.mark.parametrize("side", ["base", pytest.param("finetuned", marks=pytest.mark.long)])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_foreign_files(damage: str, side: str, tiny_models: Any, make_pair: Any, tmp_path: Path) -> None:
    edit, words = DAMAGES[damage]
    folder = shutil.copytree(tiny_models(), tmp_path / "model")
    edit(folder)
    other = tiny_models(seed=1)
    spec = make_pair(folder, finetuned=other) if side == "base" else make_pair(other, finetuned=folder)
    with pytest.raises(InvalidInput, match=words) as caught, ModelPairs().use(spec):
        pass
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    ("layers", "words"), [(4, "lack 9 .*random"), (2, "9 weights inside of blocks.*number of layers")]
)
def test_wrong_numbers_of_layers(layers: int, words: str, tiny_models: Any, make_pair: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_models(), tmp_path / "model")
    _edit_config(folder, num_hidden_layers=layers)
    with pytest.raises(InvalidInput, match=words), ModelPairs().use(make_pair(folder, declared_identical=True)):
        pass


SMALL: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "intermediate_size": 64}
WHOLE: dict[str, Any] = {
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
FOREIGN: dict[str, tuple[Callable[[], Any], str, str]] = {
    "mamba": (
        lambda: transformers.MambaConfig(**SMALL, state_size=4),
        "AutoModelForCausalLM",
        "MambaForCausalLM.*state-space",
    ),
    "rwkv": (lambda: transformers.RwkvConfig(**SMALL), "AutoModelForCausalLM", "RwkvForCausalLM.*recurrent"),
    "t5": (
        lambda: transformers.T5Config(vocab_size=320, d_model=32, num_layers=2, num_heads=4, d_ff=64, d_kv=8),
        "AutoModelForSeq2SeqLM",
        "T5ForConditionalGeneration.*encoder and a decoder",
    ),
    "bart": (
        lambda: transformers.BartConfig(vocab_size=320, d_model=32, encoder_layers=2, decoder_layers=2, **WHOLE),
        "AutoModelForSeq2SeqLM",
        "BartForConditionalGeneration.*encoder and a decoder",
    ),
    "bert": (
        lambda: transformers.BertConfig(**SMALL, **HEADS),
        "AutoModelForMaskedLM",
        "BertForMaskedLM.*another task",
    ),
    "bert as a causal model": (
        lambda: transformers.BertConfig(**SMALL, **HEADS),
        "AutoModelForCausalLM",
        "is an encoder",
    ),
    "roberta": (
        lambda: transformers.RobertaConfig(**SMALL, **HEADS),
        "AutoModelForMaskedLM",
        "RobertaForMaskedLM.*another task",
    ),
    "images": (
        lambda: transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, image_size=32, patch_size=16, **HEADS),
        "AutoModel",
        "ViTModel.*no language model",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_architectures(kind: str, tiny_tokenizer_folder: Path, make_pair: Any, tmp_path: Path) -> None:
    config, auto, words = FOREIGN[kind]
    getattr(transformers, auto).from_config(config()).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny_tokenizer_folder).save_pretrained(tmp_path)
    spec = make_pair(tmp_path, declared_identical=True)
    with pytest.raises(InvalidInput, match=words), ModelPairs().use(spec):
        pass


def test_what_is_left_out_is_said(tiny_models: Any, make_pair: Any, tmp_path: Path) -> None:
    """A value head beside the language model does not change it."""
    folder = shutil.copytree(tiny_models(), tmp_path / "model")
    _edit_weights(lambda tensors: tensors.update({"v_head.summary.weight": torch.ones(1, 32)}))(folder)
    with ModelPairs().use(make_pair(tiny_models(seed=1), finetuned=folder)) as pair:
        (remark,) = pair.remarks
        assert "v_head.summary.weight" in remark
        reference = transformers.AutoModelForCausalLM.from_pretrained(tiny_models())(IDS).logits
        assert torch.equal(pair.forward("finetuned", IDS, ONES).logits, reference)


def test_weights_in_shards(tiny_models: Any, make_pair: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_models(), tmp_path / "model")
    _in_shards(index=True)(folder)
    with ModelPairs().use(make_pair(folder, declared_identical=True)) as pair:
        reference = transformers.AutoModelForCausalLM.from_pretrained(tiny_models())(IDS).logits
        assert torch.equal(pair.forward("base", IDS, ONES).logits, reference)
        assert pair.remarks == ()


def test_the_text_part_of_an_image_model(tiny_tokenizer_folder: Path, make_pair: Any, tmp_path: Path) -> None:
    text = {
        **SMALL,
        **HEADS,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "num_heads": 4,
        "intermediate_size": 32,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config).float().eval()
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny_tokenizer_folder).save_pretrained(tmp_path)
    with ModelPairs().use(make_pair(tmp_path, declared_identical=True)) as pair:
        assert (pair.num_layers, pair.d_model) == (2, 32)
        output = pair.forward("base", IDS, ONES, layers=[0])
        with torch.inference_mode():
            reference = model(input_ids=IDS, attention_mask=ONES, output_hidden_states=True)
        torch.testing.assert_close(output.logits, reference.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output.hidden[0], reference.hidden_states[1], atol=1e-5, rtol=1e-5)
