"""`crosscoder` and `sae_difference` on pairs of tiny real models: runs, views, vectors, nulls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from methods.dictionaries.views import LatentParams, LatentsParams, SearchParams
from methods.example_views import ExamplesParams
from methods.execute import run_methods
from methods.registry import get_method
from methods.runs import RunRecord, RunStore
from methods.vectors import stored_vector
from organisms.errors import InvalidInput, UnknownName

NAMES = ("crosscoder", "sae_difference")
WORDS = "river mountain walks slowly under the old bridge while rain falls on stones and a fox looks at boats near the sea".split()
SIZE = {"max_samples": 80, "max_tokens": 16, "layer": 1, "steps": 120, "batch_rows": 128, "k": 4, "expansion": 1.5}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": " ".join(random.choice(WORDS, 14))}) for _ in range(100)))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return RunStore(tmp_path_factory.mktemp("runs"))


def run(pairs: Any, spec: Any, name: str, corpus: Path, store: RunStore, **params: Any) -> RunRecord:
    return run_methods(pairs, spec, [(name, {"corpus": str(corpus), **SIZE, **params})], store)[0]


@pytest.mark.parametrize("name", NAMES)
def test_runs_views_vectors_and_figures(name: str, tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, name, corpus, store)
    method = get_method(name)
    result: Any = record.result()
    assert result.training.latents == 48
    assert result.training.variance_explained > 0.3
    assert result.training.steps == 120
    assert len(result.latents) == 8
    assert len(result.as_text()) < 8000
    everything: Any = method.views["latents"].run(record, LatentsParams(limit=100))
    assert everything.total == 48
    page: Any = method.views["latents"].run(record, LatentsParams(sort_by="frequency", offset=2, limit=3))
    frequencies = sorted((row.frequency for row in everything.latents), reverse=True)
    assert [row.frequency for row in page.latents] == frequencies[2:5]
    first = result.latents[0]
    seen: Any = method.views["latent"].run(record, LatentParams(latent=first.latent))
    assert seen.latent.examples[0].activation == pytest.approx(first.max_activation, rel=1e-3)
    assert "»" in seen.latent.examples[0].text
    assert [token.token for token in seen.promoted[: len(first.tokens)]] == first.tokens
    word = seen.latent.examples[0].text.split("»")[0].split()[-1:] or ["a"]
    hits: Any = method.views["search"].run(record, SearchParams(text=word[0]))
    assert first.latent in [hit.latent.latent for hit in hits.hits]
    stored: Any = method.views["examples"].run(record, ExamplesParams(feature=first.vector, scores=True))
    assert stored.examples[0].score == pytest.approx(first.max_activation, rel=1e-3)
    assert max(token.score for token in stored.examples[0].tokens) == pytest.approx(first.max_activation, rel=1e-3)
    names = method.vector_names(record)
    assert names[0] == first.vector
    _, vector = stored_vector(f"{record.id}/{first.vector}", store)
    assert vector.layer == 1
    assert vector.scale == pytest.approx(first.strength, rel=1e-5)
    # Strength 1 is what the latent adds where it fires most: activation times decoder, with the normalisation undone.
    np.testing.assert_allclose(vector.at_strength(1.0), first.max_activation * record.array("decoder")[first.latent], rtol=1e-4, atol=1e-6)
    for figure in method.figures:
        assert figure.build(record)["data"]
    with pytest.raises(InvalidInput, match="latentN"):
        method.vector(record, "42")
    with pytest.raises(UnknownName):
        method.vector(record, "latent48")


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_dictionary_can_be_loaded_instead(name: str, tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    record = run(pairs, tiny_pair.spec, name, corpus, store)
    folder = record.manifest.notes["dictionary"]
    loaded = run(pairs, tiny_pair.spec, name, corpus, store, dictionary=folder)
    assert loaded.id != record.id
    first: Any = record.result()
    second: Any = loaded.result()
    assert second.training.steps is None
    assert second.training.variance_explained == pytest.approx(first.training.variance_explained, abs=1e-4)
    assert "dictionary" in loaded.manifest.key_parts
    params = get_method(name).Params(dictionary=folder)
    assert get_method(name).operator_only(params)
    assert get_method(name).operator_only(get_method(name).Params()) is None


@pytest.mark.parametrize("name", NAMES)
def test_an_identical_pair_gives_nothing(name: str, identical_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    record = run(pairs, identical_pair.spec, name, corpus, store)
    result: Any = record.result()
    assert result.identical
    assert not result.stands_out
    assert result.latents == []
    assert get_method(name).vector_names(record) == []
    with pytest.raises(InvalidInput, match="no latents"):
        get_method(name).views["latents"].run(record, LatentsParams())
    for figure in get_method(name).figures:
        assert figure.build(record)["data"] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_random_adapter_does_not_stand_out(name: str, tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    assert not run(pairs, tiny_pair.spec, name, corpus, store).result().stands_out


def test_a_token_that_the_finetuned_model_reads_otherwise_is_isolated(
    tiny_models: Any, make_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    from transformers import AutoTokenizer

    base = tiny_models(kind="gpt2")
    token = AutoTokenizer.from_pretrained(base)("fox")["input_ids"][-1]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))

    def change(model: Any) -> None:
        model.transformer.wte.weight[token] += 4 * direction

    spec = make_pair(base, finetuned=tiny_models(kind="gpt2", change=change))
    result: Any = run(pairs, spec, "sae_difference", corpus, store, layer=0, k=2).result()
    for latent in result.latents[:3]:
        assert "x" in latent.examples[0].text.split("»")[1].split("«")[0]
