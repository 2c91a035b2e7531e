"""Steering by a vector of every source: it is the direction that the source holds, and what is added to the stream is
that direction.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffing_mcp.methods.contract import DiffingMethod
from diffing_mcp.methods.directions.vector_sources import resolve
from diffing_mcp.methods.registry import all_methods, get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.methods.steering.schema import SteeringParams
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.interventions import Intervention
from tests.methods.conftest import write_random_texts

LAYER = 1
PROMPTS = ("The", "One day", "It is", "Rivers run")
DICTIONARY = {
    "layer": LAYER,
    "steps": 40,
    "batch_rows": 64,
    "k": 4,
    "expansion": 1.0,
    "read_latents": 1,
    "top_latents": 1,
}
TOKEN = {"token": "e", "layer": LAYER}
CONTRAST: dict[str, Any] = {
    "positive": ["Bake the cake.", "A hot oven"],
    "negative": ["Rivers run to the sea."],
    "layer": LAYER,
    "average": "last_token",
}

Truth = Callable[[Any, Any, str], Any]


def latent(pair: Any, record: RunRecord, name: str) -> Any:
    return record.array("decoder")[int(name.removeprefix("latent"))]


def component(pair: Any, record: RunRecord, name: str) -> Any:
    return record.array(f"components_{LAYER}")[int(name.rpartition("component")[2]) - 1]


def lens_mean(pair: Any, record: RunRecord, name: str) -> Any:
    return record.array("finetuned_mean")[0, -1] - record.array("base_mean")[0, -1]


def label_mean(pair: Any, record: RunRecord, name: str) -> Any:
    return record.array("mean_difference")[0, record.manifest.notes["labels"].index("all")]


def written_direction(pair: Any, record: RunRecord, name: str) -> Any:
    """Left singular vector of the weight change of the module that the name says."""
    _, module, number = name.split(":")
    delta = next(each for each in pair.weight_deltas() if each.place.layer == LAYER and each.place.path == module)
    return torch.linalg.svd(delta.delta.dense())[0][:, int(number)].numpy()


def token_row(pair: Any, record: Any, name: str) -> Any:
    return pair.token_rows("finetuned", pair.tokenizer("e")["input_ids"])[0].numpy()


def text_contrast(pair: Any, record: Any, name: str) -> Any:
    def last(text: str) -> Any:
        ids = torch.tensor([pair.tokenizer(text)["input_ids"]])
        return (
            pair.forward("finetuned", ids, torch.ones_like(ids), layers=[LAYER], logits=False)
            .hidden[LAYER][0, -1]
            .double()
            .numpy()
        )

    return np.mean([last(text) for text in CONTRAST["positive"]], axis=0) - last(CONTRAST["negative"][0])


SOURCES: dict[str, tuple[dict[str, Any], Truth]] = {
    "activation_difference_lens": ({"layers": [LAYER], "max_tokens": 12}, lens_mean),
    "activation_analysis": ({"layers": [LAYER]}, label_mean),
    "pca": ({"layers": [LAYER], "components": 2}, component),
    "sae_difference": (DICTIONARY, latent),
    "crosscoder": (DICTIONARY, latent),
    "weight_difference": ({"layers": [LAYER], "directions": 2}, written_direction),
    "token": (TOKEN, token_row),
    "contrast": (CONTRAST, text_contrast),
}
WITHOUT_RUN = {"token", "contrast"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_random_texts(tmp_path_factory.mktemp("corpus"), 40))


def test_every_method_that_gives_vectors_is_here() -> None:
    giving = {name for name, method in all_methods().items() if type(method).vector is not DiffingMethod.vector}
    assert giving == set(SOURCES) - WITHOUT_RUN


@pytest.mark.parametrize("source", SOURCES)
def test_steering_adds_what_the_source_holds(
    source: str, tiny_pair: Any, pairs: Any, corpus: str, tmp_path: Path
) -> None:
    params, truth = SOURCES[source]
    store, record, name, vector = RunStore(tmp_path), None, "", params
    if source not in WITHOUT_RUN:
        text = {} if source == "weight_difference" else {"corpus": corpus, "max_samples": 40}
        record = run_methods(pairs, tiny_pair.spec, [(source, params | text)], store)[0]
        names = get_method(source).vector_names(record)
        name = f"{LAYER}:all:difference" if f"{LAYER}:all:difference" in names else names[0]
        vector = f"{record.id}/{name}"  # type: ignore[assignment]
    asked = {
        "vector": vector,
        "strengths": [1.5, -1.5],
        "prompts": PROMPTS,
        "raw_text": True,
        "max_new_tokens": 6,
        "temperature": 0.0,
    }
    found = resolve(SteeringParams.model_validate(asked).vector, tiny_pair, store)
    expected = np.asarray(truth(tiny_pair, record, name), dtype=np.float64)
    assert found.layer == LAYER
    assert expected @ found.values / (np.linalg.norm(expected) * found.norm) == pytest.approx(1, abs=1e-5)
    steered = run_methods(pairs, tiny_pair.spec, [("steering", asked)], store)[0]
    rows = steered.table("answers").to_pylist()
    requests = [GenerationRequest(text=prompt) for prompt in PROMPTS]
    for strength in (1.5, -1.5):
        added = torch.from_numpy(expected / np.linalg.norm(expected) * found.scale * strength).float()
        by_hand = tiny_pair.generate(
            "finetuned", requests, Sampling(temperature=0, max_new_tokens=6), interventions=[Intervention(LAYER, added)]
        )
        assert [row["steered"] for row in rows if row["strength"] == strength] == [
            several[0].text for several in by_hand
        ]
    assert any(row["steered"] != row["unsteered"] for row in rows)
    assert steered.result().layer == LAYER  # type: ignore[attr-defined]
