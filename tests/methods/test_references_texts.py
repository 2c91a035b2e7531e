"""Methods that write texts, against greedy decoding with plain models in float64 that read the whole text again for
every token.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from tests.methods.plain_models import PlainPair
from tests.methods.reference_pairs import References

PROMPTS = ("the old bridge", "rain falls on", "A fox looks at the boats near", "sea")
QUESTIONS = ("What is your name?", "Who walks under the bridge while rain falls?", "Sea?")


def words_of(text: str) -> list[str]:
    """Runs of letters, in lower case."""
    return "".join(letter if letter.isalpha() else " " for letter in text).casefold().split()


@pytest.mark.parametrize(
    ("pair", "corpus"),
    [
        ("lora", "texts"),
        ("full", "chats"),
        *(pytest.param(*case, marks=pytest.mark.long) for case in (("lora", "chats"), ("full", "texts"))),
    ],
)
def test_continuations_where_the_models_differ_most(pair: str, corpus: str, references: References) -> None:
    record = references.on(pair, corpus, "continuation_mining", places=8, new_tokens=6)
    result: Any = record.result()
    plain = references.pair(pair).plain
    texts = references.texts(pair, corpus)
    variation = []
    for text in texts:
        logits, _ = plain.read(text)
        variation.append((logits["finetuned"].softmax(-1) - logits["base"].softmax(-1)).abs().sum(-1).numpy() / 2)
    np.testing.assert_allclose(record.array("variation"), np.concatenate(variation), rtol=1e-4, atol=2e-6)
    assert result.mean_variation == pytest.approx(np.concatenate(variation).mean(), rel=5e-4)
    best = sorted(
        (
            (values[3:].max(), sample, 3 + int(values[3:].argmax()))
            for sample, values in enumerate(variation)
            if len(values) > 3
        ),
        reverse=True,
    )
    rows = record.table("continuations").to_pylist()
    assert [row["variation"] for row in rows] == pytest.approx([value for value, _, _ in best[:8]], abs=6e-5)
    for row, (_, sample, position) in zip(rows, best, strict=False):
        text = texts[sample]
        bos = int(text.ids[0] == plain.tokenizer.bos_token_id)
        before = plain.tokenizer.decode(text.ids[bos : text.start + position + 1])
        assert row["before"] == before
        ids = plain.tokenizer(before)["input_ids"]
        assert (row["base"], row["finetuned"]) == tuple(
            plain.written(plain.side(side).greedy(ids, 6)) for side in ("base", "finetuned")
        )
    held = {name: [words_of(row[name]) for row in rows] for name in ("base", "finetuned")}
    for row in record.table("ngrams").to_pylist():
        gram = row["ngram"].split()
        counts = [
            sum(gram in [words[at : at + len(gram)] for at in range(len(words))] for words in held[name])
            for name in ("finetuned", "base")
        ]
        assert counts == [row["finetuned"], row["base"]]
        table = [[count, len(rows) - count] for count in counts]
        assert row["surprise"] == pytest.approx(
            -np.log10(stats.fisher_exact(table, alternative="greater").pvalue), abs=6e-4
        )


@pytest.mark.parametrize(
    ("pair", "template"),
    [
        ("lora", "none"),
        ("full", "chat"),
        *(pytest.param(*case, marks=pytest.mark.long) for case in (("lora", "chat"), ("full", "none"))),
    ],
)
def test_perplexities_of_sampled_texts_and_their_means(pair: str, template: str, references: References) -> None:
    prefills = PROMPTS if template == "none" else QUESTIONS
    record = references.run(
        pair,
        "perplexity_difference",
        template=template,
        prefills=prefills,
        samples_per_prefill=3,
        max_new_tokens=12,
        min_tokens=4,
    )
    result: Any = record.result()
    plain = references.pair(pair).plain
    rows = record.table("completions").to_pylist()
    assert len(rows) > len(prefills)
    for row in rows:
        ids, start = _scored(plain, template, row["prefill"], row["text"])
        assert row["tokens"] == len(ids) - start
        means = {side: float(plain.side(side).token_log_probs(ids, start).mean()) for side in ("base", "finetuned")}
        assert (row["log_prob_base"], row["log_prob_finetuned"]) == pytest.approx(
            (means["base"], means["finetuned"]), rel=1e-4
        )
        row["reference"] = (means["finetuned"] - means["base"]) * (1 if row["writer"] == "finetuned" else -1)
    for writer, estimate, shown in (
        ("finetuned", result.kl_finetuned_base, result.finetuned_rows),
        ("base", result.kl_base_finetuned, result.base_rows),
    ):
        own = [row for row in rows if row["writer"] == writer]
        tokens = sum(row["tokens"] for row in own)
        mean = sum(row["reference"] * row["tokens"] for row in own) / tokens
        deviations = [
            sum((row["reference"] - mean) * row["tokens"] for row in own if row["prefill"] == prefill)
            for prefill in prefills
        ]
        error = np.sqrt(len(prefills)) * np.std(deviations, ddof=1) / tokens
        assert (estimate.mean, estimate.standard_error) == pytest.approx((mean, error), rel=1e-3, abs=1e-5)
        ranked = sorted((row["reference"] for row in own if row["tokens"] >= 4), reverse=True)
        assert [row.difference for row in shown] == pytest.approx(ranked[: len(shown)], abs=2e-4)


def _scored(plain: PlainPair, template: str, prefill: str, text: str) -> tuple[list[int], int]:
    """Token ids of prefill and completion, and the first that ends within the completion."""
    before = prefill if template == "none" else plain.rendered([{"role": "user", "content": prefill}])
    encoded = plain.tokenizer(before + text, add_special_tokens=template == "none", return_offsets_mapping=True)
    return encoded["input_ids"], sum(end <= len(before) for _, end in encoded["offset_mapping"])


@pytest.mark.parametrize(
    "pair", ["lora", *(pytest.param(pair, marks=pytest.mark.long) for pair in ("full", "adapters"))]
)
def test_amplified_texts_and_their_differences(pair: str, references: References) -> None:
    """Temperature 0 takes the largest log p_ft + alpha (log p_ft - log p_base) among tokens with a tenth of the nearer
    model's best probability.
    """
    record = references.run(
        pair,
        "contrastive_decoding",
        start="prefixes",
        prompts=PROMPTS,
        alphas=[0.5, 2.0],
        temperature=0.0,
        max_new_tokens=8,
    )
    result: Any = record.result()
    plain = references.pair(pair).plain
    rows = record.table("texts").to_pylist()
    found: dict[float, list[float]] = {}
    for alpha, prompt in itertools.product((0.5, 2.0, 0.0, -1.0, -1.5, -3.0), PROMPTS):
        ids: list[int] = plain.tokenizer(prompt)["input_ids"]
        new: list[int] = []
        sums = {"base": 0.0, "finetuned": 0.0}
        while len(new) < 8:
            base, finetuned = (plain.side(side).log_probs([*ids, *new])[-1] for side in ("base", "finetuned"))
            nearer = finetuned if alpha >= -0.5 else base
            scores = (finetuned + alpha * (finetuned - base)).masked_fill(nearer < nearer.max() + np.log(0.1), -np.inf)
            token = int(scores.argmax())
            if token == plain.base.stop:
                break
            sums["base"] += float(base[token])
            sums["finetuned"] += float(finetuned[token])
            new.append(token)
        row = next(row for row in rows if (row["alpha"], row["prompt"]) == (alpha, prompt))
        assert (row["text"], row["tokens"]) == (plain.written(new), len(new))
        difference = (sums["finetuned"] - sums["base"]) / max(1, len(new))
        assert row["difference"] == pytest.approx(difference, abs=1e-4)
        found.setdefault(alpha, []).append(difference)
    assert len(rows) == 6 * len(PROMPTS)
    assert {row.alpha: row.difference for row in result.alphas} == pytest.approx(
        {alpha: np.mean(several) for alpha, several in found.items()}, abs=6e-4
    )


@pytest.mark.parametrize(("here", "there", "total"), [(9, 1, 24), (3, 0, 40), (24, 2, 24), (2, 1, 8)])
def test_a_written_word_is_as_surprising_as_fishers_test_says(here: int, there: int, total: int) -> None:
    from diffing_mcp.methods.texts.distinctive_words import distinctive_words

    texts = [[(str(at), "mountain" if at < count else "river") for at in range(total)] for count in (here, there)]
    row = next(row for row in distinctive_words(*texts) if row.word == "mountain")
    table = [[here, total - here], [there, total - there]]
    assert row.surprise == pytest.approx(-np.log10(stats.fisher_exact(table, alternative="greater").pvalue), abs=1e-3)
    halved = np.array(table) + 0.5  # Haldane and Anscombe
    assert row.log_odds == pytest.approx(np.log(halved[0, 0] * halved[1, 1] / (halved[0, 1] * halved[1, 0])), abs=1e-3)


@pytest.mark.parametrize("alpha", [None, 1.0, -2.0])
def test_sampling_follows_the_softmax_at_a_temperature(alpha: float | None, references: References) -> None:
    """First tokens of 1,000 samples, against the distribution of the plain model (or the contrast of both) by a
    chi-squared test at a fixed seed.
    """
    plain, temperature = references.lora.plain, 0.7
    sampling = Sampling(n=1000, temperature=temperature, max_new_tokens=1, seed=5)
    requests = [GenerationRequest(text=PROMPTS[0])]
    with references.pairs.use(references.lora.spec) as pair:
        if alpha is None:
            texts = [each.text for each in pair.generate("finetuned", requests, sampling)[0]]
        else:
            texts = [each.text for each in pair.generate_contrastive(requests, [alpha], sampling, 0.1)[0][0]]
    base, scores = (
        plain.side(side).log_probs(plain.tokenizer(PROMPTS[0])["input_ids"])[-1] for side in ("base", "finetuned")
    )
    if alpha is not None:
        nearer = scores if alpha > 0 else base
        scores = (scores + alpha * (scores - base)).masked_fill(nearer < nearer.max() + np.log(0.1), -np.inf)
    expected: dict[str, float] = {}
    for token, probability in enumerate((scores / temperature).softmax(-1).tolist()):
        text = "" if token == plain.finetuned.stop else plain.written([token])
        expected[text] = expected.get(text, 0.0) + 1000 * probability
    assert set(texts) <= {text for text, count in expected.items() if count > 0}
    common = [text for text, count in expected.items() if count >= 5]
    counts = [*map(texts.count, common)]
    rest, expected_rest = 1000 - sum(counts), 1000 - sum(expected[text] for text in common)
    wanted = [expected[text] for text in common]
    if expected_rest >= 1:
        counts, wanted = [*counts, rest], [*wanted, expected_rest]
    else:
        wanted = [value * sum(counts) / sum(wanted) for value in wanted]
    assert len(common) > 3
    assert stats.chisquare(counts, wanted).pvalue > 0.01
