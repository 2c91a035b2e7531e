"""Several collections read as one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.preprocessing.activation_collection import CollectionParams, collect
from diffing_mcp.preprocessing.activation_mixture import mixed
from diffing_mcp.preprocessing.activation_rows import ActivationRows, MemoryRows
from diffing_mcp.preprocessing.activation_sources import ActivationSourceParams, activations_of
from diffing_mcp.preprocessing.activation_store import ActivationStore
from diffing_mcp.preprocessing.text_sources import source_identity
from tests.preprocessing.plain_rows import LAYERS
from tests.word_pairs import save_pair, write_texts


@pytest.fixture(scope="module")
def more_texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_texts(tmp_path_factory.mktemp("more") / "texts.jsonl", 120, 20, seed=1))


def test_several_collections_are_read_as_one_mixture(
    pair: LoadedPair, texts: str, more_texts: str, store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [collect(store, pair, CollectionParams(corpus=name, layers=LAYERS)) for name in (texts, more_texts)]
    opened = [store.open(index.id, pair.spec, [1])[1] for index in parts]
    mixture = ActivationSourceParams(activations=f"{parts[0].id}, {parts[1].id}")
    reader = activations_of(pair, mixture, [1])[1]
    assert reader.num_tokens == sum(index.tokens for index in parts)
    assert reader.num_samples == sum(index.samples for index in parts)
    # Every sample of either is there, whole and with its own rows.
    wanted = {
        tuple(part.sample_ids(number)): rows.base for part in opened for number, rows in enumerate(part.samples())
    }
    for number, rows in enumerate(reader.samples()):
        assert torch.equal(rows.base, wanted.pop(tuple(reader.sample_ids(number))))
    assert not wanted
    [whole] = reader.blocks(10**6)
    for seed in (None, 3):
        for block in reader.blocks(37, seed=seed):
            assert torch.equal(block.finetuned, whole.finetuned[block.tokens])
    # Any stretch holds both in proportion, the end that is held out too; so does what a limit leaves.
    first_ids = {tuple(opened[0].sample_ids(number)) for number in range(opened[0].num_samples)}
    samples, _ = reader.locate(torch.arange(reader.num_tokens))
    of_first = torch.tensor([tuple(reader.sample_ids(int(sample))) in first_ids for sample in samples]).double()
    share = parts[0].tokens / reader.num_tokens
    for stretch in (of_first[:300], of_first[-300:], of_first[500:800]):
        assert stretch.mean() == pytest.approx(share, abs=0.06)
    limited = activations_of(pair, mixture.model_copy(update={"max_activation_tokens": 300}), [1])[1]
    assert torch.equal(next(iter(limited.blocks(300))).base, whole.base[:300])
    assert [part["id"] for part in source_identity(mixture)["activations"]] == [index.id for index in parts]
    assert len({reader.content_hash, *(part.content_hash for part in opened)}) == 3


def test_shuffled_pools_of_a_mixture_draw_from_all() -> None:
    def part(samples: int, value: float) -> ActivationRows:
        rows = MemoryRows(10 * samples, 1, [0], torch.float32)
        rows.put(0, torch.full((10 * samples, 1), value), torch.zeros(10 * samples, 1), torch.arange(10 * samples))
        return ActivationRows(
            0,
            1,
            10 * samples,
            str(value),
            10 * torch.arange(samples + 1),
            torch.zeros(10 * samples),
            1,
            rows.source(0),
            1600,
        )

    reader = mixed([part(3000, 0.0), part(1000, 1.0)])
    shares = [float(block.base.mean()) for block in reader.blocks(1600, seed=0)]
    assert len(shares) == 25
    assert all(share == pytest.approx(0.25, abs=0.1) for share in shares)


def test_collections_that_do_not_fit_together_are_refused(
    tmp_path: Path, pair: LoadedPair, texts: str, more_texts: str, store: ActivationStore
) -> None:
    first = collect(store, pair, CollectionParams(corpus=texts, layers=LAYERS))
    rounded = collect(store, pair, CollectionParams(corpus=more_texts, layers=(1,), dtype="bfloat16"))
    with ModelPairs().use(save_pair(tmp_path / "other", None)) as other:
        foreign = collect(store, other, CollectionParams(corpus=texts, layers=(1,)))
    for ids, layer, complaint in (
        (f"{first.id},{rounded.id}", 1, "one dtype"),
        (f"{first.id},{rounded.id}", 0, "holds the layers 1"),
        (f"{first.id},{foreign.id}", 1, "another pair"),
        (f"{first.id},{first.id}", 1, "more than once"),
    ):
        with pytest.raises(InvalidInput, match=complaint):
            activations_of(pair, ActivationSourceParams(activations=ids), [layer])
