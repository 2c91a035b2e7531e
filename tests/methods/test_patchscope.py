"""Patchscope: what is planted comes out, nulls stay quiet, and the numbers are those of a direct computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.methods.directions.patchscope import averaged, patched_log_probs, prepare
from diffing_mcp.methods.patchscope.measure import judge_scale, shared_lift
from diffing_mcp.methods.patchscope.method import ScaleParams
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.model_pairs.interventions import Intervention

PROMPTS = ("a a\nb", "c c\nd")


@pytest.fixture(scope="module")
def word_pair(tiny_models: Any, make_pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pair whose tokens are words, so that content words exist; untied, so that unembedding rows are directions of
    their own.
    """
    names = ["<|endoftext|>", *(f"wo{chr(97 + i // 26)}{chr(97 + i % 26)}rd" for i in range(319))]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token=names[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=names[0], pad_token=names[0])
    folder = tiny_models(tie_word_embeddings=False, tokenizer=False, seed=11)
    fast.save_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) == 320
    return make_pair(folder, declared_identical=True, name="words")


def test_a_replaced_token_reads_as_the_token_that_the_vector_writes(
    tiny_models: Any, make_pair: Any, pairs: Any, store: RunStore
) -> None:
    spec = make_pair(tiny_models(tie_word_embeddings=False), declared_identical=True, name="untied")
    with pairs.use(spec) as pair:
        token = pair.tokenizer.decode([300])
        params = {
            "vector": {"token": token, "layer": pair.num_layers - 1},
            "prompts": PROMPTS,
            "scales": [1.0, 4.0],
            "random_directions": 8,
        }
        record = run_methods(pairs, spec, [("patchscope", params)], store)[0]
    result: Any = record.result()
    assert result.promoted[0].token == token
    assert result.promoted[0].z > 3
    assert token not in [row.token for row in result.suppressed]
    assert [row.scale for row in result.scales] == [1.0, 4.0]
    view: Any = get_method("patchscope").views["scale"].run(record, ScaleParams(scale=4.0, k=3, ranked_by="z"))
    assert view.tokens[0].token == token
    with pytest.raises(UnknownName, match="scales: 1, 4"):
        get_method("patchscope").views["scale"].run(record, ScaleParams(scale=2.0))


def test_probabilities_are_those_of_a_plain_forward(tiny_pair: Any) -> None:
    prompts = prepare(tiny_pair, "finetuned", 1, PROMPTS)
    vectors = torch.randn(3, tiny_pair.d_model, generator=torch.Generator().manual_seed(0))
    quick = patched_log_probs(tiny_pair, "finetuned", 1, prompts, vectors)
    for place, text in enumerate(PROMPTS):
        ids = torch.tensor([tiny_pair.tokenizer(text)["input_ids"]]).repeat(3, 1)
        patch = Intervention(1, vectors, mode="replace", positions="last_prompt_token")
        logits = tiny_pair.forward("finetuned", ids, torch.ones_like(ids), interventions=[patch]).logits
        torch.testing.assert_close(quick[:, place], torch.log_softmax(logits[:, -1].float(), -1), atol=1e-3, rtol=1e-3)
    norms = []
    for text in PROMPTS:
        ids = torch.tensor([tiny_pair.tokenizer(text)["input_ids"]])
        norms.append(
            float(
                tiny_pair.forward("finetuned", ids, torch.ones_like(ids), layers=[1], logits=False)
                .hidden[1][0, -1]
                .norm()
            )
        )
    assert prompts.norm == pytest.approx(np.mean(norms), rel=1e-4)


def test_a_token_outside_of_one_prompts_first_gets_zero() -> None:
    probabilities = torch.tensor([[[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]]])
    torch.testing.assert_close(averaged(probabilities.log()), torch.tensor([[0.45, 0.45, 0.1]], dtype=torch.float64))
    torch.testing.assert_close(averaged(probabilities.log(), 2), torch.tensor([[0.45, 0.45, 0.0]], dtype=torch.float64))
    assert averaged(probabilities.log(), 1).sum() == 0


def test_shared_lift_is_what_every_prompt_gives() -> None:
    lift = shared_lift(
        torch.tensor([[[0.5, 0.3, 0.2], [0.4, 0.1, 0.5]]]), torch.tensor([[0.1, 0.2, 0.7], [0.1, 0.2, 0.7]])
    )
    torch.testing.assert_close(lift, torch.tensor([[0.3, 0.0, 0.0]]))


def test_prompts_that_agree_beyond_random_directions_have_a_margin() -> None:
    generator = torch.Generator().manual_seed(0)
    null = torch.log_softmax(torch.randn(8, 2, 50, generator=generator), -1)
    agreed = torch.randn(1, 2, 50, generator=generator)
    agreed[..., 7] += 4
    reading = judge_scale(
        torch.log_softmax(torch.cat([agreed, -agreed]), -1), null, torch.ones(50, dtype=torch.float64), 50
    )
    assert reading.ratio(0) > 2
    assert int(reading.lift[0].argmax()) == int(reading.z[0].argmax()) == 7
    assert reading.ratio(1) < 1.5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_directions_do_not_stand_out(seed: int, word_pair: Any, pairs: Any, store: RunStore) -> None:
    """A token's input embedding means nothing to the last layer of a random model."""
    vector = {"token": f"wo{chr(97 + seed)}brd", "layer": 2, "embedding": "input"}
    result: Any = run_methods(
        pairs, word_pair, [("patchscope", {"vector": vector, "prompts": ["woaard woabrd", "woacrd woadrd"]})], store
    )[0].result()
    assert not result.stands_out
    assert result.evidence_words() == []


def test_a_zero_direction_is_said_plainly(identical_pair: Any, pairs: Any, store: RunStore) -> None:
    lens = run_methods(
        pairs,
        identical_pair.spec,
        [("activation_difference_lens", {"max_samples": 8, "max_tokens": 8, "layers": [1]})],
        store,
    )[0]
    record = run_methods(pairs, identical_pair.spec, [("patchscope", {"vector": f"{lens.id}/1:0:difference"})], store)[
        0
    ]
    result: Any = record.result()
    assert not result.stands_out
    assert "zero" in result.headline
    assert result.promoted == []
    empty: Any = get_method("patchscope").views["scale"].run(record, ScaleParams())
    assert empty.tokens == []
    assert record.manifest.key_parts["vectors"] == {f"{lens.id}/1:0:difference": lens.manifest.key}
    assert get_method("patchscope").figures[0].build(record)["layout"]


def test_bad_prompts_are_refused(tiny_pair: Any, pairs: Any, store: RunStore) -> None:
    for prompts in (["a"], ["word " * 2000]):
        with pytest.raises(InvalidInput, match="identity prompt"):
            run_methods(pairs, tiny_pair.spec, [("patchscope", {"vector": {"token": "e"}, "prompts": prompts})], store)
