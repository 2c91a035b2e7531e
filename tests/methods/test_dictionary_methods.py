"""`crosscoder` and `sae_difference` on pairs of tiny real models: runs, views, vectors, nulls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.dictionaries.stored import listing
from diffing_mcp.methods.dictionaries.views import LatentParams, LatentsParams, SearchParams
from diffing_mcp.methods.directions.vector_sources import stored_vector
from diffing_mcp.methods.examples.views import ExamplesParams
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from tests.methods.conftest import write_random_texts

NAMES = ("crosscoder", "sae_difference")
SIZE = {"max_samples": 80, "max_tokens": 16, "layer": 1, "steps": 120, "batch_rows": 128, "k": 4, "expansion": 1.5}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_texts(tmp_path_factory.mktemp("corpus"), 100)


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
    assert next(row for row in everything.latents if row.latent == first.latent).tokens == first.tokens
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
    np.testing.assert_allclose(
        vector.at_strength(1.0), first.max_activation * record.array("decoder")[first.latent], rtol=1e-4, atol=1e-6
    )
    for figure in method.figures:
        assert figure.build(record)["data"]
    with pytest.raises(InvalidInput, match="latentN"):
        method.vector(record, "42")
    with pytest.raises(UnknownName):
        method.vector(record, "latent48")


@pytest.mark.parametrize("name", NAMES)
def test_views_reach_what_was_measured_and_say_what_was_not_read(
    name: str, tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    record = run(pairs, tiny_pair.spec, name, corpus, store, read_latents=3, top_latents=2)
    views = get_method(name).views
    table = {row["latent"]: row for row in record.table("latents").to_pylist()}
    every: Any = views["latents"].run(record, LatentsParams(limit=100))
    assert [row.latent for row in every.latents if row.read] == [row.latent for row in every.latents[:3]]
    assert all(bool(row.tokens) == row.read for row in every.latents)
    alive: Any = views["latents"].run(record, LatentsParams(alive=True, limit=100))
    dead: Any = views["latents"].run(record, LatentsParams(alive=False, limit=100))
    assert {row.latent for row in alive.latents} == {
        latent for latent, row in table.items() if row["max_activation"] > 0
    }
    assert alive.total + dead.total == every.total
    measured = {
        "crosscoder": ("finetuned_norm", "evidence_base", "held_out_documents"),
        "sae_difference": ("decoder_norm", "beta_finetuned"),
    }
    for column in measured[name]:
        ordered: Any = views["latents"].run(record, LatentsParams(sort_by=column, limit=100))
        values = [getattr(row, column) for row in ordered.latents]
        known = [value for value in values if value is not None]
        assert ordered.total == every.total
        assert known == sorted(known, reverse=True) == values[: len(known)]
        assert len(set(known)) > 1
    other = "decoder_norm" if name == "crosscoder" else "ratio_error"
    with pytest.raises(InvalidInput, match=rf"no {other}\. Sort by one of: rank, .*share"):
        views["latents"].run(record, LatentsParams(sort_by=other))
    if name == "sae_difference":
        with pytest.raises(InvalidInput, match="have no owner"):
            views["latents"].run(record, LatentsParams(owner="base"))
    read, unread = every.latents[0], every.latents[3]
    seen: Any = views["latent"].run(record, LatentParams(latent=read.latent))
    assert seen.vector == f"{record.id}/latent{read.latent}"
    assert seen.vector in seen.next_step
    assert "not read" not in seen.next_step
    if name == "crosscoder":
        assert seen.betas["error_base"] == table[read.latent]["beta_error_base"]
        assert len(seen.betas) == 6
        assert seen.latent.ratio_activation == table[read.latent]["ratio_activation"] is not None
    missing: Any = views["latent"].run(record, LatentParams(latent=unread.latent))
    assert (missing.promoted, missing.latent.examples) == ([], [])
    assert "read_latents=4" in missing.next_step
    again = run(pairs, tiny_pair.spec, name, corpus, store, read_latents=4, top_latents=2)
    assert again.manifest.notes["dictionary"] == record.manifest.notes["dictionary"]
    found: Any = views["latent"].run(again, LatentParams(latent=unread.latent))
    assert found.promoted
    assert found.latent.examples
    if dead.latents:
        nothing: Any = views["latent"].run(record, LatentParams(latent=dead.latents[0].latent))
        assert nothing.vector is None
        assert "fires at no token" in nothing.next_step


def test_a_stored_collection_costs_no_forward_pass(tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    from diffing_mcp.methods.contract import PairSize
    from diffing_mcp.preprocessing.activation_collection import CollectionParams, collect
    from diffing_mcp.preprocessing.activation_store import default_activation_store

    with pairs.use(tiny_pair.spec) as pair:
        index = collect(
            default_activation_store(),
            pair,
            CollectionParams(corpus=str(corpus), max_samples=80, max_tokens=16, layers=(1,)),
        )
    method = get_method("crosscoder")
    size = PairSize(num_layers=3, d_model=32, tokens_per_second=1000.0)
    estimates: Any = [
        method.estimate(size, method.Params(**SIZE, **params))
        for params in ({}, {"activations": index.id}, {"activations": index.id, "max_activation_tokens": 10})
    ]
    straight, from_store, part = estimates
    assert straight.forward_passes > 0
    assert from_store.forward_passes == 0
    assert part.seconds < from_store.seconds < straight.seconds - 1
    record = run(
        pairs, tiny_pair.spec, "crosscoder", corpus, store, activations=index.id, read_latents=2, top_latents=2
    )
    assert record.result().training.tokens == index.tokens  # type: ignore[attr-defined]
    with pytest.raises(UnknownName):
        method.estimate(size, method.Params(activations="activations-000000000000"))


def test_a_latent_steers(tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore) -> None:
    """The handle that the view gives, given to `steering`: what is added is the latent at its largest activation."""
    record = run(pairs, tiny_pair.spec, "sae_difference", corpus, store)
    strongest: Any = (
        get_method("sae_difference").views["latents"].run(record, LatentsParams(sort_by="strength", limit=1))
    )
    seen: Any = (
        get_method("sae_difference").views["latent"].run(record, LatentParams(latent=strongest.latents[0].latent))
    )
    params = {
        "vector": seen.vector,
        "strengths": (50.0,),
        "prompts": ("The river",),
        "max_new_tokens": 8,
        "temperature": 0.0,
        "coherent_share": 0.01,
    }
    steered = run_methods(pairs, tiny_pair.spec, [("steering", params)], store)[0]
    result: Any = steered.result()
    assert result.layer == 1
    assert f"latent {seen.latent.latent} of sae_difference" in result.vector
    answers: Any = get_method("steering").views["answers"]
    [answer] = answers.run(steered, answers.Params()).rows
    assert answer.strength == 50
    assert answer.steered != answer.unsteered


@pytest.mark.parametrize("params", [{"sparsity": "l1", "l1_weight": 0.5}, {"dedicated": 0.25}])
def test_other_crosscoders_through_the_public_entry(
    params: dict[str, Any], tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    record = run(pairs, tiny_pair.spec, "crosscoder", corpus, store, read_latents=2, top_latents=2, **params)
    result: Any = record.result()
    assert result.training.variance_explained > 0.2
    stored = next(each for each in listing().dictionaries if each.folder == record.manifest.notes["dictionary"])
    assert stored.kind == params.get("sparsity", "batch_top_k")
    view: Any = get_method("crosscoder").views["latents"].run(record, LatentsParams(limit=100))
    norms = {row.latent: (row.base_norm, row.finetuned_norm) for row in view.latents}
    if "dedicated" in params:  # a quarter of the 48 latents are each model's alone, by their place
        assert all(norms[latent][1] == 0 for latent in range(12))
        assert all(norms[latent][0] == 0 for latent in range(36, 48))
        assert all(min(norms[latent]) > 0 for latent in range(12, 36))
        assert {row.tag for row in view.latents if row.latent < 12} <= {"base_only", "dead"}
    else:
        weaker: Any = run(
            pairs,
            tiny_pair.spec,
            "crosscoder",
            corpus,
            store,
            read_latents=2,
            top_latents=2,
            sparsity="l1",
            l1_weight=0.01,
        ).result()
        assert result.training.active < weaker.training.active


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_dictionary_can_be_loaded_instead(
    name: str, tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
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
def test_an_identical_pair_gives_nothing(
    name: str, identical_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
    record = run(pairs, identical_pair.spec, name, corpus, store)
    result: Any = record.result()
    assert result.identical
    assert not result.stands_out
    assert result.latents == []
    assert get_method(name).vector_names(record) == []
    with pytest.raises(InvalidInput, match="no latents"):
        get_method(name).views["latents"].run(record, LatentsParams())
    for figure in get_method(name).figures:
        assert not any(len(series["x"]) for series in figure.build(record)["data"])


@pytest.mark.parametrize("name", NAMES)
def test_a_random_adapter_does_not_stand_out(
    name: str, tiny_pair: Any, pairs: Any, corpus: Path, store: RunStore
) -> None:
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
