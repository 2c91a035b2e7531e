"""What must not pass silently: adapters that do not land, that fit another model, that change nothing; and two sides
that do not fit.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffing_mcp.core.errors import InvalidInput, NotTheSame
from diffing_mcp.model_pairs.fingerprint import pair_identity
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import SteeringFiles

TOKENS = torch.tensor([[7, 30, 41, 52, 63, 74]])
ONES = torch.ones_like(TOKENS)


def edited(adapter, folder, change):
    """A copy of an adapter whose tensors went through `change(tensors) -> tensors`."""
    shutil.copytree(adapter, folder)
    save_file(change(load_file(adapter / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    return folder


def test_three_adapters_share_one_base_within_five_percent(tiny_models, tiny_adapters, make_pair):
    pairs = ModelPairs()
    folder = tiny_models(width=128, layers=4, vocabulary=4000)
    adapters = [tiny_adapters(folder, seed=seed, rank=1, targets=["q_proj"]) for seed in (1, 2, 3)]
    with pairs.use(make_pair(folder, adapter=adapters[0])) as one:
        before = one.forward("base", TOKENS, ONES).logits
        first = one.forward("finetuned", TOKENS, ONES).logits
        with pairs.use(make_pair(folder, base_adapter=adapters[1], adapter=adapters[2])) as two:
            second, third = (two.forward(side, TOKENS, ONES).logits for side in ("base", "finetuned"))
            assert torch.equal(one.forward("base", TOKENS, ONES).logits, before)
            assert torch.equal(one.forward("finetuned", TOKENS, ONES).logits, first)
            assert torch.equal(two.forward("base", TOKENS, ONES).logits, second)
        outputs = [before, first, second, third]
        assert all(not torch.equal(a, b) for i, a in enumerate(outputs) for b in outputs[:i])
        (status,) = pairs.models.status()
        assert status.in_use
        assert status.adapters == 3
        from diffing_mcp.model_pairs.fingerprint import stored_bytes

        assert stored_bytes(folder) <= status.bytes <= 1.05 * stored_bytes(folder)
    assert not pairs.models.status()[0].in_use


def test_adapter_with_renamed_keys_does_not_land(tiny_models, tiny_adapters, make_pair, pairs, tmp_path):
    folder = tiny_models()
    adapter = tiny_adapters(folder)

    def rename(tensors):
        return {
            key.replace("layers.2.mlp.down_proj.lora_B", "layers.2.mlp.down_proj.lora_b"): value
            for key, value in tensors.items()
        }

    broken = edited(adapter, tmp_path / "renamed", rename)
    with (
        pytest.raises(NotTheSame, match=r"did not land.*layers\.2\.mlp\.down_proj\.lora_"),
        pairs.use(make_pair(folder, adapter=broken)),
    ):
        pass

    def drop(tensors):
        return {key: value for key, value in tensors.items() if "layers.1.self_attn.q_proj.lora_B" not in key}

    broken = edited(adapter, tmp_path / "incomplete", drop)
    with (
        pytest.raises(NotTheSame, match=r"never filled.*layers\.1\.self_attn\.q_proj\.lora_B"),
        pairs.use(make_pair(folder, adapter=broken)),
    ):
        pass
    # The model is as before, and a good adapter still works on it.
    with pairs.use(make_pair(folder, adapter=adapter)) as pair:
        assert (
            pair.forward("base", TOKENS, ONES).logits - pair.forward("finetuned", TOKENS, ONES).logits
        ).abs().max() > 1e-2


def test_adapter_of_another_model(tiny_models, tiny_adapters, make_pair, pairs):
    folder = tiny_models()
    with (
        pytest.raises(NotTheSame, match=r"made for another model.*64\].*32\]"),
        pairs.use(make_pair(folder, adapter=tiny_adapters(tiny_models(width=64), targets=["q_proj"]))),
    ):
        pass
    with (
        pytest.raises(NotTheSame, match="does not have"),
        pairs.use(make_pair(folder, adapter=tiny_adapters(tiny_models("gpt2")))),
    ):
        pass
    with (
        pytest.raises(NotTheSame, match="did not land"),
        pairs.use(make_pair(folder, adapter=tiny_adapters(tiny_models(layers=4)))),
    ):
        pass
    with (
        pytest.raises(NotTheSame, match="made for another model"),
        pairs.use(make_pair(folder, adapter=tiny_adapters(tiny_models(width=64), targets=["q_proj"]), merge=True)),
    ):
        pass


def test_damaged_and_incomplete_adapter_folders(tiny_models, tiny_adapters, make_pair, pairs, tmp_path):
    folder = tiny_models()
    adapter = tiny_adapters(folder)
    damaged = shutil.copytree(adapter, tmp_path / "damaged")
    (damaged / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0broken")
    with pytest.raises(InvalidInput, match="damaged"), pairs.use(make_pair(folder, adapter=damaged)):
        pass
    (damaged / "adapter_model.safetensors").unlink()
    with (
        pytest.raises(InvalidInput, match=r"no adapter_model\.safetensors"),
        pairs.use(make_pair(folder, adapter=damaged)),
    ):
        pass
    other = shutil.copytree(adapter, tmp_path / "ia3")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(InvalidInput, match=r"does not know.*lora_alpha"), pairs.use(make_pair(folder, adapter=other)):
        pass


def test_identical_sides_are_refused_unless_declared(tiny_models, tiny_adapters, make_pair, pairs, tmp_path):
    folder = tiny_models()
    zero, adapter = tiny_adapters(folder, zero=True), tiny_adapters(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    vector = tmp_path / "zero.safetensors"
    save_file({"v": torch.zeros(32)}, vector)
    null_steering = SteeringFiles(path=str(vector), layer=1)
    same = [
        {},
        {"adapter": zero},
        {"adapter": zero, "merge": True},
        {"finetuned": copy},
        {"finetuned": copy, "adapter": adapter, "base_adapter": shutil.copytree(adapter, tmp_path / "adapter")},
        {"steering": null_steering},
    ]
    for arguments in same:
        with pytest.raises(NotTheSame, match="identical"), pairs.use(make_pair(folder, **arguments)):
            pass
        with pairs.use(make_pair(folder, declared_identical=True, **arguments)) as pair:
            assert torch.equal(
                pair.forward("base", TOKENS, ONES).logits, pair.forward("finetuned", TOKENS, ONES).logits
            )

    def nudge(model):
        model.lm_head.weight[5, 7] += 1e-3

    with pairs.use(make_pair(folder, finetuned=tiny_models(change=nudge))) as pair:
        difference = pair.forward("finetuned", TOKENS, ONES).logits - pair.forward("base", TOKENS, ONES).logits
        assert difference.abs().sum((0, 1)).nonzero().flatten().tolist() == [5]


def test_models_that_do_not_fit_together(tiny_models, make_pair, pairs):
    folder = tiny_models()
    for other, words in (
        (tiny_models(vocabulary=400, tokenizer=False), "320 entries, the finetuned model 400"),
        (tiny_models(vocabulary=300), "320 entries, the finetuned model 300, and 320 are in use"),
        (tiny_models(layers=2), "3 layers, the finetuned model 2"),
        (tiny_models(width=64), "32 dimensions, the finetuned model 64"),
    ):
        with pytest.raises(NotTheSame, match=words), pairs.use(make_pair(folder, finetuned=other)):
            pass


def test_another_tokenizer_is_refused(tiny_models, make_pair, pairs, tmp_path):
    folder = tiny_models()
    other = shutil.copytree(tiny_models(seed=9), tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    document = json.loads(text)
    vocabulary = document["model"]["vocab"]
    first, second = list(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(document))
    with (
        pytest.raises(NotTheSame, match="tokenizers differ in 2 tokens"),
        pairs.use(make_pair(folder, finetuned=other)),
    ):
        pass


def test_no_safetensors_and_no_folder(tiny_models, make_pair, pairs, tmp_path):
    bare = shutil.copytree(tiny_models(), tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(InvalidInput, match="safetensors"), pairs.use(make_pair(bare, declared_identical=True)):
        pass
    with (
        pytest.raises(InvalidInput, match="no folder"),
        pairs.use(make_pair(tmp_path / "absent", declared_identical=True)),
    ):
        pass


def test_steering_vector_pair(tiny_models, make_pair, pairs, tmp_path):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(4))
    path = tmp_path / "vector.safetensors"
    save_file({"vector": vector}, path)
    folder = tiny_models()
    with pairs.use(make_pair(folder, steering=SteeringFiles(path=str(path), layer=0.5, strength=2.0))) as pair:
        base, finetuned = (pair.forward(side, TOKENS, ONES, layers=[0, 1]) for side in ("base", "finetuned"))
        assert torch.equal(base.hidden[0], finetuned.hidden[0])
        torch.testing.assert_close(
            finetuned.hidden[1] - base.hidden[1], (2 * vector).expand(1, 6, 32), atol=1e-4, rtol=1e-4
        )
        assert not torch.equal(base.logits, finetuned.logits)
    save_file({"vector": torch.ones(31)}, path)
    with (
        pytest.raises(NotTheSame, match="31 dimensions"),
        pairs.use(make_pair(folder, steering=SteeringFiles(path=str(path), layer=0))),
    ):
        pass


def test_identity_follows_content_not_paths(tiny_models, tiny_adapters, make_pair, tmp_path):
    folder = tiny_models()
    adapter = tiny_adapters(folder)
    spec = make_pair(folder, adapter=adapter)
    moved = make_pair(
        shutil.copytree(folder, tmp_path / "model"),
        adapter=shutil.copytree(adapter, tmp_path / "adapter"),
        name="other name",
    )
    assert pair_identity(spec) == pair_identity(moved)
    others = [
        make_pair(folder, adapter=adapter, merge=True),
        make_pair(folder, adapter=tiny_adapters(folder, seed=2)),
        make_pair(folder),
        make_pair(tiny_models(seed=1), adapter=adapter),
    ]
    identities = [json.dumps(pair_identity(each), sort_keys=True) for each in (spec, *others)]
    assert len(set(identities)) == len(identities)
    assert str(folder) not in identities[0]


KINDS_OF_ADAPTERS = {
    "plain": {"targets": ["q_proj", "down_proj"]},
    "dora": {"targets": ["q_proj", "down_proj"], "use_dora": True},
    "bias": {"targets": ["q_proj"], "lora_bias": True},
    "head replaced": {"targets": ["q_proj"], "modules_to_save": ["lm_head"]},
    "token rows": {"targets": ["q_proj"], "trainable_token_indices": [7, 30]},
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS_OF_ADAPTERS if kind != "plain"])
def test_adapters_of_other_kinds_next_to_plain_ones(kind, tiny_models, tiny_adapters, make_pair):
    """Each side computes what peft itself computes with its adapter alone, whichever other adapters are on the base and
    in whatever order they came and went.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = tiny_models(attention_bias=True, mlp_bias=True)
    plain = tiny_adapters(folder, seed=2, scale=0.2, **KINDS_OF_ADAPTERS["plain"])
    other = tiny_adapters(folder, seed=3, scale=0.2, **KINDS_OF_ADAPTERS[kind])

    def expected(adapter):
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), str(adapter)
        )
        with torch.inference_mode():
            return model.eval()(TOKENS).logits

    def computed(pair, side="finetuned"):
        return pair.forward(side, TOKENS, ONES).logits

    pairs = ModelPairs()
    with pairs.use(make_pair(folder, adapter=plain)) as first:
        base = computed(first, "base")
        with pairs.use(make_pair(folder, base_adapter=plain, adapter=other)) as second:
            for _ in range(2):
                torch.testing.assert_close(computed(second), expected(other), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(computed(second, "base"), expected(plain), rtol=1e-4, atol=1e-5)
                assert torch.equal(computed(first, "base"), base)
    with pairs.use(make_pair(folder, adapter=other)) as third:
        torch.testing.assert_close(computed(third), expected(other), rtol=1e-4, atol=1e-5)
        assert torch.equal(computed(third, "base"), base)
