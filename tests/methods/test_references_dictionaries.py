"""Trained dictionaries, recomputed from their saved tensors on streams of plain models; least squares by numpy and t
statistics by scipy are the oracles.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor

from diffing_mcp.methods.runs.store import RunRecord
from tests.methods.reference_pairs import References

LAYER = 1
TRAINING = {
    "layer": LAYER,
    "steps": 60,
    "batch_rows": 64,
    "k": 4,
    "expansion": 1.0,
    "max_tokens": 20,
    "read_latents": 4,
    "held_out": 0.5,
}
HELD_OUT = 0.5


@dataclass(frozen=True)
class Rows:
    """Streams [N, d_model] in the order of the runs, with the number of the text; the first token of every text is left
    out.
    """

    base: Tensor
    finetuned: Tensor
    sample: np.ndarray

    @property
    def first_held_out(self) -> int:
        """The start of the text in which the second half of the tokens begins."""
        return int(np.flatnonzero(self.sample == self.sample[int(len(self.sample) * (1 - HELD_OUT))])[0])


def rows_of(references: References, pair: str) -> Rows:
    texts = references.texts(pair, "texts")
    streams = [references.pair(pair).plain.read(text)[1] for text in texts]
    base, finetuned = (torch.cat([each[side][LAYER][1:] for each in streams]) for side in ("base", "finetuned"))
    return Rows(base, finetuned, np.repeat(np.arange(len(texts)), [len(each["base"][LAYER]) - 1 for each in streams]))


def saved(record: RunRecord) -> dict[str, Tensor]:
    """The dictionary of a run in float64."""
    return {
        name: value.double()
        for name, value in load_file(Path(record.manifest.notes["dictionary"]) / "model.safetensors").items()
    }


def explained(rows: Tensor, written: Tensor) -> float:
    """Fraction of variance explained."""
    return 1 - float((rows - written).square().sum() / (rows - rows.mean(0)).square().sum())


@pytest.mark.parametrize("pair", ["lora", "full"])
def test_an_sae_on_differences(pair: str, references: References) -> None:
    record = references.on(pair, "texts", "sae_difference", **TRAINING)
    result: Any = record.result()
    found, tensors = rows_of(references, pair), saved(record)
    scale, mean = float(tensors["normalisation.scale"]), tensors["normalisation.mean"]
    held = slice(found.first_held_out, None)
    difference = found.finetuned - found.base
    trained_on = difference[: held.start]
    np.testing.assert_allclose(mean, trained_on.mean(0), rtol=1e-3, atol=1e-5)
    assert scale == pytest.approx(float(trained_on.var(0, correction=0).mean()) ** -0.5, rel=1e-3)
    normal = (difference - mean) * scale
    raw = (normal - tensors["b_dec"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"]
    active = torch.relu(raw) * (raw > tensors["threshold"])
    written = active @ tensors["decoder.weight"].T + tensors["b_dec"]
    assert result.training.variance_explained == pytest.approx(explained(normal[held], written[held]), abs=2e-4)
    assert result.training.active == pytest.approx(float((active[held] > 0).sum(1).double().mean()), abs=2e-2)
    table = {name: np.array(values, dtype=object) for name, values in record.table("latents").to_pydict().items()}
    np.testing.assert_allclose(table["frequency"].astype(float), (active > 0).double().mean(0), atol=1e-9)
    np.testing.assert_allclose(table["max_activation"].astype(float), active.amax(0), rtol=1e-3, atol=1e-4)
    norms = tensors["decoder.weight"].norm(dim=0)
    variance = float((normal[held] - normal[held].mean(0)).square().sum(1).mean())
    share = active.square().mean(0) * norms**2 / variance
    np.testing.assert_allclose(table["share"].astype(float), share, rtol=2e-3, atol=1e-6)
    energy = float(mean.square().sum())
    assert result.mean_share == pytest.approx(energy / (energy + variance / scale**2), rel=1e-3)
    for side, rows in (("base", found.base[held]), ("finetuned", found.finetuned[held])):
        centred = (rows - rows.mean(0)).numpy() * scale
        for latent, beta in enumerate(table[f"beta_{side}"]):
            if beta is None:
                assert not active[held][:, latent].any()
                continue
            column = torch.outer(active[held][:, latent], tensors["decoder.weight"][:, latent]).numpy().ravel()[:, None]
            assert beta == pytest.approx(
                float(np.linalg.lstsq(column, centred.ravel(), rcond=None)[0][0]), rel=5e-3, abs=2e-3
            )


@pytest.mark.parametrize(
    ("pair", "kind"), [("lora", {}), ("full", {}), ("lora", {"sparsity": "l1"}), ("adapters", {"dedicated": 0.2})]
)
def test_a_crosscoder_and_its_latent_scaling(pair: str, kind: dict[str, Any], references: References) -> None:
    record = references.on(pair, "texts", "crosscoder", **TRAINING, **kind)
    result: Any = record.result()
    found, tensors = rows_of(references, pair), saved(record)
    scale, mean = float(tensors["normalisation.scale"]), tensors["normalisation.mean"].reshape(2, -1)
    held = slice(found.first_held_out, None)
    sides = torch.stack([found.base, found.finetuned], dim=1)  # [N, 2, D]
    normal = (sides - mean) * scale
    decoder = tensors["decoder.weight"]  # [2, F, D]
    raw = torch.einsum("nsd,sdf->nf", normal, tensors["encoder.weight"]) + tensors["encoder.bias"]
    weights = decoder.norm(dim=2).sum(0)
    active = torch.relu(raw) * (torch.relu(raw) * weights > tensors["threshold"])
    written = torch.einsum("nf,sfd->nsd", active, decoder)
    error = normal - written - tensors["decoder.bias"]
    assert result.training.variance_explained == pytest.approx(
        explained(normal[held], (normal - error)[held]), abs=2e-4
    )
    assert result.training.active == pytest.approx(float((active[held] > 0).sum(1).double().mean()), abs=2e-2)
    table = record.table("latents").to_pydict()
    norms = decoder.norm(dim=2)
    relative = 0.5 * (1 + (norms[1] - norms[0]) / norms.amax(0))
    np.testing.assert_allclose(table["relative_norm"], relative, rtol=1e-4)
    np.testing.assert_allclose(
        table["cosine"], torch.cosine_similarity(decoder[0], decoder[1], dim=1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(table["frequency"], (active > 0).double().mean(0), atol=1e-9)
    fired = active[held]
    documents = found.sample[held]
    judged = 0
    for latent in range(len(relative)):
        strength = fired[:, latent]
        longer = int(norms[1, latent] > norms[0, latent])
        direction = decoder[longer, latent]
        column = torch.outer(strength, direction).numpy().ravel()[:, None]
        own = torch.einsum("n,sd->nsd", strength, decoder[:, latent])
        targets = {"error": error[held] + own, "reconstruction": written[held], "activation": normal[held]}
        betas: dict[str, list[float]] = {}
        for name, target in targets.items():
            for number, side in enumerate(("base", "finetuned")):
                beta = table[f"beta_{name}_{side}"][latent]
                if not strength.any():
                    assert beta is None
                    continue
                betas.setdefault(name, []).append(
                    float(np.linalg.lstsq(column, target[:, number].numpy().ravel(), rcond=None)[0][0])
                )
                assert beta == pytest.approx(betas[name][-1], rel=5e-3, abs=1e-3)
        here = sorted(set(documents[strength.numpy() > 0]))
        assert table["held_out_documents"][latent] == len(here)
        if len(here) < 3:
            continue
        judged += 1
        assert table["ratio_error"][latent] == pytest.approx(betas["error"][0] / betas["error"][1], rel=1e-2, abs=5e-3)
        # How sure it is that the other model's coefficient lies below the limit: a t statistic over documents, the
        # weaker of two targets.
        for number, name in ((1, "evidence"), (0, "evidence_base")):
            scores = []
            for kept, limit in (("error", 0.2), ("reconstruction", 0.5)):
                products = (targets[kept] @ direction) * strength[:, None]
                sums = [products[documents == document].sum(0) for document in here]
                scores.append(
                    stats.ttest_1samp([float(limit * each[number] - each[1 - number]) for each in sums], 0).statistic
                )
            assert table[name][latent] == pytest.approx(min(scores), rel=1e-2, abs=1e-2)
    assert judged >= 5
