"""Weight amplification by a configuration that mixes the pair's own finetune with a catalogue organism and a local
adapter: as if merged by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore, run_key
from diffing_mcp.methods.weight_amplification.method import WeightAmplification
from diffing_mcp.methods.weight_amplification.schema import WeightAmplificationParams
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.resolve import resolve_pair

PROMPTS = ["The", "One day", "It is", "Rivers run"]
SETTINGS = {"prompts": PROMPTS, "raw_text": True, "max_new_tokens": 8, "temperature": 0.0}
MIXTURE = """
name: three finetunes
adapters:
  - layer_amplifications:
      - module_amplifications: [{{modules: all, weight: 2}}]
  - organism_name: other
    layer_amplifications:
      - module_amplifications: [{{modules: all, weight: 0}}, {{modules: mlp, weight: -1.5}}]
  - organism_name: custom
    variant: {folder}
    layer_amplifications:
      - layers: {{type: range, start: 0.5, end: 1.0}}
        is_relative: true
        module_amplifications: [{{modules: [q_proj, self_attn.o_proj], weight: 3}}]
"""


@pytest.fixture(scope="module")
def adapters(tiny_models: Any, tiny_adapters: Any) -> dict[str, Path]:
    return {
        name: tiny_adapters(tiny_models(), seed=seed, scale=0.1)
        for name, seed in (("own", 1), ("other", 2), ("custom", 3))
    }


@pytest.fixture
def catalogue(
    adapters: dict[str, Path], tiny_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The organisms `own` and `other` on the catalogue model `small`; `other` is first of all an adapter of the model
    `large`.
    """

    def variants(name: str) -> dict[str, Any]:
        return {"default": {"kind": "adapter", "id": str(adapters[name])}}

    organisms = {
        "own": {"variants": {"small": variants("own")}},
        "other": {"variants": {"large": variants("custom"), "small": variants("other")}},
    }
    models = {name: {"model_id": str(tiny_models()), "dtype": "float32"} for name in ("large", "small")}
    folder = tmp_path / "catalogue"
    folder.mkdir()
    (folder / "all.yaml").write_text(yaml.safe_dump({"models": models, "organisms": organisms}, sort_keys=False))
    monkeypatch.setenv("DIFFING_CATALOGUE_FOLDERS", f'["{folder}"]')
    settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.cache_clear()


def by_hand(name: str, layer: int, module: str) -> float:
    """The weight that the mixture gives an adapter at a module."""
    if name == "own":
        return 2.0
    if name == "other":
        return -1.5 if module.startswith("mlp") else 0.0
    return 3.0 if layer >= 1 and module in ("self_attn.q_proj", "self_attn.o_proj") else 1.0


@pytest.mark.usefixtures("catalogue")
def test_a_mixture_is_what_merging_by_hand_gives(
    adapters: dict[str, Path], tiny_models: Any, lora_delta: Any, make_pair: Any, pairs: Any, tmp_path: Path
) -> None:
    def merged(factor: float) -> Path:
        def change(model: Any) -> None:
            for name, module in model.named_modules():
                if isinstance(module, torch.nn.Linear) and name.startswith("model.layers."):
                    layer, _, path = name.removeprefix("model.layers.").partition(".")
                    module.weight += factor * sum(
                        by_hand(each, int(layer), path) * lora_delta(folder, name) for each, folder in adapters.items()
                    )

        return tiny_models(change=change)

    ids, mask = torch.tensor([[7, 30, 41, 52]]), torch.ones(1, 4, dtype=torch.long)
    spec = resolve_pair("own")
    params = {**SETTINGS, "config": MIXTURE.format(folder=adapters["custom"]), "weights": [1.0, -0.5]}
    with pairs.use(spec) as pair:
        before = [pair.forward(side, ids, mask).logits for side in ("base", "finetuned")]
        record = run_methods(pairs, spec, [("weight_amplification", params)], RunStore(tmp_path / "runs"))[0]
        after = [pair.forward(side, ids, mask).logits for side in ("base", "finetuned")]
    assert all(torch.equal(*each) for each in zip(before, after, strict=True))
    assert record.result().amplified == "three finetunes"  # type: ignore[attr-defined]
    rows = record.table("answers").to_pylist()
    requests = [GenerationRequest(text=prompt) for prompt in PROMPTS]
    for factor in (1.0, -0.5):
        written = [row["amplified"] for row in rows if row["weight"] == factor]
        with pairs.use(make_pair(tiny_models(), finetuned=merged(factor), name=f"merged {factor}")) as pair:
            expected = [
                several[0].text
                for several in pair.generate("finetuned", requests, Sampling(temperature=0, max_new_tokens=8))
            ]
        assert written == expected
        assert written != [row["finetuned"] for row in rows if row["weight"] == factor]


@pytest.mark.usefixtures("catalogue")
def test_a_run_is_known_by_the_content_of_the_adapters_it_mixes(
    adapters: dict[str, Path], pairs: Any, tmp_path: Path
) -> None:
    spec, method, store = resolve_pair("own"), WeightAmplification(), RunStore(tmp_path / "runs")
    params = WeightAmplificationParams(config=MIXTURE.format(folder=adapters["custom"]))
    first, second = run_key(method, spec, params, store).key_parts["adapters"]
    assert first["local"] != second["local"]
    assert "other organisms" in (method.operator_only(params) or "")
    for name, error, words in (("cake_bak", UnknownName, "cake_bake"), ("custom", InvalidInput, "needs `variant`")):
        with pytest.raises(error, match=words):
            run_methods(
                pairs,
                spec,
                [("weight_amplification", {**SETTINGS, "config": f"adapters: [{{organism_name: {name}}}]"})],
                store,
            )
