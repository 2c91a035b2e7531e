"""Memory: least recently used first, never what is in use, sequential pairs, threads."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch

from diffing_mcp.core.errors import Cancelled, InvalidInput, OutOfRoom, UnknownName
from diffing_mcp.model_pairs.fingerprint import stored_bytes
from diffing_mcp.model_pairs.residency import ModelPairs

TOKENS = torch.tensor([[7, 30, 41, 52, 63, 74]])
ONES = torch.ones_like(TOKENS)


def test_least_recently_used_goes_first(tiny_models, make_pair):
    folders = [tiny_models(seed=seed) for seed in (0, 1, 2)]
    size = stored_bytes(folders[0])
    pairs = ModelPairs(memory_limit=int(2.5 * size))
    specs = [make_pair(folder, declared_identical=True, name=f"pair {index}") for index, folder in enumerate(folders)]
    for spec in (specs[0], specs[1], specs[0]):
        with pairs.use(spec) as pair:
            assert not pair.sequential
    with pairs.use(specs[2]):
        assert {status.label for status in pairs.models.status()} == {str(folders[2]), str(folders[0])}
    assert all(status.bytes == pytest.approx(size, rel=0.02) for status in pairs.models.status())


def test_models_in_use_stay(tiny_models, make_pair):
    folders = [tiny_models(seed=seed) for seed in (0, 1)]
    pairs = ModelPairs(memory_limit=int(1.5 * stored_bytes(folders[0])))
    first, second = (make_pair(folder, declared_identical=True) for folder in folders)
    with pairs.use(first) as pair:
        before = pair.forward("base", TOKENS, ONES).logits
        with pytest.raises(OutOfRoom, match="in use"), pairs.use(second):
            pass
        with pytest.raises(InvalidInput, match="in use"):
            pairs.models.unload(str(folders[0]))
        assert torch.equal(pair.forward("base", TOKENS, ONES).logits, before)
    with pairs.use(second) as pair:
        pair.forward("base", TOKENS, ONES)
    with pytest.raises(OutOfRoom), ModelPairs(memory_limit=1000).use(first):
        pass


def test_unloading_frees_the_weights(tiny_models, make_pair):
    pairs = ModelPairs()
    with (
        pairs.use(make_pair(tiny_models(), declared_identical=True, name="mine")) as pair,
        pair.sides["base"].hold() as resident,
    ):
        reference = weakref.ref(resident.transformer.get_input_embeddings().weight)
        del resident
    assert reference() is not None
    assert pairs.models.unload("mine") > 0
    del pair
    gc.collect()
    assert reference() is None
    assert pairs.models.status() == []
    with pytest.raises(UnknownName, match="mine"):
        pairs.models.unload("mine")


def test_unused_adapters_make_room_for_new_ones(tiny_models, tiny_adapters, make_pair):
    folder = tiny_models()
    adapters = [tiny_adapters(folder, seed=seed, rank=8) for seed in (1, 2, 3)]
    size = (adapters[0] / "adapter_model.safetensors").stat().st_size
    pairs = ModelPairs(memory_limit=stored_bytes(folder) + int(2.5 * size))
    outputs: dict[int, torch.Tensor | None] = {}
    with pairs.use(make_pair(folder, declared_identical=True)):
        for index in (0, 1, 2, 0):
            with pairs.use(make_pair(folder, adapter=adapters[index])) as pair:
                logits = pair.forward("finetuned", TOKENS, ONES).logits
                assert torch.equal(outputs.setdefault(index, logits), logits)
                assert pairs.models.status()[0].adapters <= 2


def test_two_full_models_that_do_not_fit_run_in_turn(tiny_models, make_pair):
    base, finetuned = tiny_models(seed=0), tiny_models(seed=1)
    spec = make_pair(base, finetuned=finetuned, name="big")
    roomy = ModelPairs()
    with roomy.use(spec) as pair:
        assert not pair.sequential
        expected = {side: pair.forward(side, TOKENS, ONES, layers=[1]) for side in ("base", "finetuned")}
        assert len(roomy.models.status()) == 2
    pairs = ModelPairs(memory_limit=int(1.5 * stored_bytes(base)))
    with pairs.use(spec) as pair:
        assert pair.sequential
        assert (pair.num_layers, pair.d_model, pair.vocab_size, pair.context_length) == (3, 32, 320, 256)
        for side in ("base", "finetuned"):
            with pair.side_loaded(side):
                assert len(pairs.models.status()) == 1
                out = pair.forward(side, TOKENS, ONES, layers=[1])
                assert torch.equal(out.logits, expected[side].logits)
                assert torch.equal(out.hidden[1], expected[side].hidden[1])
            # Outside of the context it works too, loading as needed.
        assert torch.equal(pair.forward("base", TOKENS, ONES).logits, expected["base"].logits)
        with pair.side_loaded("base"), pytest.raises(OutOfRoom):
            pair.forward("finetuned", TOKENS, ONES)


def test_threads_share_a_base_and_get_their_own_side(tiny_models, tiny_adapters, make_pair):
    pairs = ModelPairs()
    folder = tiny_models(seed=5)
    specs = [make_pair(folder, adapter=tiny_adapters(folder, seed=seed), name=str(seed)) for seed in (1, 2)]
    expected = {}
    for spec in specs:
        with pairs.use(spec) as pair:
            for side in ("base", "finetuned"):
                expected[spec.name, side] = pair.forward(side, TOKENS, ONES).logits
    pairs.models.unload(str(folder))
    wrong = []

    def work(spec, side):
        try:
            for _ in range(6):
                with pairs.use(spec) as pair:
                    if not torch.equal(pair.forward(side, TOKENS, ONES).logits, expected[spec.name, side]):
                        wrong.append((spec.name, side))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(spec, side)) for spec in specs for side in ("base", "finetuned")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert len(pairs.models.status()) == 1


def test_cancelling_while_loading_leaves_nothing_in_use(tiny_models, make_pair):
    pairs = ModelPairs()
    spec = make_pair(tiny_models(), declared_identical=True)

    def cancel(done, total=None, message=""):
        if message == "loading a model":
            raise Cancelled("stop")

    with pytest.raises(Cancelled), pairs.use(spec, cancel):
        pass
    assert pairs.models.status() == []
    with pairs.use(spec) as pair:
        pair.forward("base", TOKENS, ONES)
