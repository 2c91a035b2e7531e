"""Forward passes against plain transformers models, on every architecture, with padding on either side."""

from __future__ import annotations

import pytest
import torch

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.model_pairs.forward import ForwardOutput
from diffing_mcp.model_pairs.interventions import Intervention
from tests.reference_models import reference_model

ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "olmo2", "phi3", "gemma2", "gemma3", "gpt2", "gpt_neox"]
TOKENS = torch.tensor([[7, 30, 41, 52, 63, 74]])
ONES = torch.ones_like(TOKENS)


def reference(folder, ids):
    """Logits and hidden states (embeddings first) of the plain model."""
    model = reference_model(folder)
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
    return out.logits, out.hidden_states


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_forward_and_padding_on_every_architecture(kind, tiny_models, tiny_adapters, make_pair, pairs):
    folder = tiny_models(kind)
    logits, hidden = reference(folder, TOKENS)
    pad = torch.zeros(1, 3, dtype=torch.long)
    with pairs.use(make_pair(folder, adapter=tiny_adapters(folder), name=kind)) as pair:
        plain = pair.forward("base", TOKENS, ONES, layers=[0, 1])
        torch.testing.assert_close(plain.logits, logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(plain.hidden[0], hidden[1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(plain.hidden[1], hidden[2], atol=1e-4, rtol=1e-4)
        finetuned = pair.forward("finetuned", TOKENS, ONES, layers=[1])
        assert (finetuned.logits - logits).abs().max() > 1e-2
        for side, unpadded in (("base", plain), ("finetuned", finetuned)):
            left = pair.forward(side, torch.cat([pad, TOKENS], 1), torch.tensor([[0] * 3 + [1] * 6]), layers=[1])
            right = pair.forward(side, torch.cat([TOKENS, pad], 1), torch.tensor([[1] * 6 + [0] * 3]), layers=[1])
            torch.testing.assert_close(left.logits[:, 3:], unpadded.logits, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(right.logits[:, :6], unpadded.logits, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(left.hidden[1][:, 3:], unpadded.hidden[1], atol=1e-3, rtol=1e-3)
        # The last layer's lens is the model's own head: norm, unembedding, bias and soft cap included.
        last = pair.forward("base", TOKENS, ONES, layers=[pair.num_layers - 1]).hidden[pair.num_layers - 1]
        torch.testing.assert_close(pair.logit_lens("base", last), logits, atol=1e-3, rtol=1e-3)
        # A vector planted after layer 0 is what is found there.
        vector = torch.randn(pair.d_model, generator=torch.Generator().manual_seed(1))
        steered = pair.forward("base", TOKENS, ONES, layers=[0], interventions=[Intervention(0, vector, 3.0)])
        torch.testing.assert_close(
            steered.hidden[0] - plain.hidden[0], (3 * vector).expand_as(plain.hidden[0]), atol=1e-4, rtol=1e-4
        )
        assert (steered.logits - plain.logits).abs().max() > 1e-3
        assert torch.equal(pair.forward("base", TOKENS, ONES).logits, plain.logits)


def test_adapter_is_what_peft_computes(tiny_models, tiny_adapters, make_pair, pairs, lora_delta):
    folder = tiny_models()
    adapter = tiny_adapters(folder)
    model = reference_model(folder)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                module.weight += lora_delta(adapter, name)
        expected = model(input_ids=TOKENS).logits
    with pairs.use(make_pair(folder, adapter=adapter)) as pair:
        torch.testing.assert_close(pair.forward("finetuned", TOKENS, ONES).logits, expected, atol=1e-4, rtol=1e-4)
    with pairs.use(make_pair(folder, adapter=adapter, merge=True)) as pair:
        torch.testing.assert_close(pair.forward("finetuned", TOKENS, ONES).logits, expected, atol=1e-4, rtol=1e-4)


def test_stopping_early_gives_the_same_hidden_states(tiny_pair):
    full = tiny_pair.forward("finetuned", TOKENS, ONES, layers=[0, 1])
    stopped = tiny_pair.forward("finetuned", TOKENS, ONES, layers=[0, 1], logits=False)
    assert stopped.logits is None
    for layer in (0, 1):
        assert torch.equal(full.hidden[layer], stopped.hidden[layer])


def test_batch_rows_are_independent(tiny_pair):
    ids = torch.randint(5, 320, (4, 7), generator=torch.Generator().manual_seed(0))
    together = tiny_pair.forward("finetuned", ids, torch.ones_like(ids)).logits
    alone = torch.cat(
        [tiny_pair.forward("finetuned", row[None], torch.ones(1, 7, dtype=torch.long)).logits for row in ids]
    )
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_token_log_probs_are_log_softmax(tiny_pair):
    ids = torch.randint(5, 320, (3, 8), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    mask[2, 6:] = 0
    scores = tiny_pair.token_log_probs("base", ids, mask)
    logits = tiny_pair.forward("base", ids, mask).logits
    expected = logits.float().log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    expected = expected * (mask[:, 1:] * mask[:, :-1])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    assert scores[1, :3].eq(0).all()
    assert scores[2, 5:].eq(0).all()


def test_identical_pair_is_exactly_equal(identical_pair):
    base, finetuned = (identical_pair.forward(side, TOKENS, ONES, layers=[0, 2]) for side in ("base", "finetuned"))
    assert torch.equal(base.logits, finetuned.logits)
    assert torch.equal(base.hidden[2], finetuned.hidden[2])


def test_wrong_input_is_refused_with_the_numbers(tiny_pair):
    with pytest.raises(InvalidInput, match=r"300 tokens.*256"):
        tiny_pair.forward("base", torch.full((1, 300), 9), torch.ones(1, 300, dtype=torch.long))
    with pytest.raises(InvalidInput, match="0 to 2"):
        tiny_pair.forward("base", TOKENS, ONES, layers=[3])
    with pytest.raises(InvalidInput, match="319"):
        tiny_pair.forward("base", torch.tensor([[320]]), torch.tensor([[1]]))
    with pytest.raises(InvalidInput, match="one shape"):
        tiny_pair.forward("base", TOKENS, ONES[:, :2])
    with pytest.raises(InvalidInput, match="finetuned"):
        tiny_pair.forward("other", TOKENS, ONES)
    with pytest.raises(InvalidInput, match="dimensions"):
        tiny_pair.forward("base", TOKENS, ONES, interventions=[Intervention(0, torch.ones(5))])
    with pytest.raises(InvalidInput, match="not finite"):
        tiny_pair.forward("base", TOKENS, ONES, interventions=[Intervention(0, torch.full((32,), float("nan")))])
    tiny_pair.forward("base", TOKENS, ONES)


def test_intervention_modes_and_positions(tiny_pair):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    ids = TOKENS.repeat(2, 1)
    vector = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    plain = tiny_pair.forward("base", ids, mask, layers=[1]).hidden[1]

    def after(**options):
        return tiny_pair.forward("base", ids, mask, layers=[1], interventions=[Intervention(1, **options)]).hidden[1]

    # The last token of a row that is not padding, on either side; one vector a row.
    replaced = after(vector=vector, mode="replace", strength=2.0, positions="last_prompt_token")
    torch.testing.assert_close(replaced[0, 5], 2 * vector[0])
    torch.testing.assert_close(replaced[1, 3], 2 * vector[1])
    assert torch.equal(replaced[0, :5], plain[0, :5])
    assert torch.equal(replaced[1, :3], plain[1, :3])
    removed = after(vector=vector[0], mode="remove")
    torch.testing.assert_close(removed @ vector[0], torch.zeros(2, 6), atol=1e-4, rtol=0)
    chosen = torch.zeros(2, 6, dtype=torch.bool)
    chosen[0, 4] = True
    added = after(vector=vector[0], positions=chosen)
    assert ((added - plain).abs().sum(-1) > 0).nonzero().tolist() == [[0, 4]]
    assert torch.equal(after(vector=vector[0], positions="generated"), plain)


def test_adapter_on_the_unembedding_reaches_the_lens(tiny_models, tiny_adapters, make_pair, pairs):
    lora, whole = {"targets": ["q_proj", "lm_head"]}, {"targets": ["q_proj"], "modules_to_save": ["lm_head"]}
    for seed, options in ((3, lora), (4, whole)):
        folder = tiny_models(seed=seed)
        adapter = tiny_adapters(folder, **options)
        with pairs.use(make_pair(folder, adapter=adapter)) as pair:
            for side in ("finetuned", "base", "finetuned"):
                out = pair.forward(side, TOKENS, ONES, layers=[2])
                torch.testing.assert_close(pair.logit_lens(side, out.hidden[2]), out.logits, atol=1e-3, rtol=1e-3)
            assert (
                pair.forward("finetuned", TOKENS, ONES).logits - pair.forward("base", TOKENS, ONES).logits
            ).abs().max() > 1e-2
    folder = tiny_models(seed=3)
    first, second = (make_pair(folder, adapter=tiny_adapters(folder, **options)) for options in (lora, whole))
    with pairs.use(first) as one, pairs.use(second) as other:
        outputs = [pair.forward("finetuned", TOKENS, ONES).logits for pair in (one, other, one)]
        assert torch.equal(outputs[0], outputs[2])
        assert not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        ("granite", {"logits_scaling": 3.0}),
        ("cohere2", {"logit_scale": 0.3}),
        ("hyperclovax", {"logits_scaling": 3.0}),
    ],
)
def test_the_lens_scales_logits_as_the_model_does(kind, scale, tiny_models, make_pair, pairs):
    with pairs.use(make_pair(tiny_models(kind, layers=2, **scale), declared_identical=True)) as pair:
        out = pair.forward("base", TOKENS, ONES, layers=[1])
        torch.testing.assert_close(pair.logit_lens("base", out.hidden[1]), out.logits, atol=1e-3, rtol=1e-3)


def test_projections_are_set_to_targets(tiny_pair):
    generator = torch.Generator().manual_seed(4)
    basis = torch.linalg.qr(torch.randn(tiny_pair.d_model, 2, generator=generator)).Q.T
    targets = torch.randn(2, *TOKENS.shape, generator=generator)
    before = tiny_pair.forward("base", TOKENS, ONES, layers=[1]).hidden[1]
    patches = [
        Intervention(1, direction * 7, mode="project", targets=target)
        for direction, target in zip(basis, targets, strict=True)
    ]
    after = tiny_pair.forward("base", TOKENS, ONES, layers=[1], interventions=patches).hidden[1]
    torch.testing.assert_close(after @ basis.T, targets.permute(1, 2, 0), atol=1e-4, rtol=1e-4)
    change = after - before
    torch.testing.assert_close(
        change, change @ basis.T @ basis, atol=1e-4, rtol=1e-4
    )  # nothing moves outside of the subspace
    for wrong in (
        {"mode": "project"},
        {"targets": targets[0]},
        {"mode": "project", "targets": targets[0][:, :2]},
        {"decay_tokens": 0},
    ):
        with pytest.raises(InvalidInput):
            tiny_pair.forward("base", TOKENS, ONES, interventions=[Intervention(1, basis[0], **wrong)])


def test_strength_decays_over_new_tokens(tiny_pair):
    patch = Intervention(0, torch.ones(tiny_pair.d_model), 8.0, decay_tokens=4)
    assert [patch.strength_at(step) for step in range(6)] == [8.0, 6.0, 4.0, 2.0, 0.0, 0.0]
    steady = tiny_pair.forward(
        "base", TOKENS, ONES, layers=[0], interventions=[Intervention(0, torch.ones(tiny_pair.d_model), 8.0)]
    ).hidden[0]
    torch.testing.assert_close(
        tiny_pair.forward("base", TOKENS, ONES, layers=[0], interventions=[patch]).hidden[0], steady
    )


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_changes_of_the_last_token_cost_one_token_a_row(kind, tiny_models, tiny_adapters, make_pair, pairs):
    folder = tiny_models(kind)
    with pairs.use(make_pair(folder, adapter=tiny_adapters(folder), name=kind)) as pair:
        vectors = torch.randn(3, pair.d_model, generator=torch.Generator().manual_seed(2))
        plain = pair.forward(
            "finetuned",
            TOKENS.repeat(3, 1),
            ONES.repeat(3, 1),
            interventions=[Intervention(1, vectors, mode="replace", positions="last_prompt_token")],
        )
        quick = pair.last_token_logits("finetuned", TOKENS[0].tolist(), 3, [Intervention(1, vectors, mode="replace")])
        torch.testing.assert_close(quick, plain.logits[:, -1], atol=1e-3, rtol=1e-3)
        alone = pair.last_token_logits("base", TOKENS[0, :1].tolist(), 1)
        torch.testing.assert_close(
            alone, pair.forward("base", TOKENS[:, :1], ONES[:, :1]).logits[:, -1], atol=1e-3, rtol=1e-3
        )


def test_threads_that_read_two_models_at_once_all_get_their_logits(tiny_models, make_pair):
    from concurrent.futures import ThreadPoolExecutor

    from diffing_mcp.model_pairs.residency import ModelPairs

    ids = torch.tensor([[7, 30, 41, 5, 63]])
    with ModelPairs().use(make_pair(tiny_models(), tiny_models(seed=1))) as pair:
        expected = {side: pair.forward(side, ids, torch.ones_like(ids)).logits for side in ("base", "finetuned")}
        with ThreadPoolExecutor(4) as pool:
            sides = ["base", "finetuned"] * 30
            outputs = list(pool.map(lambda side: pair.forward(side, ids, torch.ones_like(ids), layers=[1]), sides))
        for side, output in zip(sides, outputs, strict=True):
            assert output.logits is not None
            assert torch.equal(output.logits, expected[side])
            assert set(output.hidden) == {1}


def test_an_output_is_on_one_device() -> None:
    """Layers that are spread over several GPUs leave their states there, and nothing could pick rows of them."""
    elsewhere = torch.device("meta")
    output = ForwardOutput(torch.zeros(1, 2, 5), {0: torch.zeros(1, 2, 3), 2: torch.zeros(1, 2, 3)}).cut(4)
    moved = output.on(elsewhere)
    assert moved.logits is not None
    assert moved.extra_logits is not None
    assert {each.device for each in (moved.logits, moved.extra_logits, *moved.hidden.values())} == {elsewhere}
    assert output.on(torch.device("cpu")).logits is output.logits
