"""Contrastive decoding: planted words are written out, equal models and untaught ones give nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.contrastive_decoding.method import TextsParams
from diffing_mcp.methods.contrastive_decoding.schema import ContrastiveDecodingParams
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from tests.word_pairs import save_pair

METHOD = "contrastive_decoding"


def run(pairs: Any, spec: Any, store: RunStore, **params: Any) -> RunRecord:
    return run_methods(pairs, spec, [(METHOD, {"max_new_tokens": 16, **params})], store)[0]


def test_planted_words_are_written_out(planted_words: Any, make_pair: Any, pairs: Any, store: RunStore) -> None:
    base, finetuned, words = planted_words(4.0)
    record = run(pairs, make_pair(base, finetuned, name="planted words"), store)
    result: Any = record.result()
    assert result.stands_out
    assert not result.identical
    strong = [row.word for row in result.words if row.strong]
    assert len(strong) >= 2
    assert set(strong) <= set(words)
    assert result.evidence_words()[0].score > 1
    by_alpha = {row.alpha: row.difference for row in result.alphas}
    assert by_alpha[3.0] >= by_alpha[1.0] > by_alpha[-1.0] >= by_alpha[-4.0]
    view: Any = get_method(METHOD).views["texts"].run(record, TextsParams(alpha=result.alpha, contains=strong[0]))
    assert view.total >= 3
    assert all(strong[0] in row.text and row.alpha == result.alpha for row in view.rows)
    assert get_method(METHOD).figures[0].build(record)["data"]


def test_the_reverse_pair_pushes_away_from_the_words(
    planted_words: Any, make_pair: Any, pairs: Any, store: RunStore
) -> None:
    base, finetuned, words = planted_words(4.0)
    record = run(pairs, make_pair(finetuned, base, name="reversed"), store)
    result: Any = record.result()
    assert not set(words) & {row.word for row in result.words}
    strong = [row.word for row in result.suppressed if row.strong]
    assert len(strong) >= 2
    assert set(strong) <= set(words)
    assert all(row.alpha < -1 for row in result.suppressed)
    assert f"pushes away from {strong[0]}" in result.suppression
    assert result.suppression in result.as_text()


@pytest.mark.parametrize("start", ["nothing", "chat"])
def test_planted_words_come_up_from_other_starts(
    start: str, planted_words: Any, make_pair: Any, pairs: Any, store: RunStore, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    base, finetuned, words = planted_words(4.0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = "{% for message in messages %} {{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    spec = make_pair(base, finetuned, name=f"planted from {start}")
    both = {}
    for side in ("base", "finetuned"):
        source = getattr(spec, side)
        files = source.files.model_copy(update={"tokenizer_id": str(tmp_path / "tokenizer")})
        both[side] = source.model_copy(update={"files": files})
    spec = spec.model_copy(update=both)
    result: Any = run(pairs, spec, store, start=start, samples_per_prompt=2).result()
    assert result.start == start
    assert result.stands_out
    if start == "nothing":
        assert result.form is None
    else:
        assert (result.form.base_answers, result.form.finetuned_answers, result.form.prompts) == (40, 40, 20)
        assert result.form.as_text() in result.as_text()
    strong = [row.word for row in result.words if row.strong]
    assert len(strong) >= 2
    assert set(strong) <= set(words)
    assert not set(words) & {row.word for row in result.suppressed}


@pytest.mark.parametrize("start", ["prefixes", "nothing"])
def test_equal_models_give_nothing(start: str, tmp_path: Path, pairs: Any, store: RunStore) -> None:
    result: Any = run(pairs, save_pair(tmp_path, None), store, start=start).result()
    assert result.identical
    assert not result.stands_out
    assert not result.words
    assert not result.suppressed
    assert all(row.difference == 0 for row in result.alphas)
    assert "no difference" in result.headline


def test_random_adapters_give_nothing(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    record = run(
        pairs,
        tiny_pair.spec,
        store,
        start="chat",
        prompts=["Name a river.", "Hello"],
        samples_per_prompt=2,
        alphas=[2.0],
    )
    assert not record.result().stands_out
    rows = record.table("texts").to_pylist()
    assert {row["alpha"] for row in rows} == {2.0, 0.0, -1.0, -3.0}
    assert len(rows) == 16


def test_bad_parameters_are_refused(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    with pytest.raises(InvalidInput, match="takes no prompts"):
        run(pairs, tiny_pair.spec, store, start="nothing", prompts=["a"])
    wrong: dict[str, Any]
    for wrong in ({"alphas": []}, {"alphas": [-1.0]}, {"plausibility": 2}, {"strength": 1}):
        with pytest.raises(ValidationError):
            ContrastiveDecodingParams.model_validate(wrong)


def test_own_prompts_cost_interactions() -> None:
    method = get_method(METHOD)
    assert method.interactions(ContrastiveDecodingParams()) == 0
    params = ContrastiveDecodingParams.model_validate(
        {"prompts": ["a", "b"], "samples_per_prompt": 3, "alphas": [1.0, 2.0]}
    )
    assert method.interactions(params) == 2 * 36  # as texts and as messages
    assert method.interactions(params.model_copy(update={"start": "chat"})) == 36
