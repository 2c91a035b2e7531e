"""Training and latent scaling of dictionaries, and their files, on synthetic activations with planted features."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffing_mcp.core.errors import Cancelled, InvalidInput
from diffing_mcp.methods.contract import PairSize
from diffing_mcp.methods.crosscoder.measure import analyse as analyse_crosscoder
from diffing_mcp.methods.crosscoder.measure import count_owned, headline
from diffing_mcp.methods.dictionaries.crosscoder_trainer import dedicated_mask
from diffing_mcp.methods.dictionaries.evaluation import LatentTable
from diffing_mcp.methods.dictionaries.files import content_hash, load_dictionary, save_dictionary
from diffing_mcp.methods.dictionaries.latent_scaling import LatentScalingSums
from diffing_mcp.methods.dictionaries.models import SparseDictionary, batch_top_k, nth_largest
from diffing_mcp.methods.dictionaries.preparation import Prepared
from diffing_mcp.methods.dictionaries.recipe import TrainingRecipe
from diffing_mcp.methods.dictionaries.training import (
    RowsOf,
    Training,
    both_sides,
    differences,
    fit_normalisation,
    make_trainer,
    train,
)
from diffing_mcp.methods.sae_difference.measure import analyse as analyse_sae
from tests.methods.planted_latents import PlantedActivations, plant

BENCHMARK = {
    "kind": "batch_top_k",
    "latents": 512,
    "k": 8,
    "steps": 1500,
    "batch_rows": 512,
    "learning_rate": 5e-3,
    "validate_every": 500,
}
SMALL = {
    "kind": "batch_top_k",
    "latents": 96,
    "k": 3,
    "steps": 400,
    "batch_rows": 256,
    "learning_rate": 8e-3,
    "validate_every": 100,
}
SMALL_DATA = {"features": 40, "own": 3, "d_model": 24, "mean_active": 2.0}


def trained(data: PlantedActivations, recipe: TrainingRecipe, rows_of: RowsOf, **arguments: Any) -> Prepared:
    stop = int(0.8 * data.num_tokens)
    normalisation = fit_normalisation(data, rows_of, stop)
    training = train(data, rows_of, recipe, normalisation, stop, **arguments)
    return Prepared(data, training.dictionary, stop, training, rows_of)


def crosscoder(data: PlantedActivations, **recipe: Any) -> tuple[LatentTable, Prepared]:
    prepared = trained(data, TrainingRecipe(**recipe), both_sides)
    return analyse_crosscoder(prepared), prepared


def matches(data: PlantedActivations, vectors: torch.Tensor) -> list[int | None]:
    """For each vector the planted feature with a cosine above 0.9 to it."""
    cosine = torch.nn.functional.normalize(vectors, dim=1) @ data.directions.T
    return [int(row.argmax()) if float(row.max()) > 0.9 else None for row in cosine]


def check_recovery(data: PlantedActivations, analysis: LatentTable, prepared: Prepared) -> None:
    """Every planted feature of the finetuned model is found by latent scaling, nothing else is, and the base has none
    of its own.
    """
    owners = analysis.columns["owner"]
    owned = [latent for latent, owner in enumerate(owners) if owner == "finetuned"]
    found = matches(data, prepared.dictionary.decoder_of(1)[owned])
    assert set(found) == set(data.own)
    assert count_owned(analysis, "base") == 0
    first = [int(latent) for latent in analysis.order[: len(owned)]]
    assert set(first) == set(owned)  # ranked first


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("own_rate", [None, 0.005])
def test_planted_benchmark(seed: int, own_rate: float | None) -> None:
    data = plant(seed, 100_000, own_rate=own_rate)
    analysis, prepared = crosscoder(data, **BENCHMARK, seed=seed)
    check_recovery(data, analysis, prepared)
    assert analysis.explained.total >= 0.86


@pytest.fixture(scope="module")
def small() -> tuple[PlantedActivations, LatentTable, Prepared]:
    data = plant(0, 20_000, **SMALL_DATA)
    return data, *crosscoder(data, **SMALL)


def test_planted_latents_are_recovered(small: Any) -> None:
    data, analysis, prepared = small
    check_recovery(data, analysis, prepared)
    assert analysis.explained.total > 0.85
    assert analysis.explained.active == pytest.approx(
        SMALL["k"], rel=0.2
    )  # the threshold for inference is as sparse as the training
    assert headline(5, 0, [])[0]
    assert not headline(2, 2, [])[0]


def test_an_identical_pair_has_no_own_latent() -> None:
    data = plant(1, 20_000, identical=True, **SMALL_DATA)
    analysis, prepared = crosscoder(data, **SMALL | {"steps": 200})
    assert count_owned(analysis, "finetuned") == count_owned(analysis, "base") == 0
    assert not headline(0, 0, [])[0]
    torch.testing.assert_close(prepared.dictionary.decoder_of(0), prepared.dictionary.decoder_of(1), rtol=0, atol=1e-6)


@pytest.mark.long
def test_exchanged_models_exchange_owners(small: Any) -> None:
    data, _, _ = small
    analysis, _ = crosscoder(replace(data, base=data.finetuned, finetuned=data.base), **SMALL)
    assert count_owned(analysis, "finetuned") == 0
    assert count_owned(analysis, "base") == len(data.own)


def rare(seed: int, steps: int) -> dict[str, int]:
    """How many of three features on 0.5 % of the tokens a training of `steps` steps has learned, and how many of these
    either way of telling finds.

    Neither may call a latent the finetuned model's own that is nearest to a shared feature, nor any the base's.
    """
    data = plant(seed, 60_000, own_rate=0.005, **SMALL_DATA)
    analysis, prepared = crosscoder(data, **SMALL | {"steps": steps, "seed": seed})
    cosine = torch.nn.functional.normalize(prepared.dictionary.decoder_of(1), dim=1) @ data.directions.T
    nearest, known = cosine.argmax(1).tolist(), matches(data, prepared.dictionary.decoder_of(1))
    counts = {"learned": len(set(known) & set(data.own))}
    for name, column, tag in (("scaling", "owner", "finetuned"), ("norms", "tag", "finetuned_only")):
        chosen = [latent for latent, value in enumerate(analysis.columns[column]) if value == tag]
        assert {nearest[latent] for latent in chosen} <= set(data.own)
        counts[name] = len({known[latent] for latent in chosen} & set(data.own))
    assert count_owned(analysis, "base") == 0
    assert "base_only" not in analysis.columns["tag"]
    return counts


def test_latent_scaling_finds_every_rare_latent_that_was_learned() -> None:
    counts = rare(0, steps=300)
    assert counts["scaling"] == counts["learned"] >= 2
    assert counts["norms"] <= counts["scaling"]


@pytest.mark.long
def test_rare_latents_are_found_by_latent_scaling_before_decoder_norms_part() -> None:
    """Of 15 planted features on seeds 0 to 4: learned, found by latent scaling, found by the bins of decoder norms.
    Seen: 1, 1, 0 after 200 steps; 13, 13, 9 after 300; 15, 15, 14 after 400; 15, 15, 15 after 800. The norms miss rare
    latents of short trainings only."""
    totals = {}
    for steps in (300, 800):
        found = [rare(seed, steps) for seed in range(5)]
        totals[steps] = {name: sum(counts[name] for counts in found) for name in found[0]}
    short, long = totals[300], totals[800]
    assert short["scaling"] == short["learned"] >= 11
    assert short["norms"] <= short["scaling"] - 3
    assert long["scaling"] == long["learned"] == 15
    assert long["norms"] >= 13


@pytest.mark.long
def test_dedicated_latents_stay_of_one_model() -> None:
    data = plant(0, 20_000, **SMALL_DATA)
    recipe = TrainingRecipe(**SMALL | {"dedicated": 0.1})
    prepared = trained(data, recipe, both_sides)
    mask = dedicated_mask(recipe, data.d_model)
    assert not torch.any(prepared.dictionary.decoder[mask == 0])
    assert not torch.any(prepared.dictionary.encoder.T[mask == 0])
    assert prepared.dictionary.decoder_of(1)[-9:].norm(dim=1).min() > 0
    analysis = analyse_crosscoder(prepared)
    owned = [latent for latent, owner in enumerate(analysis.columns["owner"]) if owner == "finetuned"]
    assert set(data.own) <= set(matches(data, prepared.dictionary.decoder_of(1)[owned]))


@pytest.mark.long
def test_l1_is_sparse_too() -> None:
    data = plant(0, 20_000, **SMALL_DATA)
    weak, strong = (
        crosscoder(data, **SMALL | {"kind": "l1", "l1_weight": weight})[0].explained for weight in (0.01, 1.0)
    )
    assert strong.active < weak.active
    assert weak.total > 0.8


def test_latent_scaling_equals_least_squares(small: Any) -> None:
    data, analysis, prepared = small
    rows = torch.cat([rows for _, rows, _ in prepared.encoded(prepared.train_stop, data.num_tokens)]).double()
    dictionary = prepared.dictionary
    active = torch.cat([active for _, _, active in prepared.encoded(prepared.train_stop, data.num_tokens)]).double()
    error = rows - active @ dictionary.decoder.double() - dictionary.decoder_bias.double()
    latent = int(analysis.order[0])
    fired = active[:, latent]
    direction = dictionary.decoder_of(1)[latent].double()
    for side, name in enumerate(("base", "finetuned")):
        own = dictionary.decoder_of(side)[latent].double()
        target = error.view(len(rows), 2, -1)[:, side] + fired[:, None] * own
        design = (fired[:, None] * direction).flatten()
        expected = (design @ target.flatten()) / (design @ design)
        assert analysis.columns[f"beta_error_{name}"][latent] == pytest.approx(float(expected), abs=1e-4)
    assert analysis.columns["beta_error_finetuned"][latent] == pytest.approx(1, abs=0.15)
    assert abs(analysis.columns["ratio_error"][latent]) < 0.2


def test_evidence_counts_documents_not_tokens(small: Any) -> None:
    _, _, prepared = small
    results = []
    for repeat in (1, 8):  # the same tokens eight times over, in the same documents, are no more evidence
        sums = LatentScalingSums(prepared.dictionary)
        for block, rows, active in prepared.encoded(prepared.train_stop, prepared.train_stop + 4000):
            sums.update(
                rows.repeat_interleave(repeat, 0),
                active.repeat_interleave(repeat, 0),
                block.tokens.repeat_interleave(repeat),
            )
        results.append(sums.result())
    finite = results[0].evidence.isfinite()
    torch.testing.assert_close(results[0].evidence[finite], results[1].evidence[finite], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [100, 999])
def test_a_document_is_one_whatever_blocks_it_lies_in(size: int, small: Any) -> None:
    """Blocks are of 2,048 rows: each piece of a long document was a document of its own, and the more certain."""
    _, _, prepared = small
    start, stop = prepared.train_stop, prepared.train_stop + 2000
    [(_, rows, active)] = prepared.encoded(start, stop)
    documents = torch.arange(len(rows)) // 250
    whole, cut = (LatentScalingSums(prepared.dictionary) for _ in range(2))
    whole.update(rows, active, documents)
    for part in zip(rows.split(size), active.split(size), documents.split(size), strict=True):
        cut.update(*part)
    expected, found = whole.result(), cut.result()
    assert torch.equal(found.documents, expected.documents)
    assert int(found.documents.max()) <= 8
    finite = expected.evidence.isfinite()
    torch.testing.assert_close(found.evidence[finite], expected.evidence[finite], rtol=1e-3, atol=1e-3)
    for target, values in expected.beta.items():
        torch.testing.assert_close(found.beta[target], values, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "rows_of"), [("batch_top_k", both_sides), ("sae", differences)])
def test_a_resumed_training_ends_the_same(kind: str, rows_of: RowsOf, tmp_path: Path) -> None:
    data = plant(2, 4000, **SMALL_DATA)
    recipe = TrainingRecipe(**SMALL | {"kind": kind, "steps": 60, "validate_every": 20, "seed": 5})
    whole = trained(data, recipe, rows_of)
    checkpoint = tmp_path / "checkpoint.safetensors"

    def stop(at: int) -> Any:
        def progress(done: float, total: float | None = None, message: str = "") -> None:
            if done == at:
                raise Cancelled("stop")

        return progress

    for at in (7, 45):
        with pytest.raises(Cancelled):
            trained(data, recipe, rows_of, checkpoint=checkpoint, progress=stop(at))
    resumed = trained(data, recipe, rows_of, checkpoint=checkpoint)
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold"):
        assert torch.equal(getattr(resumed.dictionary, name), getattr(whole.dictionary, name)), name
    assert _training(resumed).curve[-1].variance_explained == _training(whole).curve[-1].variance_explained
    other = trained(
        data, recipe.model_copy(update={"seed": 6}), rows_of, checkpoint=checkpoint
    )  # not this checkpoint's training
    assert not torch.equal(other.dictionary.encoder, whole.dictionary.encoder)


def _training(prepared: Prepared) -> Training:
    assert prepared.training is not None
    return prepared.training


def test_a_training_without_gain_stops_early() -> None:
    data = plant(2, 4000, **SMALL_DATA)
    recipe = TrainingRecipe(**SMALL | {"steps": 400, "validate_every": 10, "learning_rate": 1e-7, "patience": 2})
    training = _training(trained(data, recipe, both_sides))
    assert training.stopped_early
    assert training.steps < 300


def test_without_the_library_crosscoders_train_and_saes_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    library = "dictionary_learning"
    for name in [library, *(each for each in sys.modules if each.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    ours = "diffing_mcp.methods.dictionaries."
    for name in [each for each in sys.modules if each.startswith(ours) and each.endswith("trainer")]:
        monkeypatch.delitem(sys.modules, name)
    rows = torch.randn(8, 12)
    trainer = make_trainer(TrainingRecipe(**SMALL | {"k": 1}), 6, rows, "cpu")
    assert math.isfinite(trainer.step(0, rows))
    with pytest.raises(InvalidInput, match="pip install --no-deps dictionary-learning"):
        make_trainer(TrainingRecipe(**SMALL | {"kind": "sae"}), 12, rows, "cpu")


def test_an_sae_isolates_a_planted_trigger() -> None:
    """The finetuned model has 19 features of its own that are common, and one on the 2 % of the tokens that have a
    trigger.
    """
    data = plant(4, 20_000, **SMALL_DATA | {"own": 20}, last_rate=0.02)
    prepared = trained(
        data, TrainingRecipe(**SMALL | {"kind": "sae", "latents": 48, "k": 1, "steps": 700}), differences
    )
    analysis = analyse_sae(prepared)
    trigger = data.own[-1]
    assert set(data.own) <= set(matches(data, prepared.dictionary.decoder))
    cosine = torch.nn.functional.normalize(prepared.dictionary.decoder, dim=1) @ data.directions[trigger]
    latent = int(cosine.argmax())
    assert float(cosine[latent]) > 0.95
    fires = torch.cat([active[:, latent] > 0 for _, _, active in prepared.encoded(0, data.num_tokens)])
    has = data.active[:, trigger]
    assert int((fires & ~has).sum()) == 0  # precision 1
    assert float((fires & has).sum() / has.sum()) > 0.95
    assert analysis.columns["beta_base"][latent] == pytest.approx(0, abs=0.2)
    assert analysis.columns["beta_finetuned"][latent] == pytest.approx(1, abs=0.2)
    assert analysis.explained.total > 0.95


@pytest.mark.parametrize(("kind", "rows_of", "sources"), [("batch_top_k", both_sides, 2), ("sae", differences, 1)])
def test_dictionaries_load_as_they_were_saved(kind: str, rows_of: RowsOf, sources: int, tmp_path: Path) -> None:
    data = plant(2, 4000, **SMALL_DATA)
    dictionary = trained(data, TrainingRecipe(**SMALL | {"kind": kind, "steps": 30}), rows_of).dictionary
    folder = save_dictionary(dictionary, tmp_path / "d", {"layer": 3})
    loaded = load_dictionary(str(folder), sources, data.d_model)
    _same_function(dictionary, loaded, data, rows_of)
    assert len(content_hash(str(folder))) == 64
    with pytest.raises(InvalidInput, match="wanted"):
        load_dictionary(str(folder), 3 - sources, data.d_model)


def _same_function(
    first: SparseDictionary, second: SparseDictionary, data: PlantedActivations, rows_of: RowsOf
) -> None:
    rows = rows_of(next(iter(data.blocks(500))))
    codes = [each.encode(each.normalisation.apply(rows)) for each in (first, second)]
    torch.testing.assert_close(codes[0], codes[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first.decode(codes[0]), second.decode(codes[1]), rtol=1e-4, atol=1e-4)


def test_saved_crosscoders_have_the_published_layout(small: Any, tmp_path: Path) -> None:
    _, _, prepared = small
    tensors = load_file(save_dictionary(prepared.dictionary, tmp_path / "d", {}) / "model.safetensors")
    assert tensors["encoder.weight"].shape == (2, 24, 96)
    assert tensors["decoder.weight"].shape == (2, 96, 24)
    torch.testing.assert_close(tensors["decoder.weight"][1], prepared.dictionary.decoder_of(1))


@pytest.mark.parametrize(("kind", "sources"), [("crosscoder", 2), ("sae_difference", 1)])
def test_estimates_know_checkpoints_and_stored_activations(kind: str, sources: int) -> None:
    from diffing_mcp.methods.registry import get_method

    method = get_method(kind)
    size = PairSize(num_layers=3, d_model=32, vocab_size=320, tokens_per_second=1000.0)
    text = {"max_samples": 50, "max_tokens": 20, "expansion": 2.0}
    trained = method.estimate(size, method.Params(**text))
    loaded = method.estimate(size, method.Params(**text, dictionary="./somewhere"))
    weights = 4 * (2 * 64 * 32 * sources + 64 + 32 * sources)
    assert trained.bytes - loaded.bytes == 6 * weights  # two checkpoints of the weights and two moments each
    assert trained.tokens == 2000  # both sides
    assert method.estimate(size, method.Params(**text, max_activation_tokens=300)).tokens == 600


def test_the_nth_largest_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape, count in (((700, 300), 2000), ((10, 10), 100), ((3, 5), 1), ((400, 400), 150_000)):
        values = torch.randn(shape, generator=generator)
        assert nth_largest(values, count) == values.flatten().sort(descending=True).values[count - 1]
    tied = torch.zeros(500, 500)
    tied[0, :5] = 1.0
    assert nth_largest(tied, 100) == 0
    active, smallest = batch_top_k(tied, tied, 100)
    assert int((active > 0).sum()) == 5
    assert math.isclose(float(smallest), 0)
