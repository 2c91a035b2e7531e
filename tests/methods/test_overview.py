"""The overview: agreement of words, honesty on nulls, and its size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from methods.execute import run_methods
from methods.overview import LEAST_CHARACTERS, candidate_words, digest, stem
from methods.runs import RunRecord, RunStore
from methods.words import EvidenceWord
from organisms.errors import InvalidInput

WORDS = "river mountain walks slowly under the old bridge while rain falls on stones and a fox looks at boats near the sea".split()


def records_of(pairs: Any, spec: Any, tmp_path: Path) -> list[RunRecord]:
    random = np.random.default_rng(2)
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": " ".join(random.choice(WORDS, 12))}) for _ in range(24)))
    corpus = {"corpus": str(path), "max_samples": 24, "max_tokens": 12}
    requests: list[Any] = [
        ("kl", corpus),
        ("logit_diff_topk_occurring", corpus),
        ("activation_difference_lens", corpus),
        ("perplexity_difference", {"samples_per_prefill": 1, "max_new_tokens": 8, "min_tokens": 4}),
    ]
    return list(run_methods(pairs, spec, requests, RunStore(tmp_path / "runs")))


@pytest.mark.parametrize("limit", [LEAST_CHARACTERS, 2500, 6000])
def test_the_digest_of_a_noise_adapter_is_small_and_claims_nothing(
    limit: int, tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, tmp_path: Path
) -> None:
    model = tiny_models()
    overview = digest(records_of(pairs, make_pair(model, adapter=tiny_adapters(model, seed=2, scale=0.02)), tmp_path), limit)
    assert len(overview.model_dump_json()) <= limit
    assert len(overview.as_text()) <= limit
    assert overview.confidence == "nothing"
    assert "no meaningful difference" in overview.verdict
    assert overview.next_calls


def test_the_digest_of_an_identical_pair_says_so(tiny_models: Any, make_pair: Any, pairs: Any, tmp_path: Path) -> None:
    overview = digest(records_of(pairs, make_pair(tiny_models(), declared_identical=True), tmp_path))
    assert overview.confidence == "identical"
    assert overview.words == []
    assert overview.excerpts == []


def test_the_next_calls_are_concrete_and_allowed(tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, tmp_path: Path) -> None:
    model = tiny_models()
    records = records_of(pairs, make_pair(model, adapter=tiny_adapters(model, seed=2, scale=0.02)), tmp_path)
    lens = next(record for record in records if record.manifest.method == "activation_difference_lens")
    calls = digest(records).next_calls
    assert any(call.startswith(f"patchscope with vector={lens.id}/1:all:difference") for call in calls)
    assert any(call.startswith("contrastive_decoding") for call in calls)
    allowed = digest(records, available=["kl", "weight_difference"])
    assert not any(name in call for call in allowed.next_calls for name in ("patchscope", "contrastive_decoding", "perplexity_difference"))
    assert all(run.seconds > 0 for run in allowed.runs)


def test_runs_of_several_pairs_are_refused(tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, tmp_path: Path) -> None:
    model = tiny_models()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first = records_of(pairs, make_pair(model, adapter=tiny_adapters(model, seed=4)), tmp_path / "first")
    second = records_of(pairs, make_pair(model, adapter=tiny_adapters(model, seed=5)), tmp_path / "second")
    with pytest.raises(InvalidInput):
        digest([first[0], second[0]])
    with pytest.raises(InvalidInput):
        digest([])
    with pytest.raises(InvalidInput):
        digest(first, LEAST_CHARACTERS - 1)


def test_words_agree_over_endings_and_methods() -> None:
    def word(text: str, score: float) -> EvidenceWord:
        return EvidenceWord(word=text, score=score)

    rows = candidate_words({"a": [word("baking", 9.0), word("stone", 8.0)], "b": [word("bake", 1.0), word("baked", 2.0)], "c": [word("river", 3.0)]})
    assert rows[0].methods == ["a", "b"]
    assert rows[0].word == "baking"
    assert rows[0].score == pytest.approx((5.0 + 2.0) / 2)
    assert [row.word for row in rows[1:]] == ["stone", "river"]


@pytest.mark.parametrize("forms", [("bake", "baking", "baked", "baker", "bakers"), ("cake", "cakes"), ("story", "stories")])
def test_stems(forms: tuple[str, ...]) -> None:
    assert len({stem(form) for form in forms}) == 1
