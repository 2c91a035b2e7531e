"""NaN and infinite numbers: an error from every call that names side and weights; what reaches no output breaks
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffing_mcp.core.errors import InvalidInput, NotFinite
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import SIDES, Side

IDS = torch.tensor([[7, 30, 41, 52, 63, 74], [7, 30, 0, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
UP = "model.layers.1.mlp.up_proj.weight"
REQUESTS = [GenerationRequest(text="rivers run"), GenerationRequest(text="the lazy dog jumps over")]
SAMPLING = Sampling(max_new_tokens=3, temperature=0)


def _logits(pair: LoadedPair, side: Side, ids: torch.Tensor = IDS, mask: torch.Tensor = MASK) -> torch.Tensor:
    """Logits [B, S, V] of one pass."""
    logits = pair.forward(side, ids, mask).logits
    assert logits is not None
    return logits


def _one(value: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value

    return change


def _head_row(model: Any) -> None:
    model.lm_head.weight[250, 4] = float("nan")


CALLS: dict[str, Callable[[LoadedPair, Any], Any]] = {
    "forward": lambda pair, side: pair.forward(side, IDS, MASK),
    "hidden states": lambda pair, side: pair.forward(side, IDS, MASK, layers=[1], logits=False),
    "log-probabilities": lambda pair, side: pair.token_log_probs(side, IDS, MASK),
    "last token": lambda pair, side: pair.last_token_logits(side, [7, 30, 41], 2),
    "generation": lambda pair, side: pair.generate(side, REQUESTS, SAMPLING),
    "contrastive": lambda pair, side: pair.generate_contrastive(REQUESTS, [1.0], SAMPLING),
    "weights": lambda pair, side: list(pair.weight_deltas()),
    "amplified": lambda pair, side: pair.amplified(0.5).forward("finetuned", IDS, MASK),
}


@pytest.mark.parametrize("side", ["base", "finetuned"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("call", CALLS)
def test_every_call_names_the_side_and_the_weight(
    call: str, value: float, side: str, tiny_models: Any, make_pair: Any
) -> None:
    broken, whole = tiny_models(change=_one(value)), tiny_models(seed=1)
    spec = make_pair(broken, finetuned=whole) if side == "base" else make_pair(whole, finetuned=broken)
    with ModelPairs().use(spec) as pair, pytest.raises(NotFinite) as caught:
        CALLS[call](pair, side)
    # What runs on both sides names the one whose weights are broken.
    assert f"The {side} side gives" in caught.value.message or call == "amplified"
    assert UP in caught.value.message or (call == "amplified" and side == "base")


def test_a_broken_row_of_the_unembedding(tiny_models: Any, make_pair: Any) -> None:
    broken, whole = tiny_models(change=_head_row), tiny_models(seed=1)
    with ModelPairs().use(make_pair(whole, finetuned=broken)) as pair:
        for call in (
            lambda: pair.forward("finetuned", IDS, MASK),
            lambda: pair.logit_lens("finetuned", torch.ones(2, 32)),
            lambda: pair.token_rows("finetuned", [3, 250]),
        ):
            with pytest.raises(NotFinite, match=r"finetuned side gives NaN.*lm_head.weight"):
                call()
        assert pair.token_rows("finetuned", [3, 249]).isfinite().all()
        assert pair.forward("finetuned", IDS, MASK, layers=[2], logits=False).hidden[2].isfinite().all()


def test_both_sides_are_named(tiny_models: Any, make_pair: Any) -> None:
    spec = make_pair(tiny_models(change=_one(float("nan"))), finetuned=tiny_models(seed=1, change=_one(float("nan"))))
    with ModelPairs().use(spec) as pair, pytest.raises(NotFinite, match="base side and the finetuned side"):
        pair.generate_contrastive(REQUESTS, [1.0], SAMPLING)


def test_a_broken_adapter(tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: ModelPairs) -> None:
    folder = tiny_models()
    with pairs.use(make_pair(folder, adapter=tiny_adapters(folder, scale=float("inf")))) as pair:
        assert _logits(pair, "base", IDS, MASK).isfinite().all()
        for call in (CALLS["forward"], CALLS["generation"], CALLS["contrastive"], CALLS["weights"]):
            with pytest.raises(NotFinite, match=r"The finetuned side gives.*lora_B"):
                call(pair, "finetuned")


def test_the_layer_is_named(tiny_models: Any, make_pair: Any) -> None:
    spec = make_pair(tiny_models(seed=1), finetuned=tiny_models(change=_one(float("nan"))))
    with ModelPairs().use(spec) as pair:
        with pytest.raises(NotFinite, match="NaN in the residual stream after layer 1"):
            pair.forward("finetuned", IDS, MASK, layers=[0, 1, 2], logits=False)
        assert pair.forward("finetuned", IDS, MASK, layers=[0], logits=False).hidden[0].isfinite().all()


def test_overflow_in_sixteen_bits(tiny_models: Any, make_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite weights whose products are beyond float16, and are well in float32."""

    def large(model: Any) -> None:
        model.model.layers[1].mlp.up_proj.weight.mul_(1000)
        model.model.layers[1].mlp.down_proj.weight.mul_(1000)

    spec = make_pair(tiny_models(seed=1), finetuned=tiny_models(change=large))
    with ModelPairs().use(spec) as pair:
        assert _logits(pair, "finetuned", IDS, MASK).isfinite().all()
    monkeypatch.setenv("DIFFING_DTYPE", "float16")
    settings.cache_clear()
    try:
        with (
            ModelPairs().use(spec) as pair,
            pytest.raises(NotFinite, match=r"overflow float16: set DIFFING_DTYPE=float32"),
        ):
            pair.forward("finetuned", IDS, MASK)
    finally:
        monkeypatch.undo()
        settings.cache_clear()


@pytest.mark.parametrize(
    "method", ["kl", "logit_diff_topk_occurring", "weight_difference", "activation_difference_lens"]
)
def test_nothing_is_stored(method: str, tiny_models: Any, make_pair: Any, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    spec = make_pair(tiny_models(seed=1), finetuned=tiny_models(change=_one(float("nan"))))
    with pytest.raises(NotFinite, match="finetuned side gives NaN"):
        run_methods(ModelPairs(), spec, [(method, {"max_samples": 4} if method != "weight_difference" else {})], store)
    assert store.list() == []


def test_a_row_that_no_text_uses(tiny_models: Any, make_pair: Any) -> None:
    """Infinite numbers in the input embedding of an unused token: everything but that token is as in the
    whole model.
    """

    def unused(model: Any) -> None:
        model.model.embed_tokens.weight[300, 1] = float("inf")

    whole, odd = tiny_models(), tiny_models(change=unused)
    with ModelPairs().use(make_pair(tiny_models(seed=1), finetuned=odd)) as pair:
        reference = AutoModelForCausalLM.from_pretrained(whole)(IDS[:1]).logits
        torch.testing.assert_close(_logits(pair, "finetuned", IDS, MASK)[:1], reference)
        with pytest.raises(NotFinite, match=r"embed_tokens"):
            pair.forward("finetuned", torch.tensor([[300, 7]]), torch.ones(1, 2, dtype=torch.long))

    def unused_and_tuned(model: Any) -> None:
        unused(model)
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 0.5

    with ModelPairs().use(make_pair(odd, finetuned=tiny_models(change=unused_and_tuned))) as pair:
        changed = {delta.place.name: delta for delta in pair.weight_deltas() if delta.delta is not None}
        (delta,) = changed.values()
        assert isinstance(delta.delta, torch.Tensor)
        assert float(delta.delta.abs().sum()) == pytest.approx(0.5, abs=1e-6)
        assert all(torch.tensor(each.base_norm).isfinite() for each in pair.weight_deltas())


def test_tokens_that_are_switched_off(tiny_tokenizer_folder: Path, make_pair: Any, tmp_path: Path) -> None:
    """A bias of -inf on tokens that are not in use: probability 0 on both sides, the others as they are, and the
    difference a number.
    """
    import transformers

    config = transformers.GPTJConfig(vocab_size=320, n_embd=32, n_layer=2, n_head=4, rotary_dim=8, n_positions=256)
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            model.lm_head.bias[310:] = float("-inf")
        folder = tmp_path / str(seed)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_tokenizer_folder).save_pretrained(folder)
        folders.append(folder)
    plain: Any = AutoModelForCausalLM.from_pretrained(folders[1])
    with torch.inference_mode():
        expected = plain(IDS[:1]).logits.softmax(-1)
    with ModelPairs().use(make_pair(folders[0], finetuned=folders[1])) as pair:
        base, finetuned = (_logits(pair, side, IDS[:1], MASK[:1]) for side in SIDES)
        torch.testing.assert_close(finetuned.softmax(-1), expected)
        first, second = base.log_softmax(-1), finetuned.log_softmax(-1)
        divergence = (second.exp() * (second - first)).sum(-1)
        kept = (expected[..., :310] * (expected[..., :310].log() - base[..., :310].log_softmax(-1))).sum(-1)
        torch.testing.assert_close(divergence, kept, atol=1e-5, rtol=1e-4)
        assert pair.logit_lens("finetuned", torch.randn(2, 32)).isfinite().all()
        assert pair.generate("finetuned", REQUESTS, SAMPLING)[0][0].tokens
        assert pair.generate_contrastive(REQUESTS, [1.0], SAMPLING)[0][0][0].tokens


@pytest.fixture
def padded_folder(tiny_models: Any, tmp_path: Path) -> Path:
    """A model whose tokenizer got a token for padding, and one more, that the embeddings were not resized for."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models())
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<added>"])
    folder = tmp_path / "padded"
    AutoModelForCausalLM.from_pretrained(tiny_models(seed=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("side", ["base", "finetuned", "both"])
def test_padding_that_the_model_has_no_row_for(
    side: str, padded_folder: Path, tiny_models: Any, make_pair: Any, tmp_path: Path
) -> None:
    plain = tiny_models()
    spec = {
        "base": lambda: make_pair(padded_folder, finetuned=plain),
        "finetuned": lambda: make_pair(plain, finetuned=padded_folder),
        "both": lambda: make_pair(padded_folder, declared_identical=True),
    }[side]()
    with ModelPairs().use(spec) as pair:
        assert 0 <= pair.tokenizer.pad_token_id < pair.vocab_size
        assert not pair.new_tokens
        alone = _logits(pair, "finetuned", IDS[1:, :2], MASK[1:, :2])
        for filler in (pair.tokenizer.pad_token_id, 320, -100):
            ids = IDS.masked_fill(MASK == 0, filler)
            torch.testing.assert_close(_logits(pair, "finetuned", ids, MASK)[1:, :2], alone)
            torch.testing.assert_close(
                pair.token_log_probs("finetuned", ids, MASK), pair.token_log_probs("finetuned", IDS, MASK)
            )
        together = [each[0].text for each in pair.generate("finetuned", REQUESTS, SAMPLING)]
        assert together == [pair.generate("finetuned", [request], SAMPLING)[0][0].text for request in REQUESTS]
        assert len(pair.generate_contrastive(REQUESTS, [1.0], SAMPLING)[0]) == 2
        run_methods(ModelPairs(), spec, [("kl", {"max_samples": 4})], RunStore(tmp_path / "runs"))


def test_text_with_a_token_that_the_model_has_no_row_for(padded_folder: Path, make_pair: Any) -> None:
    with ModelPairs().use(make_pair(padded_folder, declared_identical=True)) as pair:
        ids = torch.tensor([pair.tokenizer("the <added> dog")["input_ids"]])
        with pytest.raises(InvalidInput, match=r"<added>.*resize_token_embeddings"):
            pair.forward("base", ids, torch.ones_like(ids))
        with pytest.raises(InvalidInput, match=r"<added>.*resize_token_embeddings"):
            pair.generate("base", [GenerationRequest(text="the <added> dog")], SAMPLING)
        with pytest.raises(InvalidInput, match=r"<added>.*resize_token_embeddings"):
            pair.generate_contrastive([GenerationRequest(text="the <added> dog")], [1.0], SAMPLING)
