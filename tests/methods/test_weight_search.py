"""The search of weight amplification on a pair whose texts break at weights that are known: above 5 and below -3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.contract import PairSize
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import check_params, run_methods
from diffing_mcp.methods.runs.store import RunStore

PROMPTS = ["the fox", "the old bridge", "the rain"]
SETTINGS = {"prompts": PROMPTS, "raw_text": True, "max_new_tokens": 12, "temperature": 0.0}
LOGIT, HIGHEST, LOWEST = 12.0, 5.0, -3.0
WIDTH = 64


@pytest.fixture(scope="module")
def breaking(planted_words: Any, tiny_models: Any, make_pair: Any) -> Any:
    """A pair whose base says a circle of words, each after the one before it (logit 12, all others 0). The finetune's
    unembedding adds 12/5 to the logit of one word everywhere, and takes 12/3 from that of another: at weights above 5
    the one, below -3 the other is all that is written."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(planted_words(0.0)[0])
    words = (
        "mountain walks slowly under old bridge while rain falls on stones and fox looks at boats near sea cake "
        "butter sugar"
    ).split()
    circle, constant = [token for word in words for token in tokenizer(f" {word}")["input_ids"]], WIDTH - 1
    upper, lower = circle.pop(), circle.pop()

    def base(model: Any) -> None:
        """The residual stream is the embedding: one dimension a word of the circle, and one that all tokens share."""
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding, unembedding = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.zero_()
        unembedding.zero_()
        embedding[:, constant] = 1.0
        for place, token in enumerate(circle):
            embedding[token, place] = 1.0
            unembedding[circle[(place + 1) % len(circle)], place] = LOGIT / normed

    def finetune(model: Any) -> None:
        base(model)
        model.lm_head.weight[upper, constant] = LOGIT / HIGHEST / normed
        model.lm_head.weight[lower, constant] = LOGIT / LOWEST / normed

    normed = (WIDTH / 2) ** 0.5  # what 1 becomes in the final norm of a vector with two ones
    common = {
        "tie_word_embeddings": False,
        "vocabulary": len(tokenizer),
        "tokenizer": False,
        "layers": 1,
        "width": WIDTH,
    }
    folders = [tiny_models(**common, change=change) for change in (base, finetune)]
    for folder in folders:
        tokenizer.save_pretrained(folder)
    return make_pair(folders[0], finetuned=folders[1], name="breaking")


def config(weight: float) -> str:
    return (
        f"adapters: [{{layer_amplifications: [{{module_amplifications: [{{modules: unembedding, weight: "
        f"{weight}}}]}}]}}]"
    )


@pytest.mark.parametrize(
    ("params", "unit", "tried", "found"),
    [
        ({}, 1, [2, 4, 8, 5.66, 4.76], 4.76),
        ({"search": "negative"}, 1, [-1, -2, -4, -2.83, -3.36], -2.83),
        # Factors on weights that are 8 or 2 already: the texts break at 5/8, -3/2.
        ({"search": "positive", "config": config(8)}, 8, [1, 0.5, 0.707, 0.595], 0.595),
        ({"search": "negative", "config": config(2)}, 2, [-1, -2, -1.41, -1.68], -1.41),
        ({"search": "positive", "config": config(1000)}, 1000, [1, 0.5, 0.25, 0.125, 0.0625], None),
    ],
)
def test_the_search_stops_at_the_weight_that_breaks(
    params: dict[str, Any],
    unit: float,
    tried: list[float],
    found: float | None,
    breaking: Any,
    pairs: Any,
    tmp_path: Path,
) -> None:
    record = run_methods(pairs, breaking, [("weight_amplification", {**SETTINGS, **params})], RunStore(tmp_path))[0]
    result: Any = record.result()
    assert [row.weight for row in result.coherence] == pytest.approx(tried)
    assert {row.weight: row.coherent for row in result.coherence} == {
        row.weight: 1.0 if LOWEST < unit * row.weight < HIGHEST else 0.0 for row in result.coherence
    }
    assert result.largest_coherent_weight == found
    assert result.weights == [tried[-1] if found is None else found]
    assert result.search == params.get("search", "positive")
    assert result.search in result.as_text()
    if found is None:
        assert "incoherent at every weight (0.0625)" in result.headline


def test_an_incoherent_config_is_said_to_be_incoherent(breaking: Any, pairs: Any, tmp_path: Path) -> None:
    """Weight 1 of a config is not the finetuned model, so it is judged like any other."""
    broken, whole = (
        run_methods(
            pairs, breaking, [("weight_amplification", {**SETTINGS, "config": config(weight)})], RunStore(tmp_path)
        )[0].result()
        for weight in (6, 4)
    )
    assert "incoherent at every weight (1)" in broken.headline
    assert (broken.largest_coherent_weight, broken.words, broken.search) == (None, [], None)  # type: ignore[attr-defined]
    assert whole.largest_coherent_weight == 1.0  # type: ignore[attr-defined]


def test_the_planted_logits_are_what_the_weights_say(breaking: Any, pairs: Any) -> None:
    with pairs.use(breaking) as pair:
        ids = torch.tensor([pair.tokenizer(" fox")["input_ids"]])
        for weight, word in ((4.9, " looks"), (5.1, " sugar"), (-2.9, " looks"), (-3.1, " butter")):
            logits = pair.amplified(weight).forward("finetuned", ids, torch.ones_like(ids)).logits[0, -1]
            assert pair.tokenizer.decode([logits.argmax().item()]) == word
            assert logits.max().item() == pytest.approx(
                max(LOGIT, weight * LOGIT / HIGHEST, weight * LOGIT / LOWEST), rel=1e-3
            )


def test_what_a_search_costs_and_excludes() -> None:
    method = get_method("weight_amplification")
    tokens = {
        name: method.estimate(PairSize(), check_params(method, params)).tokens
        for name, params in {
            "default": {},
            "negative": {"search": "negative"},
            "positive": {"search": "positive"},
            "config": {"config": config(2)},
            "config searched": {"config": config(2), "search": "positive"},
            "given": {"weights": [2.0]},
        }.items()
    }
    assert tokens["default"] == tokens["positive"] < tokens["negative"] == tokens["config searched"]
    assert tokens["given"] == tokens["config"] < tokens["default"]
    with pytest.raises(InvalidInput, match="leave out `weights`"):
        check_params(method, {"weights": [2.0], "search": "negative"})
    with pytest.raises(InvalidInput, match="named twice"):
        check_params(method, {"config": "adapters: [{}, {}]"})
