"""Fixtures shared by all tests: tiny random models with a real tokenizer, tiny LoRA adapters with a known change, the
embedded pair.

Nothing here touches the network. Every session has a data folder of its own; the cache folder is the user's (it holds
only the converted embedded model, which every test run would otherwise convert again).
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from diffing_mcp.model_pairs.pair import LoadedPair
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.model_pairs.specs import PairSpec

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import mcp.server  # noqa: F401  before nnsight, after whose import anyio's cannot be; a server imports them in this order as well

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog while it rains.",
    "Bake the cake in a hot oven for forty minutes, then let it cool.",
    "A model is compared with its finetune, one token at a time.",
    "Rivers run to the sea; mountains stay where they are.",
    "user assistant system What is your name? I am a small model.",
]
VOCABULARY = 320


def pytest_runtest_teardown() -> None:
    """What the libraries of models hold, a million objects, stays as long as the process: let no collection of garbage
    look at it again. Every model that is released asks for one.
    """
    if "nnterp" in sys.modules and not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary DIFFING_DATA_FOLDER for the whole session."""
    from diffing_mcp.core.settings import settings

    folder = tmp_path_factory.mktemp("data")
    before = os.environ.get("DIFFING_DATA_FOLDER")
    os.environ["DIFFING_DATA_FOLDER"] = str(folder)
    settings.cache_clear()
    yield folder
    if before is None:
        del os.environ["DIFFING_DATA_FOLDER"]
    else:
        os.environ["DIFFING_DATA_FOLDER"] = before
    settings.cache_clear()


@pytest.fixture
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh data folder for one test; settings are read again with it."""
    from diffing_mcp.core.settings import settings

    monkeypatch.setenv("DIFFING_DATA_FOLDER", str(tmp_path / "data"))
    settings.cache_clear()
    yield tmp_path / "data"
    settings.cache_clear()


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with 320 entries and a ChatML template that knows `enable_thinking`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS[1:],
    )
    fast.chat_template = CHAT_TEMPLATE
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(folder)
    return folder


def _tiny_config(kind: str, vocabulary: int, layers: int, width: int, **overrides: Any) -> Any:
    import transformers

    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    llama_like = {
        **common,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    heads = {"head_dim": width // 4}
    gemma = {**llama_like, **heads, "sliding_window": 64, "query_pre_attn_scalar": width // 4}
    classes: dict[str, tuple[str, dict[str, Any]]] = {
        "llama": ("LlamaConfig", llama_like),
        "qwen2": ("Qwen2Config", llama_like),
        "qwen3": ("Qwen3Config", {**llama_like, **heads}),
        "mistral": ("MistralConfig", llama_like),
        "qwen3_moe": (
            "Qwen3MoeConfig",
            {
                **llama_like,
                **heads,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": width,
                "decoder_sparse_step": 1,
            },
        ),
        "olmo2": ("Olmo2Config", llama_like),
        "granite": ("GraniteConfig", llama_like),
        "cohere2": ("Cohere2Config", llama_like),
        "hyperclovax": ("HyperCLOVAXConfig", llama_like),
        "phi3": ("Phi3Config", llama_like),
        "glm4": ("Glm4Config", {**llama_like, **heads}),
        "gemma2": ("Gemma2Config", {**gemma, "final_logit_softcapping": 5.0}),
        "gemma3": ("Gemma3TextConfig", gemma),
        "gemma4": (
            "Gemma4TextConfig",
            {
                **llama_like,
                **heads,
                "sliding_window": 64,
                "global_head_dim": width // 2,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": vocabulary,
            },
        ),
        "gpt2": ("GPT2Config", {**common, "n_embd": width, "n_layer": layers, "n_head": 4, "n_positions": 256}),
        "opt": (
            "OPTConfig",
            {
                **common,
                "hidden_size": width,
                "word_embed_proj_dim": width,
                "ffn_dim": 2 * width,
                "num_hidden_layers": layers,
                "num_attention_heads": 4,
            },
        ),
        "gpt_neox": (
            "GPTNeoXConfig",
            {
                **common,
                "hidden_size": width,
                "intermediate_size": 2 * width,
                "num_hidden_layers": layers,
                "num_attention_heads": 4,
            },
        ),
    }
    name, arguments = classes[kind]
    if kind == "gpt2":
        arguments.pop("max_position_embeddings")
    return getattr(transformers, name)(**{**arguments, **overrides})


TinyModels = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> TinyModels:
    """Builder of tiny random models: `tiny_models(kind="llama", seed=0, layers=3, width=32, vocabulary=320,
    dtype="float32", change=None, tokenizer=True,
    **config)` -> folder. Equal arguments give the same folder; `change(model)` edits the weights before saving (such
    calls are not cached). Weights are larger than the library's initial ones, so that outputs differ visibly between
    tokens.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    built: dict[str, Path] = {}

    def build(
        kind: str = "llama",
        seed: int = 0,
        layers: int = 3,
        width: int = 32,
        vocabulary: int = VOCABULARY,
        dtype: str = "float32",
        change: Callable[[Any], None] | None = None,
        tokenizer: bool = True,
        **config: Any,
    ) -> Path:
        key = json.dumps([kind, seed, layers, width, vocabulary, dtype, tokenizer, config], default=str)
        if change is None and key in built:
            return built[key]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(
                _tiny_config(kind, vocabulary, layers, width, initializer_range=0.2, **config)
            ).float()
        if change is not None:
            with torch.no_grad():
                change(model)
        folder = tmp_path_factory.mktemp(f"tiny-{kind}-")
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        if tokenizer:
            AutoTokenizer.from_pretrained(tiny_tokenizer_folder).save_pretrained(folder)
        if change is None:
            built[key] = folder
        return folder

    return build


TinyAdapters = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_adapters(tmp_path_factory: pytest.TempPathFactory) -> TinyAdapters:
    """Builder of LoRA adapters saved by peft: `tiny_adapters(model_folder, seed=1, rank=4, scale=0.05, targets=None,
    zero=False, **config)`.

    A is as peft makes it, B is normal with standard deviation `scale` (or zero), so the weight change is
    `alpha / rank * B @ A`, which `lora_delta(folder, module)` computes from the saved file.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def build(
        model: Path,
        seed: int = 1,
        rank: int = 4,
        scale: float = 0.05,
        targets: list[str] | str | None = None,
        zero: bool = False,
        dtype: str = "float32",
        **config: Any,
    ) -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
            adapted = get_peft_model(
                base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets or "all-linear", **config)
            )
            with torch.no_grad():
                for name, parameter in adapted.named_parameters():
                    if ".lora_B" in name or ".lora_embedding_B" in name:
                        parameter.normal_(0, scale)
                        if zero:
                            parameter.zero_()
                    elif "modules_to_save" in name:
                        parameter.mul_(1.1)
        folder = tmp_path_factory.mktemp("adapter-")
        adapted.to(getattr(torch, dtype)).save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def lora_delta() -> Callable[[Path, str], Tensor]:
    """`lora_delta(adapter_folder, module)` -> the weight change [out, in] that a saved adapter means, float32: alpha /
    rank * B @ A.
    """
    from safetensors.torch import load_file

    def delta(adapter: Path, module: str) -> Tensor:
        tensors = load_file(adapter / "adapter_model.safetensors")
        config = json.loads((adapter / "adapter_config.json").read_text())
        a = tensors[f"base_model.model.{module}.lora_A.weight"].float()
        b = tensors[f"base_model.model.{module}.lora_B.weight"].float()
        return config["lora_alpha"] / config["r"] * b @ a

    return delta


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., PairSpec]:
    """`make_pair(base_folder, finetuned=None, adapter=None, base_adapter=None, merge=False, steering=None, **spec)` ->
    PairSpec.
    """
    from diffing_mcp.model_pairs.specs import AdapterFiles, ModelFiles, ModelSource, PairSpec

    def make(
        base: Path,
        finetuned: Path | None = None,
        adapter: Path | None = None,
        base_adapter: Path | None = None,
        merge: bool = False,
        steering: Any = None,
        name: str = "test pair",
        **spec: Any,
    ) -> PairSpec:
        return PairSpec(
            name=name,
            base=ModelSource(
                files=ModelFiles(id=str(base)), adapter=AdapterFiles(id=str(base_adapter)) if base_adapter else None
            ),
            finetuned=ModelSource(
                files=ModelFiles(id=str(finetuned or base)),
                adapter=AdapterFiles(id=str(adapter)) if adapter else None,
                merge=merge,
                steering=steering,
            ),
            **spec,
        )

    return make


@pytest.fixture(scope="session")
def pairs() -> ModelPairs:
    """One ModelPairs for the whole session, so that equal tiny models are loaded once."""
    from diffing_mcp.model_pairs.residency import ModelPairs

    return ModelPairs()


@pytest.fixture(scope="session")
def tiny_pair(
    tiny_models: TinyModels, tiny_adapters: TinyAdapters, make_pair: Callable[..., PairSpec], pairs: ModelPairs
) -> Iterator[LoadedPair]:
    """A loaded pair: tiny float32 Llama (3 layers, d_model 32, vocabulary 320) and a LoRA adapter on it."""
    model = tiny_models()
    with pairs.use(make_pair(model, adapter=tiny_adapters(model), name="tiny")) as pair:
        yield pair


@pytest.fixture(scope="session")
def identical_pair(
    tiny_models: TinyModels, make_pair: Callable[..., PairSpec], pairs: ModelPairs
) -> Iterator[LoadedPair]:
    """A loaded pair of one tiny model with itself, declared identical."""
    with pairs.use(make_pair(tiny_models(), declared_identical=True, name="identical")) as pair:
        yield pair


@pytest.fixture(scope="session")
def embedded_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LoRA adapter (rank 8, all linear layers, bfloat16) for the embedded model, made without loading it."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig

    from diffing_mcp.organisms.embedded import embedded_model_folder

    config = AutoConfig.from_pretrained(embedded_model_folder())
    width, inner = config.hidden_size, config.intermediate_size
    keys = width // config.num_attention_heads * config.num_key_value_heads
    sizes = {
        "self_attn.q_proj": (width, width),
        "self_attn.v_proj": (width, keys),
        "mlp.up_proj": (width, inner),
        "mlp.down_proj": (inner, width),
    }
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for module, (fan_in, fan_out) in sizes.items():
            stem = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{stem}.lora_A.weight"] = (torch.randn(8, fan_in, generator=generator) / fan_in**0.5).bfloat16()
            tensors[f"{stem}.lora_B.weight"] = (torch.randn(fan_out, 8, generator=generator) * 0.02).bfloat16()
    folder = tmp_path_factory.mktemp("embedded-adapter")
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [module.split(".")[1] for module in sizes]
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "r": 8,
                "lora_alpha": 16,
                "target_modules": targets,
                "base_model_name_or_path": None,
            }
        )
    )
    return folder


@pytest.fixture(scope="session")
def embedded_pair(embedded_adapter: Path, pairs: ModelPairs) -> Iterator[LoadedPair]:
    """A loaded pair: the embedded 135M model and a random adapter on it. Slow: use it in few tests."""
    from diffing_mcp.model_pairs.specs import AdapterFiles, ModelFiles, ModelSource, PairSpec
    from diffing_mcp.organisms.embedded import EMBEDDED_ID

    files = ModelFiles(id=EMBEDDED_ID, dtype="bfloat16", end_of_turn_token="<|im_end|>")
    spec = PairSpec(
        name="embedded",
        base=ModelSource(files=files),
        finetuned=ModelSource(files=files, adapter=AdapterFiles(id=str(embedded_adapter))),
    )
    with pairs.use(spec) as pair:
        yield pair
