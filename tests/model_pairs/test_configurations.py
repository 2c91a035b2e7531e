"""Pairs whose weights are equal: another configuration makes them other models, other files around them do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffing_mcp.core.errors import NotTheSame
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore
from tests.model_pairs.adapter_draws import peft_log_probs

TEXT = [7, 30, 41, 5, 63, 74, 100, 9, 12, 200]
IDS = torch.tensor([TEXT])


def copy_with(source: Path, place: Path, file: str, **changes: Any) -> Path:
    """A copy of a model with some fields of one JSON file changed; `place` must not be there yet."""
    folder = Path(shutil.copytree(source, place))
    document = json.loads((folder / file).read_text())
    for name, value in changes.items():
        document[name] = {**document[name], **value} if isinstance(value, dict) else value
    (folder / file).write_text(json.dumps(document))
    return folder


def log_probs(pair: Any, side: str) -> torch.Tensor:
    return pair.forward(side, IDS, torch.ones_like(IDS)).logits[0].log_softmax(-1)


def weight_difference(pairs: Any, spec: Any, folder: Path) -> Any:
    return run_methods(pairs, spec, [("weight_difference", {})], RunStore(folder / "runs"))[0]


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("llama", {"rope_parameters": {"rope_theta": 50.0}}, "rope_parameters.rope_theta"),
        ("llama", {"rms_norm_eps": 0.5}, "rms_norm_eps"),
        ("granite", {"attention_multiplier": 3.0}, "attention_multiplier"),
        ("granite", {"logits_scaling": 4.0}, "logits_scaling"),
        ("qwen3_moe", {"num_experts_per_tok": 1}, "num_experts_per_tok"),
        ("mistral", {"sliding_window": 2}, "sliding_window"),
    ],
)
def test_equal_weights_under_another_configuration_are_another_model(
    kind: str,
    changes: dict[str, Any],
    told: str,
    tiny_models: Callable[..., Path],
    make_pair: Any,
    pairs: Any,
    own_data_folder: Path,
    tmp_path: Path,
) -> None:
    """A context is often made longer by the configuration alone. Such pairs were refused as identical."""
    base = tiny_models(kind)
    spec = make_pair(base, finetuned=copy_with(base, tmp_path / "other", "config.json", **changes))
    with pairs.use(spec) as pair:
        for side, folder in (("base", base), ("finetuned", tmp_path / "other")):
            torch.testing.assert_close(
                log_probs(pair, side), peft_log_probs(folder, None, [TEXT])[0], atol=1e-4, rtol=1e-4
            )
        assert not torch.allclose(log_probs(pair, "base"), log_probs(pair, "finetuned"), atol=1e-3)
        [remark] = pair.remarks
        assert told in remark
        assert pair.with_adapter(None).configuration == ()
    record = weight_difference(pairs, spec, own_data_folder)
    assert told in record.result().headline
    assert "no difference" not in record.result().headline


def test_configurations_that_compute_the_same_are_no_difference(
    tiny_models: Callable[..., Path], make_pair: Any, pairs: Any, tmp_path: Path
) -> None:
    """What else trainers write into a configuration: dropouts, versions, ends of sequence, caching."""
    base, places = tiny_models(), [tmp_path / "same", tmp_path / "trained"]
    noise = {"attention_dropout": 0.1, "transformers_version": "4.40.0", "use_cache": False, "eos_token_id": 7}
    noise |= {"unsloth_version": "2025.1", "initializer_range": 0.5, "_name_or_path": "somebody/something"}
    same = copy_with(base, places[0], "config.json", **noise)
    with pytest.raises(NotTheSame, match="identical"), pairs.use(make_pair(base, finetuned=same)):
        pass
    trained = copy_with(tiny_models(seed=1), places[1], "config.json", **noise)
    with pairs.use(make_pair(base, finetuned=trained)) as pair:
        assert pair.remarks == ()


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("generation_config.json", {"eos_token_id": 5}, "generation_config.json"),
        ("tokenizer_config.json", {"extra": "x"}, "tokenizer_config.json"),
    ],
)
def test_refused_as_identical_a_pair_is_told_which_files_differ(
    file: str,
    changes: dict[str, Any],
    told: str,
    tiny_models: Callable[..., Path],
    make_pair: Any,
    pairs: Any,
    tmp_path: Path,
) -> None:
    base = tiny_models()
    other = copy_with(base, tmp_path / "other", file, **changes)
    with pytest.raises(NotTheSame, match=f"identical.*{told}"), pairs.use(make_pair(base, finetuned=other)):
        pass
