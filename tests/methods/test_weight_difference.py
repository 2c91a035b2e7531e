"""Weight difference: a planted rank-1 change is found where it is, factors give what dense decomposition gives, equal
weights give nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.directions.vector_sources import stored_vector
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.methods.weight_difference.method import DirectionsParams, ModulesParams
from diffing_mcp.methods.weight_difference.singular_directions import randomised_svd, spectrum
from diffing_mcp.model_pairs.modules import LowRank


def run(pairs: Any, spec: Any, store: RunStore, **params: Any) -> RunRecord:
    return run_methods(pairs, spec, [("weight_difference", params)], store)[0]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_effective_rank_and_values_of_known_spectra() -> None:
    left, right = torch.linalg.qr(random(40, 6))[0], torch.linalg.qr(random(30, 6, seed=1))[0]
    equal = spectrum((left * 2.0) @ right.T, 8)
    assert equal.effective_rank == pytest.approx(6)
    assert equal.norm == pytest.approx(2 * 6**0.5)
    assert spectrum(LowRank(left[:, :1], right.T[:1]), 8).effective_rank == pytest.approx(1)
    values = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    factors = spectrum(LowRank(left[:, :3] * values, right.T[:3]), 2)
    assert factors.effective_rank == pytest.approx(21**2 / (256 + 16 + 1))
    torch.testing.assert_close(factors.values, values[:2])


def test_factors_equal_the_dense_decomposition() -> None:
    low = LowRank(random(48, 5), random(5, 33, seed=1))
    exact, dense = spectrum(low, 5), spectrum(low.left @ low.right, 5)
    torch.testing.assert_close(exact.values, dense.values, rtol=1e-5, atol=0)
    assert exact.norm == pytest.approx(dense.norm, rel=1e-5)
    for ours, theirs in ((exact.left, dense.left), (exact.right, dense.right)):
        assert (ours * theirs).sum(0).abs().min() > 1 - 1e-5
    cancelled = LowRank(torch.cat([low.left, -low.left[:, :4]], 1), torch.cat([low.right, low.right[:4]]))
    assert len(spectrum(cancelled, 5).values) == 1


def test_large_matrices_are_decomposed_by_the_randomised_method() -> None:
    matrix = (random(600, 20) * torch.arange(20, 0, -1)) @ random(20, 700, seed=1) + 0.05 * random(600, 700, seed=2)
    exact = torch.linalg.svd(matrix, full_matrices=False)
    found = spectrum(matrix.float(), 4)
    assert found.how == "randomised"
    torch.testing.assert_close(found.values, exact.S[:4], rtol=1e-4, atol=0)
    assert found.effective_rank == pytest.approx(float(exact.S.square().sum() ** 2 / exact.S.pow(4).sum()), rel=1e-4)
    assert torch.equal(randomised_svd(matrix.float(), 3, 1)[1], randomised_svd(matrix.float(), 3, 1)[1])


def test_a_planted_direction_is_found(tiny_models: Any, make_pair: Any, pairs: Any, store: RunStore) -> None:
    written, read = random(32).float(), random(64, seed=1).float()

    def plant(model: Any) -> None:
        model.model.layers[1].mlp.down_proj.weight += 0.1 * torch.outer(written, read)

    record = run(pairs, make_pair(tiny_models(), finetuned=tiny_models(change=plant)), store)
    result: Any = record.result()
    [row] = result.modules
    assert (row.layer, row.module, row.part) == (1, "mlp.down_proj", "mlp")
    assert row.norm == pytest.approx(0.1 * float(written.norm() * read.norm()), rel=1e-4)
    assert row.effective_rank == pytest.approx(1, abs=1e-3)
    assert row.singular_values[0] == pytest.approx(row.norm, rel=1e-4)
    _, vector = stored_vector(f"{record.id}/1:mlp.down_proj:0", store)
    assert abs(float(np.dot(vector.values, written.numpy()))) / float(written.norm()) > 0.99
    assert vector.layer == 1
    assert vector.norm == pytest.approx(1, rel=1e-5)
    assert vector.scale > 1
    assert [part.changed for part in result.parts if part.part == "mlp"] == [1]
    assert next(iter(get_method("weight_difference").vector_names(record))) == "1:mlp.down_proj:0"
    with pytest.raises(InvalidInput, match="LAYER:MODULE:N"):
        stored_vector(f"{record.id}/down_proj", store)
    with pytest.raises(UnknownName, match=r"1:mlp\.down_proj:0"):
        stored_vector(f"{record.id}/2:mlp.down_proj:0", store)


@pytest.mark.parametrize("kind", ["gemma2", "olmo2", "glm4"])
def test_what_is_written_has_passed_the_norm_behind_the_mlp(
    kind: str, tiny_models: Any, make_pair: Any, pairs: Any, store: RunStore
) -> None:
    """Such norms multiply every dimension before it is added: the direction that reaches the stream is read."""
    written = random(32).float()

    def model(planted: float) -> Path:
        def change(net: Any) -> None:
            layer = net.model.layers[1]
            norm = getattr(layer, "post_mlp_layernorm" if kind == "glm4" else "post_feedforward_layernorm")
            norm.weight += random(32, seed=2).float()
            gain = norm(torch.ones(32))
            read = random(layer.mlp.down_proj.weight.shape[1], seed=1).float()
            layer.mlp.down_proj.weight += planted * torch.outer(written / gain, read)

        return Path(tiny_models(kind, change=change))

    record = run(pairs, make_pair(model(0.0), finetuned=model(0.01)), store)
    _, vector = stored_vector(f"{record.id}/1:mlp.down_proj:0", store)
    assert abs(float(vector.values @ written.numpy())) / float(written.norm()) > 0.999
    assert vector.norm == pytest.approx(1, rel=1e-5)


def test_words_that_a_direction_writes_stand_out(
    planted_words: Any, tiny_models: Any, make_pair: Any, pairs: Any, store: RunStore
) -> None:
    """A change that writes several words' unembedding rows reads as those words; an equally large one along a random
    direction does not.
    """
    from transformers import AutoTokenizer

    folder, _, words = planted_words(0.0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(f" {word}")["input_ids"][0] for word in words[:3]]

    def model(direction: Any = None) -> Path:
        def change(net: Any) -> None:
            written = direction(net)
            net.model.layers[1].self_attn.o_proj.weight -= 0.3 * torch.outer(
                written / written.norm(), random(256).float()
            )

        # Wide enough for z to reach the null level: three rows of a width d have z of about sqrt(d / 3).
        common = {
            "width": 256,
            "layers": 2,
            "vocabulary": len(tokenizer),
            "tie_word_embeddings": False,
            "tokenizer": False,
        }
        built = tiny_models(**common, change=None if direction is None else change)
        tokenizer.save_pretrained(built)
        return built

    base = model()
    found: Any = run(
        pairs, make_pair(base, finetuned=model(lambda net: net.lm_head.weight[ids].sum(0))), store
    ).result()
    assert found.stands_out
    assert {word.word for word in found.words if word.together >= 3} == set(words[:3])
    assert {token.token.strip() for token in found.directions[0].positive[:3]} == set(words[:3])
    assert found.directions[0].vector == "1:self_attn.o_proj:0"
    assert {word.word for word in found.evidence_words()} == set(words[:3])
    other: Any = run(pairs, make_pair(base, finetuned=model(lambda net: random(256, seed=9).float())), store).result()
    assert not other.stands_out
    assert "size alone" in other.headline
    assert other.evidence_words() == []


def test_a_planted_embedding_row_is_read(
    tiny_models: Any, tiny_tokenizer_folder: Path, make_pair: Any, pairs: Any, store: RunStore
) -> None:
    """A matrix that learned to respond to one token reads as that token, whatever it writes."""
    from transformers import AutoTokenizer

    token = 300

    def plant(model: Any) -> None:
        row = model.model.embed_tokens.weight[token]
        model.model.layers[1].mlp.up_proj.weight += torch.outer(random(64).float(), row / row.norm())

    record = run(pairs, make_pair(tiny_models(), finetuned=tiny_models(change=plant)), store)
    page: Any = get_method("weight_difference").views["directions"].run(record, DirectionsParams(module="up_proj", k=3))
    first = page.rows[0]
    assert (first.layer, first.index, first.read_as, first.vector) == (1, 0, "reads", None)
    text = AutoTokenizer.from_pretrained(tiny_tokenizer_folder).decode([token])
    best = max(
        (first.positive[0], first.negative[0]), key=lambda row: row.z
    )  # the sign of a singular direction is arbitrary
    assert best.token == text
    assert best.z > 4
    assert first.share == pytest.approx(1, abs=1e-3)


class Products(TorchDispatchMode):
    """Records the shapes of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in {torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm}:
            self.shapes.append(tuple(result.shape))
        return result


def test_the_product_of_lora_factors_is_never_formed(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, lora_delta: Any
) -> None:
    model = tiny_models()
    adapter = tiny_adapters(model, rank=2)
    whole = {(64, 32), (32, 64), (32, 32), (16, 32), (32, 16)}  # shapes of the adapted weights
    with pairs.use(make_pair(model, adapter=adapter)) as pair, Products() as seen:
        found = [spectrum(each.delta, 2) for each in pair.weight_deltas() if each.delta is not None]
    assert len(found) == 3 * 7
    assert all(len(each.values) == 2 for each in found)
    assert seen.shapes
    assert not whole & set(seen.shapes)
    with Products() as control:
        lora_delta(adapter, "model.layers.0.mlp.up_proj")
    assert whole & set(control.shapes)  # a product that is formed is seen


def test_adapters_on_one_base_and_views(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, store: RunStore, lora_delta: Any
) -> None:
    model = tiny_models()
    pattern = {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 8}}
    first, second = (
        tiny_adapters(model, seed=1, targets=["down_proj", "q_proj"], **pattern),
        tiny_adapters(model, seed=2, targets=["q_proj"]),
    )
    record = run(pairs, make_pair(model, base_adapter=first, adapter=second), store)
    view: Any = (
        get_method("weight_difference").views["modules"].run(record, ModulesParams(contains="q_proj", sort="place"))
    )
    assert view.total == 3
    for row in view.rows:
        name = f"model.layers.{row.layer}.self_attn.q_proj"
        values = torch.linalg.svdvals((lora_delta(second, name) - lora_delta(first, name)).double())
        np.testing.assert_allclose(row.singular_values, values[:8], rtol=1e-5)
        assert row.norm == pytest.approx(float(values.norm()), rel=1e-5)
    down: Any = (
        get_method("weight_difference").views["modules"].run(record, ModulesParams(layer=0, contains="down_proj"))
    )
    assert len(down.rows[0].singular_values) == 2
    assert down.rows[0].norm == pytest.approx(
        2 * float(lora_delta(first, "model.layers.0.mlp.down_proj").norm()), rel=1e-5
    )  # its alpha / r is 4, not 2
    page: Any = (
        get_method("weight_difference").views["directions"].run(record, DirectionsParams(module="q_proj", limit=2, k=3))
    )
    assert page.total == 9
    assert page.next_offset == 2
    assert all(row.read_as == "reads" and row.vector is None and len(row.positive) == 3 for row in page.rows)
    figure = get_method("weight_difference").figures[0].build(record)
    assert figure["data"][0]["x"] == ["0", "1", "2"]
    assert figure["data"][0]["zmax"] == max(
        value for row in figure["data"][0]["z"] for value in row if value is not None
    )
    assert figure["data"][0]["y"] == ["self_attn.q_proj", "mlp.down_proj"]


def test_an_identical_pair_is_exactly_zero(identical_pair: Any, pairs: Any, store: RunStore) -> None:
    record = run(pairs, identical_pair.spec, store)
    result: Any = record.result()
    assert result.identical
    assert not result.stands_out
    assert result.relative_norm == 0
    assert result.words == result.directions == result.modules == []
    assert result.as_text() == result.headline
    assert get_method("weight_difference").vector_names(record) == []
    assert get_method("weight_difference").figures[0].build(record)["data"]


def test_layers_and_modules_narrow(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, store, layers=[1.0], modules=["mlp"], directions=1)
    rows: Any = get_method("weight_difference").views["modules"].run(record, ModulesParams(sort="place"))
    assert [(row.layer, row.module) for row in rows.rows] == [
        (2, "mlp.gate_proj"),
        (2, "mlp.up_proj"),
        (2, "mlp.down_proj"),
    ]
    with pytest.raises(InvalidInput, match="No module"):
        run(pairs, tiny_pair.spec, store, modules=["w_proj"])
