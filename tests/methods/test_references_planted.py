"""Differences that are known exactly: a token whose logit is `RISE` higher everywhere, a constant added to the residual
stream, and none at all.

The expected numbers follow from what was planted; of the models only the base's probabilities are needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffing_mcp.methods.registry import all_methods, get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from tests.methods.reference_pairs import References

RISE = 1.5
TOKEN = "e"
PROMPTS = ("the old bridge", "rain falls on", "sea")
LENGTH = 3.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return RunStore(tmp_path_factory.mktemp("planted"))


def level(model: Any) -> None:
    """The last final state's first dimension is 1 at every token."""
    model.transformer.ln_f.weight[0] = 0
    model.transformer.ln_f.bias[0] = 1


@pytest.fixture(scope="module")
def risen(tiny_models: Any, make_pair: Any, tiny_tokenizer_folder: Path) -> Any:
    """A GPT-2 pair whose finetuned model gives one token a logit that is higher by `RISE` after every text; nothing
    else differs.
    """
    token = AutoTokenizer.from_pretrained(tiny_tokenizer_folder).convert_tokens_to_ids(TOKEN)

    def raise_token(model: Any) -> None:
        level(model)
        model.lm_head.weight[token, 0] += RISE

    shape = {"kind": "gpt2", "seed": 41, "tie_word_embeddings": False}
    return make_pair(tiny_models(**shape, change=level), tiny_models(**shape, change=raise_token), name="risen token")


@pytest.fixture(scope="module")
def token(tiny_tokenizer_folder: Path) -> int:
    return int(AutoTokenizer.from_pretrained(tiny_tokenizer_folder).convert_tokens_to_ids(TOKEN))


def run(references: References, spec: Any, store: RunStore, method: str, **params: Any) -> RunRecord:
    return run_methods(references.pairs, spec, [(method, params)], store)[0]


def chances(references: References, spec: Any, token: int, record: RunRecord) -> Tensor:
    """The base model's probability of the token at every position, in the order of the run."""
    folder = spec.base.files.id
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64),
        AutoTokenizer.from_pretrained(folder),
    )
    with torch.no_grad():
        read = [
            model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
            for text in record.table("texts")["text"].to_pylist()
        ]
    return torch.cat([logits.softmax(-1)[:, token] for logits in read])


def test_a_risen_token_has_the_divergence_of_the_formula(
    risen: Any, token: int, references: References, store: RunStore
) -> None:
    """q_v is proportional to p_v, and to p_t e^r at the token: KL(q || p) = q_t r - log(1 + p_t (e^r - 1)), TV = q_t -
    p_t.
    """
    corpus = {"corpus": str(references.corpora["texts"]), "max_tokens": 200}
    record = run(references, risen, store, "kl", **corpus)
    p = chances(references, risen, token, record).numpy()
    grown = 1 + p * np.expm1(RISE)
    q = p * np.exp(RISE) / grown
    result: Any = record.result()
    np.testing.assert_allclose(
        record.table("tokens")["kl_finetuned_base"], q * RISE - np.log(grown), rtol=1e-4, atol=2e-6
    )
    np.testing.assert_allclose(
        record.table("tokens")["kl_base_finetuned"], np.log(grown) - p * RISE, rtol=1e-4, atol=2e-6
    )
    assert (result.rose[0].token, result.rose[0].base, result.rose[0].finetuned) == (
        TOKEN,
        pytest.approx(p.mean(), rel=1e-4),
        pytest.approx(q.mean(), rel=1e-4),
    )
    mined = run(references, risen, store, "logit_diff_topk_occurring", **corpus, top_k=5, topic_entries="none")
    mean = mined.array("mean_difference")
    assert mean[token] == pytest.approx(RISE, abs=1e-5)
    assert np.abs(np.delete(mean, token)).max() < 1e-6
    assert mined.array("risen")[token] == len(p)
    first: Any = mined.result().risen[0]  # type: ignore[attr-defined]
    assert (first.token, first.occurrence, first.mean_difference) == (TOKEN, 100.0, RISE)
    continued = run(references, risen, store, "continuation_mining", **corpus, places=2)
    np.testing.assert_allclose(continued.array("variation"), q - p, rtol=1e-4, atol=1e-6)


def test_a_risen_token_is_one_row_of_the_unembedding(risen: Any, references: References, store: RunStore) -> None:
    result: Any = run(references, risen, store, "weight_difference").result()
    [module] = result.modules
    assert (module.part, module.norm, module.effective_rank) == (
        "unembedding",
        pytest.approx(RISE, rel=1e-5),
        pytest.approx(1),
    )
    entries = next(row for row in result.directions if row.read_as == "tokens")
    first = max(
        entries.positive[0], entries.negative[0], key=lambda row: row.z
    )  # which sign a singular vector has means nothing
    assert (first.token, first.z) == (TOKEN, pytest.approx((1 - 1 / 320) * 320**0.5, abs=1e-3))  # one entry of 320 is 1
    identical: Any = run(
        references, risen, store, "activation_analysis", corpus=str(references.corpora["texts"])
    ).result()
    assert identical.identical  # no activation differs: the unembedding alone does


def test_amplification_raises_the_token_in_proportion(
    risen: Any, token: int, references: References, store: RunStore
) -> None:
    """Weight w gives the token w times the rise, and so does contrastive decoding at alpha = w - 1: greedy texts are
    alike, and those of a base with that row.
    """
    weights = (3.0, 6.0, -2.0)
    sampling = {"prompts": PROMPTS, "temperature": 0.0, "max_new_tokens": 6}
    amplified = (
        run(references, risen, store, "weight_amplification", weights=weights, raw_text=True, **sampling)
        .table("answers")
        .to_pylist()
    )
    alphas = (2.0, 5.0)
    contrasted = (
        run(
            references,
            risen,
            store,
            "contrastive_decoding",
            start="prefixes",
            alphas=alphas,
            plausibility=0.0,
            **sampling,
        )
        .table("texts")
        .to_pylist()
    )
    model = AutoModelForCausalLM.from_pretrained(risen.base.files.id, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(risen.base.files.id)
    counts = []
    for weight in weights:
        for prompt in PROMPTS:
            ids = tokenizer(prompt)["input_ids"]
            new: list[int] = []
            while len(new) < 6:
                with torch.no_grad():
                    logits = model(torch.tensor([[*ids, *new]])).logits[0, -1]
                logits[token] += weight * RISE
                if int(logits.argmax()) == tokenizer.eos_token_id:
                    break
                new.append(int(logits.argmax()))
            text = tokenizer.decode(new, skip_special_tokens=True)
            counts.append(new.count(token))
            assert text == next(
                row["amplified"] for row in amplified if (row["weight"], row["prompt"]) == (weight, prompt)
            )
            if weight > 0:
                assert text == next(
                    row["text"] for row in contrasted if (row["alpha"], row["prompt"]) == (weight - 1, prompt)
                )
    assert sum(counts) > 0


def test_a_constant_shift_is_the_mean_difference_everywhere(
    tiny_models: Any, make_pair: Any, references: References, store: RunStore
) -> None:
    """Block 1 adds one vector to every token: the mean at every position is that vector, without spread; carrying it
    back closes the whole gap.
    """
    direction = torch.randn(32, generator=torch.Generator().manual_seed(42))
    shift = LENGTH * direction / direction.norm()

    def add(model: Any) -> None:
        model.transformer.h[1].mlp.c_proj.bias += shift

    spec = make_pair(tiny_models(kind="gpt2", seed=43), tiny_models(kind="gpt2", seed=43, change=add), name="shifted")
    corpus = {"corpus": str(references.corpora["texts"]), "max_tokens": 200}
    lens = run(references, spec, store, "activation_difference_lens", layers=(0, 1), **corpus)
    result: Any = lens.result()
    for row in result.rows:
        assert row.difference_norm == pytest.approx(LENGTH * row.layer, rel=1e-5)
        assert row.spread < 1e-4
        if row.layer == 1:
            vector = get_method("activation_difference_lens").vector(lens, row.vector).values
            np.testing.assert_allclose(vector, shift, atol=1e-5)
            assert row.stability in (None, pytest.approx(1.0))
    analysed: Any = run(references, spec, store, "activation_analysis", layers=(1,), **corpus).result()
    assert all(
        (row.coherence, row.norm_difference) == pytest.approx((1.0, LENGTH), rel=1e-4) for row in analysed.labels
    )
    patched: Any = run(
        references,
        spec,
        store,
        "causal_effect",
        vectors=(f"{lens.id}/1:all:difference",),
        random_directions=4,
        **corpus,
    ).result()
    assert patched.rows[0].loss_change == pytest.approx(patched.gap, abs=2e-5)
    steered = run(
        references, spec, store, "steering", vector=f"{lens.id}/1:all:difference", side="base", prompts=PROMPTS, raw_text=True, temperature=0.0,  # noqa: E501
        max_new_tokens=8, strengths=(LENGTH / get_method("activation_difference_lens").vector(lens, "1:all:difference").scale,),  # noqa: E501
    )  # fmt: skip
    written = run(
        references,
        spec,
        store,
        "contrastive_decoding",
        start="prefixes",
        prompts=PROMPTS,
        alphas=(1.0,),
        temperature=0.0,
        max_new_tokens=8,
    )
    plain = {(row["alpha"], row["prompt"]): row["text"] for row in written.table("texts").to_pylist()}
    for row in steered.table("answers").to_pylist():  # the base with the shift is the finetuned model
        assert (row["steered"], row["unsteered"]) == (plain[0.0, row["prompt"]], plain[-1.0, row["prompt"]])


SMALL: dict[str, dict[str, Any]] = {
    "perplexity_difference": {"prefills": PROMPTS, "max_new_tokens": 6},
    "contrastive_decoding": {"prompts": PROMPTS, "max_new_tokens": 6},
    "sweep_behaviours": {"prompts": PROMPTS, "max_new_tokens": 6},
    "trigger_search": {"answers": PROMPTS[:1], "questions": PROMPTS, "rounds": 1, "random_prefixes": 8},
    "weight_amplification": {"prompts": PROMPTS, "max_new_tokens": 6, "weights": (3.0,)},
    "sae_difference": {"steps": 5},
    "crosscoder": {"steps": 5},
    "patchscope": {"vector": "LENS/1:all:difference"},
    "steering": {"vector": "LENS/1:all:difference"},
    "causal_effect": {"vectors": ({"token": TOKEN, "layer": 1},), "random_directions": 4},
    "activation_oracle": {
        "contexts": PROMPTS,
        "max_new_tokens": 3,
        "samples": 2,
        "token_positions": 2,
        "verbalizer": "self",
    },
}
OF_TEXT = {
    "kl", "logit_diff_topk_occurring", "continuation_mining", "answer_openings", "activation_difference_lens", "activation_analysis", "pca", "sae_difference", "crosscoder",  # noqa: E501
    "causal_effect",
}  # fmt: skip


def nothing(method: str, record: RunRecord) -> bool:
    """Whether every number of a difference is exactly zero."""
    result: Any = record.result()
    table = {"perplexity_difference": "completions", "contrastive_decoding": "texts"}.get(method)
    if table:
        return not any(record.table(table)["difference"].to_pylist())
    if method == "kl":
        return not any(
            record.table("tokens")[name].to_numpy().any() for name in ("kl_finetuned_base", "kl_base_finetuned", "js")
        )
    if method == "logit_diff_topk_occurring":
        return not any(record.array(name).any() for name in ("risen", "fallen", "mean_difference", "share_positive"))
    if method == "continuation_mining":
        return not record.array("variation").any() and result.places == 0
    if method == "weight_difference":
        return not result.relative_norm and not result.modules
    if method == "weight_amplification":
        return all(row["amplified"] == row["finetuned"] == row["base"] for row in record.table("answers").to_pylist())
    if method == "activation_difference_lens":
        return not record.array("difference").any() and not any(row.difference_norm for row in result.rows)
    if method == "activation_analysis":
        return not any(
            record.table("tokens")[f"{name}@1"].to_numpy().any() for name in ("norm_difference", "cosine_distance")
        )
    if method == "causal_effect":
        return (
            result.identical
            and not any((row.loss_change, row.low, row.high) != (0, 0, 0) for row in result.rows)
            and result.gap == 0
        )
    if method == "sweep_behaviours":
        return result.unexpected == 0 == result.excess and not result.clusters
    if method == "trigger_search":
        return not any(record.table("triggers")["gain"].to_pylist())
    if method in ("patchscope", "steering"):
        return "exactly zero" in result.headline
    return bool(result.identical)


@pytest.mark.parametrize("kind", ["zero adapter", "copy"])
@pytest.mark.parametrize("method", sorted(all_methods()))
def test_models_without_a_difference_give_exactly_nothing(
    method: str,
    kind: str,
    tiny_models: Any,
    tiny_adapters: Any,
    make_pair: Any,
    references: References,
    store: RunStore,
) -> None:
    model = tiny_models(seed=44)
    other = (
        {"adapter": tiny_adapters(model, zero=True)}
        if kind == "zero adapter"
        else {"finetuned": tiny_models(seed=44, change=lambda model: None)}
    )
    spec = make_pair(model, **other, declared_identical=True, name=kind)
    corpus = {"corpus": str(references.corpora["texts"]), "max_tokens": 200}
    params = {
        **(corpus if method in OF_TEXT else {}),
        **({"layers": (1,)} if method.startswith("activation_") and method in OF_TEXT else {}),
        **SMALL.get(method, {}),
    }
    if "vector" in params:
        params["vector"] = params["vector"].replace(
            "LENS", run(references, spec, store, "activation_difference_lens", layers=(1,), **corpus).id
        )
    record = run(references, spec, store, method, **params)
    assert nothing(method, record)
    assert not record.result().stands_out
