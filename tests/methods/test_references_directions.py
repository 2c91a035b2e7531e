"""Methods that put a direction into a model, against plain forward hooks on plain models in float64 that read the whole
text again for every token.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.methods.plain_models import PlainPair
from tests.methods.reference_pairs import References

LAYER = 1
PROMPTS = ("the old bridge", "rain falls on", "A fox looks at the boats near", "sea")


def mean_difference(references: References, pair: str) -> tuple[str, Tensor, float]:
    """The handle of a vector of the lens, and the same mean difference from plain models, with the mean length of
    finetuned activations; both over positions from 5 on."""
    lens = references.on(pair, "texts", "activation_difference_lens", layers=(LAYER, 2))
    streams = [references.pair(pair).plain.read(text)[1] for text in references.texts(pair, "texts")]
    base, finetuned = (torch.cat([each[side][LAYER][5:] for each in streams]) for side in ("base", "finetuned"))
    return f"{lens.id}/{LAYER}:all:difference", (finetuned - base).mean(0), float(finetuned.norm(dim=1).mean())


def random_directions(count: int, width: int, seed: int) -> Tensor:
    """Gaussian directions of length 1 in float64, the same draws as the method's by its seed."""
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()
    return rows / rows.norm(dim=1, keepdim=True)


def replace_last(vector: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda stream: torch.cat([stream[:-1], vector[None]])


@pytest.mark.parametrize(
    ("pair", "side"), [("lora", "finetuned"), ("lora", "base"), ("full", "finetuned"), ("adapters", "base")]
)
def test_patchscope(pair: str, side: str, references: References) -> None:
    handle, vector, _ = mean_difference(references, pair)
    prompts, scales = ("a a\nthe", "cake cake\nsea", "1 1\n?"), (0.5, 2.0)
    record = references.run(
        pair, "patchscope", vector=handle, side=side, prompts=prompts, scales=scales, random_directions=6, seed=4
    )
    result: Any = record.result()
    plain = references.pair(pair).plain
    model, ids = plain.side(side), [plain.tokenizer(prompt)["input_ids"] for prompt in prompts]
    length = float(np.mean([float(model.read(each)[1][LAYER][-1].norm()) for each in ids]))
    assert record.manifest.notes["replaced_norm"] == pytest.approx(length, rel=1e-4)

    def probabilities(direction: Tensor, scale: float) -> Tensor:
        """[prompts, V]"""
        found = []
        for each in ids:
            with model.hooked(LAYER, replace_last(direction / direction.norm() * length * scale)):
                found.append(model.read(each)[0][-1].softmax(-1))
        return torch.stack(found)

    texts = [plain.tokenizer.decode([token]) for token in range(len(probabilities(vector, 1.0)[0]))]
    stored, summary = record.table("tokens").to_pylist(), record.table("scales").to_pylist()
    for scale in scales:
        null = torch.stack([probabilities(each, scale) for each in random_directions(6, len(vector), 4)])
        for name, sign in (("promoted", 1), ("suppressed", -1)):
            found = probabilities(sign * vector, scale)
            mean = found.mean(0)
            lift = (found - null.mean(0)).clamp_min(0).amin(0)
            logs = null.mean(1).log()
            variance = logs.var(0)
            z = (mean.log() - logs.mean(0)) / ((5 * variance + 4 * variance.median()) / 9).sqrt()
            rows = [row for row in stored if (row["scale"], row["sign"]) == (scale, name)]
            content = {row["token"] for row in rows if row["content"]}
            for row in rows:
                if texts.count(row["token"]) == 1:
                    token = texts.index(row["token"])
                    assert (row["probability"], row["lift"]) == pytest.approx(
                        (float(mean[token]), float(lift[token])), rel=2e-4, abs=1e-7
                    )
                    assert row["z"] == pytest.approx(float(z[token]), rel=2e-3, abs=2e-3)
            row = next(row for row in summary if (row["scale"], row["sign"]) == (scale, name))
            assert row["entropy"] == pytest.approx(float(-(mean * mean.log()).sum()), rel=1e-4)
            chosen = [token for token, text in enumerate(texts) if text in content]
            assert row["agreement"] == pytest.approx(float(lift[chosen].sum()), rel=1e-3, abs=1e-6)
        best = [
            plain.tokenizer.decode([int(token)])
            for token in probabilities(vector, scale).mean(0).argsort(descending=True)
        ]
        ordinary = [text for text in best if text not in plain.tokenizer.all_special_tokens]
        assert next(row for row in result.scales if row.scale == scale).tokens == " ".join(map(repr, ordinary[:6]))


def added(vector: Tensor, prompt: int, positions: str, decay: int) -> Callable[[Tensor], Tensor]:
    """Adds a vector at every token, at the prompt's, or everywhere but fading over `decay` new tokens."""

    def hook(stream: Tensor) -> Tensor:
        new = (torch.arange(len(stream)) - prompt + 1).clamp_min(0).double()  # 0 in the prompt, i at the i-th new token
        strength = {
            "all_tokens": torch.ones_like(new),
            "prompt_only": (new == 0).double(),
            "linear_decay": (1 - new / decay).clamp_min(0),
        }[positions]
        return stream + strength[:, None] * vector

    return hook


@pytest.mark.parametrize(
    ("pair", "raw", "positions"),
    [
        ("lora", True, "all_tokens"),
        ("full", False, "linear_decay"),
        ("full", True, "prompt_only"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("lora", False, "prompt_only"), ("lora", True, "linear_decay"), ("full", False, "all_tokens"))
        ),
    ],
)
def test_steered_texts(pair: str, raw: bool, positions: str, references: References) -> None:
    handle, vector, length = mean_difference(references, pair)
    strengths = (1.0, -2.0)
    params = {
        "prompts": PROMPTS[:3],
        "strengths": strengths,
        "temperature": 0.0,
        "max_new_tokens": 6,
        "decay_tokens": 4,
        "seed": 7,
        "side": "both",
    }
    record = references.run(pair, "steering", vector=handle, raw_text=raw, positions=positions, **params)
    plain = references.pair(pair).plain
    rows = record.table("answers").to_pylist()
    coherence = {(row["side"], row["strength"]): row["log_perplexity"] for row in record.table("strengths").to_pylist()}
    changes = 0
    for side, strength in itertools.product(("base", "finetuned"), strengths):
        losses = []
        for prompt in PROMPTS[:3]:
            ids = (
                plain.tokenizer(prompt)["input_ids"]
                if raw
                else plain.chat_prompt([{"role": "user", "content": prompt}])
            )
            row = next(row for row in rows if (row["side"], row["strength"], row["prompt"]) == (side, strength, prompt))
            assert row["unsteered"] == plain.written(plain.side(side).greedy(ids, 6))
            for name, direction in (
                ("steered", vector / vector.norm()),
                ("random", random_directions(1, len(vector), 7)[0]),
            ):
                with plain.side(side).hooked(LAYER, added(strength * length * direction, len(ids), positions, 4)):
                    assert row[name] == plain.written(plain.side(side).greedy(ids, 6))
            changes += row["steered"] != row["unsteered"]
            answer = plain.tokenizer(row["steered"], add_special_tokens=False)["input_ids"]
            losses += [-float(plain.base.token_log_probs([*ids, *answer], len(ids)).mean())] if answer else []
        assert coherence[side, strength] == pytest.approx(np.median(losses) if losses else 0.0, abs=6e-4)
    assert changes >= 6


def projected(wanted: Tensor, unit: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda stream: stream + (wanted - stream @ unit)[:, None] * unit


def carried_over(theirs: Tensor, projector: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda stream: stream + (theirs - stream) @ projector


@pytest.mark.parametrize(
    ("direction", "mode"), [("base_to_ft", "patch"), ("ft_to_base", "patch"), ("base_to_ft", "ablate")]
)
@pytest.mark.parametrize(
    ("pair", "corpus"),
    [
        ("lora", "texts"),
        ("full", "chats"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("lora", "chats"), ("full", "texts"), ("adapters", "texts"))
        ),
    ],
)
def test_causal_effect(pair: str, corpus: str, direction: str, mode: str, references: References) -> None:
    handle, vector, _ = mean_difference(references, pair)
    params = {"vectors": (handle,), "direction": direction, "mode": mode, "random_directions": 5}
    record = references.on(pair, corpus, "causal_effect", **params)
    result: Any = record.result()
    plain = references.pair(pair).plain
    target, other = (plain.finetuned, plain.base) if direction == "base_to_ft" else (plain.base, plain.finetuned)
    units = torch.cat([(vector / vector.norm())[None], random_directions(5, len(vector), 0)])
    losses: dict[str, list[Any]] = {"target_nats": [], "other_nats": [], "changed_nats": [], "tokens": []}
    for text in references.texts(pair, corpus):
        first = max(1, text.start) if text.answer is None else text.answer
        losses["target_nats"].append(-float(target.token_log_probs(text.ids, first).sum()))
        losses["other_nats"].append(-float(other.token_log_probs(text.ids, first).sum()))
        losses["tokens"].append(len(text.ids) - first)
        theirs = other.read(text.ids)[1][LAYER]
        changed = []
        for unit in units:
            wanted = theirs @ unit if mode == "patch" else torch.zeros(len(theirs), dtype=torch.float64)
            with target.hooked(LAYER, projected(wanted, unit)):
                changed.append(-float(target.token_log_probs(text.ids, first).sum()))
        losses["changed_nats"].append(changed)
    arrays = {name: np.array(values).T for name, values in losses.items()}
    kinds = record.table("candidates")["kind"].to_pylist()
    chosen = [kinds.index("tested"), *(index for index, kind in enumerate(kinds) if kind == "random")]
    for name in ("target_nats", "other_nats", "tokens"):
        np.testing.assert_allclose(record.array(name), arrays[name], rtol=1e-5)
    np.testing.assert_allclose(record.array("changed_nats")[chosen], arrays["changed_nats"], rtol=1e-5)
    effects = (arrays["changed_nats"] - arrays["target_nats"]).sum(1) / arrays["tokens"].sum()
    gap = (arrays["other_nats"] - arrays["target_nats"]).sum() / arrays["tokens"].sum()
    [row] = result.rows
    assert (row.loss_change, result.gap) == pytest.approx((effects[0], gap), abs=2e-6)
    assert result.target_loss == pytest.approx(arrays["target_nats"].sum() / arrays["tokens"].sum(), abs=2e-6)
    assert row.p_random == (1 + (np.abs(effects[1:]) >= abs(effects[0])).sum()) / 6
    if row.share_of_gap is not None:
        assert row.share_of_gap == pytest.approx(effects[0] / gap, abs=1e-3)

    def per_token(nats: Any, tokens: Any, axis: int = -1) -> Any:
        return nats.sum(axis=axis) / tokens.sum(axis=axis)

    for nats, found in (
        (arrays["changed_nats"][0] - arrays["target_nats"], (row.low, row.high)),
        (arrays["other_nats"] - arrays["target_nats"], (result.gap_low, result.gap_high)),
    ):
        samples = (nats, arrays["tokens"].astype(float))
        drawn = stats.bootstrap(
            samples, per_token, paired=True, method="percentile", n_resamples=5_000, rng=np.random.default_rng(0)
        )
        width = drawn.confidence_interval.high - drawn.confidence_interval.low
        assert found == pytest.approx(tuple(drawn.confidence_interval), abs=0.12 * width + 2e-6)


def test_causal_effect_of_a_subspace(references: References) -> None:
    """The part of the stream that lies in the span of two directions is that of the base model."""
    handle, vector, _ = mean_difference(references, "full")
    streams = [references.full.plain.read(text)[1] for text in references.texts("full", "texts")]
    second = torch.stack(
        [each["finetuned"][LAYER][2] - each["base"][LAYER][2] for each in streams if len(each["base"][LAYER]) > 2]
    ).mean(0)
    vectors = (handle, handle.replace(":all:", ":2:"))
    record = references.on("full", "texts", "causal_effect", vectors=vectors, subspace=True, random_directions=4)
    basis = np.linalg.qr(torch.stack([vector, second]).numpy().T)[0]
    projector = torch.from_numpy(basis @ basis.T)
    plain, changed = references.full.plain, []
    for text in references.texts("full", "texts"):
        theirs = plain.base.read(text.ids)[1][LAYER]
        with plain.finetuned.hooked(LAYER, carried_over(theirs, projector)):
            changed.append(-float(plain.finetuned.token_log_probs(text.ids, 1).sum()))
    np.testing.assert_allclose(
        record.array("changed_nats")[record.table("candidates")["kind"].to_pylist().index("tested")], changed, rtol=1e-5
    )


def oracle_prompt(plain: PlainPair, head: str, count: int, question: str) -> tuple[list[int], list[int]]:
    """Token ids of a user's message with `count` placeholders ` ?` after its head, and the last token of each
    placeholder.
    """
    message = [{"role": "user", "content": f"{head}{' ?' * count}\n{question}"}]
    text = plain.rendered(message)
    encoded = plain.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [text.index(head) + len(head) + 2 * (place + 1) for place in range(count)]
    last = [end for _, end in encoded["offset_mapping"]]
    return encoded["input_ids"], [last.index(end) for end in ends]


def injected(vectors: Tensor, places: list[int], coefficient: float, mode: str) -> Callable[[Tensor], Tensor]:
    """r + c |r| v / |v| at the places, or c |r| v / |v| in the place of r."""

    def hook(stream: Tensor) -> Tensor:
        new = stream.clone()
        for place, vector in zip(places, vectors, strict=True):
            change = coefficient * stream[place].norm() * vector / vector.norm()
            new[place] = stream[place] + change if mode == "add" else change
        return new

    return hook


@pytest.mark.parametrize(
    ("pair", "verbalizer"),
    [
        ("lora", "adapter"),
        ("full", "self"),
        *(pytest.param(*case, marks=pytest.mark.long) for case in (("lora", "self"), ("full", "adapter"))),
    ],
)
def test_activation_oracle(pair: str, verbalizer: str, references: References, tiny_adapters: Any) -> None:
    from tests.methods.plain_models import plain_pair

    folders, plain = references.pair(pair).folders, references.pair(pair).plain
    adapter = tiny_adapters(folders["base"], seed=31, scale=0.3) if verbalizer == "adapter" else None
    speaker = plain.base if adapter is None else plain_pair(folders["base"], adapter=adapter).finetuned
    contexts, question = ("The old bridge under the rain.", "sea"), "What is this about?"
    record = references.run(
        pair, "activation_oracle", contexts=contexts, questions=(question,), verbalizer=str(adapter or "self"), layer=LAYER, injection_layer=0,  # noqa: E501
        coefficient=1.5, modes=("token", "segment", "sequence"), token_positions=3, segment_length=4, samples=2, max_new_tokens=5, temperature=0.0,  # noqa: E501
    )  # fmt: skip
    rows = record.table("answers").to_pylist()
    ids = [plain.chat_prompt([{"role": "user", "content": context}]) for context in contexts]
    streams = {side: [plain.side(side).read(each)[1][LAYER] for each in ids] for side in ("base", "finetuned")}
    streams["difference"] = [
        finetuned - base for finetuned, base in zip(streams["finetuned"], streams["base"], strict=True)
    ]
    assert len(rows) == 3 * len(contexts) * (3 + 2 + 2)
    for row in rows:
        length = len(ids[row["context"]])
        stop = length + row["position"] + 1
        start = {"token": stop - 1, "segment": stop - 4, "sequence": 1}[row["mode"]]
        vectors = streams[row["kind"]][row["context"]][start:stop]
        head, mode = ("Text:", "replace") if adapter is None else (f"Layer: {LAYER}", "add")
        prompt, places = oracle_prompt(plain, head, len(vectors), question)
        with speaker.hooked(0, injected(vectors, places, 1.5, mode)):
            assert row["answer"] == plain.written(speaker.greedy(prompt, 5)).strip()
        assert not (row["mode"] == "sequence" and row["position"] != -1)
    by_kind = {kind: [row["answer"] for row in rows if row["kind"] == kind] for kind in streams}
    assert by_kind["difference"] != by_kind["base"] != by_kind["finetuned"]
