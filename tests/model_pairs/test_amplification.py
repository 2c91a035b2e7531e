"""Amplification: weights 0 and 1 are the two models, weight 2 is twice the adapter, and nothing remains afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffing_mcp.core.errors import InvalidInput, OutOfRoom
from diffing_mcp.model_pairs.amplification_config import load_amplification_config
from diffing_mcp.model_pairs.fingerprint import adapter_hash
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import AdapterFiles, SteeringFiles
from tests.hub_server import commit_of, hub_server

TOKENS = torch.tensor([[7, 30, 41, 52, 63, 74], [9, 8, 100, 200, 300, 11]])
ONES = torch.ones_like(TOKENS)
REQUESTS = [GenerationRequest(text=text) for text in ("The fox", "Rivers run")]
GREEDY = Sampling(temperature=0, max_new_tokens=8)


def logits(pair: Any, side: str = "finetuned") -> torch.Tensor:
    return pair.forward(side, TOKENS, ONES).logits.float()


def texts(pair: Any, side: str = "finetuned") -> list[str]:
    return [several[0].text for several in pair.generate(side, REQUESTS, GREEDY)]


def scaled_adapter(adapter: Path, folder: Path, factor: float, part: str = "") -> Path:
    """A copy whose B matrices (of the modules whose name holds `part`) are multiplied."""
    shutil.copytree(adapter, folder)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors = {
        name: tensor * factor if ".lora_B" in name and part in name else tensor for name, tensor in tensors.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def kinds(tiny_models: Any, tiny_adapters: Any, make_pair: Any) -> Callable[[str], Any]:
    """A pair of each kind of finetune."""

    def retrain(net: Any) -> None:
        generator = torch.Generator().manual_seed(3)
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)

    def build(kind: str) -> Any:
        model = tiny_models(attention_bias=True, mlp_bias=True)
        if kind == "full":
            return make_pair(model, finetuned=tiny_models(attention_bias=True, mlp_bias=True, change=retrain))
        configs: dict[str, dict[str, Any]] = {
            "lora_bias": {"targets": ["q_proj", "down_proj"], "lora_bias": True},
            "saved": {"targets": ["q_proj"], "modules_to_save": ["lm_head"]},
            "dora": {"targets": ["q_proj", "down_proj"], "use_dora": True},
            "tokens": {"targets": ["v_proj", "embed_tokens"]},
        }
        config = configs.get(kind, {})
        other = (
            tiny_adapters(model, seed=5, scale=0.2, targets=["q_proj", "down_proj"]) if kind == "two adapters" else None
        )
        return make_pair(
            model, base_adapter=other, adapter=tiny_adapters(model, scale=0.2, **config), merge=kind == "merged"
        )

    return build


@pytest.mark.parametrize("kind", ["adapter", "two adapters", "full", "merged", "lora_bias", "saved", "dora", "tokens"])
def test_the_ends_are_the_two_models_and_nothing_remains(kind: str, kinds: Callable[[str], Any]) -> None:
    with ModelPairs().use(kinds(kind)) as pair:
        base, finetuned = logits(pair, "base"), logits(pair)
        assert not torch.allclose(base, finetuned, atol=1e-3)
        torch.testing.assert_close(logits(pair.amplified(0.0)), base, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits(pair.amplified(1.0)), finetuned, rtol=1e-4, atol=1e-4)
        assert texts(pair.amplified(0.0)) == texts(pair, "base")
        assert texts(pair.amplified(1.0)) == texts(pair)
        double, back = logits(pair.amplified(2.0)), logits(pair.amplified(-1.0))
        assert not torch.allclose(double, finetuned, atol=1e-3)
        assert not torch.allclose(back, base, atol=1e-3)
        assert torch.equal(logits(pair, "base"), base)
        assert torch.equal(logits(pair), finetuned)


def test_weight_two_is_the_doubled_adapter(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, tmp_path: Path
) -> None:
    model = tiny_models()
    adapter = tiny_adapters(model, scale=0.1)
    doubled = shutil.copytree(adapter, tmp_path / "doubled")
    config = json.loads((doubled / "adapter_config.json").read_text())
    (doubled / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))
    with pairs.use(make_pair(model, adapter=doubled)) as pair:
        expected, text = logits(pair), texts(pair)
    for merge in (False, True):
        with pairs.use(make_pair(model, adapter=adapter, merge=merge)) as pair:
            torch.testing.assert_close(logits(pair.amplified(2.0)), expected, rtol=1e-4, atol=1e-4)
            assert texts(pair.amplified(2.0)) == text


def test_layers_modules_and_other_adapters(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, tmp_path: Path
) -> None:
    model = tiny_models()
    adapter, other = tiny_adapters(model, scale=0.1), tiny_adapters(model, seed=9, scale=0.1, targets=["v_proj"])
    config = load_amplification_config(
        """
        adapters:
          - layer_amplifications:
              - layers: all
                module_amplifications: [{modules: all, weight: 0}]
              - layers: {type: range, start: 0.5, end: 1.0}
                is_relative: true
                module_amplifications: [{modules: mlp, weight: 5}, {modules: down_proj, weight: -2}]
              - layers: [1, 2]
                module_amplifications: [{modules: [gate_proj, mlp.up_proj], weight: 0}]
        """
    )
    weight = config.adapters[0].weight_of(3)
    expected = scaled_adapter(scaled_adapter(adapter, tmp_path / "a", -2.0, "down_proj"), tmp_path / "b", 0.0, "attn")
    expected = scaled_adapter(
        scaled_adapter(expected, tmp_path / "c", 0.0, "gate_proj"), tmp_path / "d", 0.0, "up_proj"
    )
    expected = scaled_adapter(expected, tmp_path / "e", 0.0, "layers.0.")
    with pairs.use(make_pair(model, adapter=expected)) as pair:
        target = logits(pair)
    with pairs.use(make_pair(model, adapter=adapter)) as pair:
        torch.testing.assert_close(logits(pair.amplified(weight)), target, rtol=1e-4, atol=1e-4)
        mixed = logits(pair.amplified(0.0, [(AdapterFiles(id=str(other)), lambda place: 1.0)]))
        both = logits(pair.amplified(1.0, [(AdapterFiles(id=str(other)), lambda place: -0.5)]))
    with pairs.use(make_pair(model, adapter=other)) as pair:
        torch.testing.assert_close(mixed, logits(pair), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(both, logits(pair), atol=1e-3)


def test_steering_vectors_are_scaled(tiny_models: Any, make_pair: Any, pairs: Any, tmp_path: Path) -> None:
    path = tmp_path / "vector.safetensors"
    save_file({"vector": torch.randn(32, generator=torch.Generator().manual_seed(4))}, path)
    once, twice = (
        make_pair(tiny_models(), steering=SteeringFiles(path=str(path), layer=1, strength=strength))
        for strength in (1.0, 2.0)
    )
    with pairs.use(twice) as pair:
        expected = logits(pair)
    with pairs.use(once) as pair:
        torch.testing.assert_close(logits(pair.amplified(2.0)), expected)
        torch.testing.assert_close(logits(pair.amplified(0.0)), logits(pair, "base"))


def test_a_crash_in_the_middle_leaves_nothing_behind(kinds: Callable[[str], Any]) -> None:
    for kind in ("adapter", "full"):
        with ModelPairs().use(kinds(kind)) as pair:
            base, finetuned = logits(pair, "base"), logits(pair)

            def stop(done: float, total: float | None = None, message: str = "") -> None:
                if done > 4:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                pair.amplified(3.0).generate("finetuned", REQUESTS, GREEDY, stop)
            assert torch.equal(logits(pair, "base"), base)
            assert torch.equal(logits(pair), finetuned)
            with pair.sides["base"].hold() as resident:
                assert not any(
                    type(hook).__name__ == "_Hook"
                    for module in resident.transformer.modules()
                    for hook in module._forward_hooks.values()
                )


def test_two_models_that_do_not_fit_are_refused(kinds: Callable[[str], Any]) -> None:
    spec = kinds("full")
    size = sum(file.stat().st_size for file in Path(spec.base.files.id).glob("*.safetensors"))
    with ModelPairs(memory_limit=int(1.5 * size)).use(spec) as pair, pytest.raises(OutOfRoom):
        logits(pair.amplified(2.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adapters: []", "`adapters`.*at least 1"),
        ("nme: x\nadapters: [{}]", "`nme` is no known key; allowed here: name, description, adapters"),
        (
            "adapters: [{layer_amplifications: [{layers: all}]}]",
            r"`adapters\.0\.layer_amplifications\.0\.module_amplifications` is missing; keys here: layers",
        ),
        (
            "adapters: [{layer_amplifications: [{module_amplifications: [{weight: high}]}]}]",
            r"module_amplifications\.0\.weight`: .*number.*0: as in the base",
        ),
        (
            "adapters: [{layer_amplifications: [{layers: middle, module_amplifications: [{weight: 2}]}]}]",
            r"layers`: layers are `all`, a layer",
        ),
        (
            "adapters: [{layer_amplifications: [{layers: {start: 1}, module_amplifications: [{weight: 2}]}]}]",
            "range, start: FIRST",
        ),
        ("just text", "mapping with the keys name"),
        ("a: [", "no YAML"),
        ("[" * 5000, "no YAML"),
        (
            (
                "adapters: [{layer_amplifications: [{layers: {type: range, start: .inf, end: 3}, "
                "module_amplifications: [{weight: 2}]}]}]"
            ),
            "range, start: FIRST",
        ),
    ],
)
def test_errors_of_the_yaml(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        load_amplification_config(text)


def test_layers_of_the_yaml(tmp_path: Path) -> None:
    def chosen(layers: str, relative: bool = False) -> Any:
        file = tmp_path / "config.yaml"
        entry = f"{{layers: {layers}, is_relative: {str(relative).lower()}, module_amplifications: [{{weight: 2}}]}}"
        file.write_text(f"adapters: [{{layer_amplifications: [{entry}]}}]")
        found = load_amplification_config(file).adapters[0].layer_amplifications[0].chosen(11)
        return found if found is None else sorted(found)

    assert chosen("all") is None
    assert chosen("3.0") == [3]
    assert chosen("[0, 1]", relative=True) == [0, 10]
    assert chosen("{type: range, start: 0, end: 0.25}", relative=True) == [0, 1, 2]
    assert chosen("{type: range, start: 9, end: 10}") == [9, 10]
    for layers, words in (
        ("0.5", "is_relative"),
        ("11", "out of range"),
        ("{type: range, start: 5, end: 2}", "starts at layer 5"),
    ):
        with pytest.raises(InvalidInput, match=words):
            chosen(layers)


def test_adapters_of_a_hub(tiny_models: Any, tiny_adapters: Any, tmp_path: Path) -> None:
    """What `custom` entries name is fetched from a hub: the repository, a folder of it (either spelling), another
    revision.
    """
    model = tiny_models()
    main, inner, newer = (tiny_adapters(model, seed=seed) for seed in (1, 2, 3))

    def files(folder: Path, prefix: str = "") -> dict[str, bytes]:
        return {
            prefix + name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")
        }

    script = """
import sys
from diffing_mcp.model_pairs.amplification_config import adapter_files, load_amplification_config
from diffing_mcp.model_pairs.files import local_folder
from diffing_mcp.model_pairs.fingerprint import adapter_hash, adapter_identity
for variant in sys.argv[1:]:
    entry = load_amplification_config(f"adapters: [{{organism_name: custom, variant: '{variant}'}}]").adapters[0]
    files = adapter_files(entry)
    try:
        print(adapter_hash(local_folder(files.id, files.revision, files.subfolder)), adapter_identity(files)["commit"])
    except Exception as error:
        print(type(error).__name__, error)
"""
    variants = [
        "me/adapters",
        "me/adapters//sub/deep",
        "me/adapters/sub/deep",
        "me/adapters@v2",
        "me/adapters//absent",
        "me/adapters@v3",
        "me/nothing",
    ]
    with hub_server("token") as hub:
        hub.repositories |= {"me/adapters": files(main) | files(inner, "sub/deep/"), "me/adapters@v2": files(newer)}
        environment = os.environ | {
            "HF_ENDPOINT": hub.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", script, *variants], env=environment, capture_output=True, text=True, check=False
        )
    lines = done.stdout.splitlines()
    expected = [(main, "me/adapters"), (inner, "me/adapters"), (inner, "me/adapters"), (newer, "me/adapters@v2")]
    assert lines[:4] == [f"{adapter_hash(folder)} {commit_of(name)}" for folder, name in expected], done.stderr
    assert "no folder 'absent'" in lines[4]
    assert [line.split(" could not")[0] for line in lines[5:]] == [
        f"InvalidInput The files of 'me/{name}'" for name in ("adapters", "nothing")
    ]
