"""The overview: agreement of words, honesty on nulls, and its size."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.calibration.readings import reading_of
from diffing_mcp.methods.calibration.schema import Calibration
from diffing_mcp.methods.contract import CostEstimate, PairSize
from diffing_mcp.methods.facts.statements import Sample
from diffing_mcp.methods.overview.agreement import candidate_words
from diffing_mcp.methods.overview.digest import LEAST_CHARACTERS, digest, headline_beside
from diffing_mcp.methods.overview.plan import (
    ALSO_IN_CHATS,
    CHATS,
    CHATS_READ,
    DEFAULT_BUDGET,
    LENS,
    TEXTS_READ,
    by_default,
    choose,
    default_plan,
    label_of_run,
    named,
    pending_vector,
    read_by_default,
    run_plan,
    steps,
    with_chats,
)
from diffing_mcp.methods.overview.verdict import OTHER_BASE
from diffing_mcp.methods.overview.word_pieces import WholeWords
from diffing_mcp.methods.registry import all_methods, get_method
from diffing_mcp.methods.results import MethodResult
from diffing_mcp.methods.runs.execute import estimate, run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.methods.texts.words import EvidenceWord
from tests.methods.conftest import raise_logits, write_random_texts
from tests.word_pairs import save_pair

ABOUT_CHATS = ("answer_openings",)


def corpus_of(tmp_path: Path, texts: int = 24) -> dict[str, Any]:
    path = write_random_texts(tmp_path, texts, seed=2, length=12)
    return {"corpus": str(path), "max_samples": texts, "max_tokens": 12}


def offered(**corpus: Any) -> list[tuple[str, Any]]:
    """What an overview may choose from, with these corpus parameters."""
    corpus = {"max_samples": TEXTS_READ, **corpus}
    methods = {name: method for name, method in all_methods().items() if method.in_overview}
    return with_chats(
        [
            (
                name,
                method.Params.model_validate(
                    {**(corpus if "corpus" in method.Params.model_fields else {}), **pending_vector(name)}
                ),
            )
            for name, method in methods.items()
        ]
    )


def records_of(pairs: Any, spec: Any, tmp_path: Path) -> list[RunRecord]:
    corpus = corpus_of(tmp_path)
    requests: list[Any] = [
        ("kl", corpus),
        ("logit_diff_topk_occurring", corpus),
        ("activation_difference_lens", corpus),
        ("perplexity_difference", {"samples_per_prefill": 1, "max_new_tokens": 8, "min_tokens": 4}),
    ]
    return list(run_methods(pairs, spec, requests, RunStore(tmp_path / "runs")))


@pytest.fixture(scope="module")
def noise(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, tmp_path_factory: pytest.TempPathFactory
) -> list[RunRecord]:
    """Runs on a random adapter; tests only read them."""
    model = tiny_models()
    spec = make_pair(model, adapter=tiny_adapters(model, seed=2, scale=0.02))
    return records_of(pairs, spec, tmp_path_factory.mktemp("noise"))


@pytest.mark.parametrize("limit", [LEAST_CHARACTERS, 2500, 6000])
def test_the_digest_of_a_noise_adapter_is_small_and_claims_nothing(limit: int, noise: list[RunRecord]) -> None:
    overview = digest(noise, limit, pair="noise")
    assert len(overview.as_text()) <= limit
    assert overview.confidence == "nothing"
    assert "no meaningful difference" in overview.verdict
    assert overview.next_calls


def test_the_digest_of_an_identical_pair_says_so(tiny_models: Any, make_pair: Any, pairs: Any, tmp_path: Path) -> None:
    spec = make_pair(tiny_models(), declared_identical=True)
    records = records_of(pairs, spec, tmp_path)
    others: list[Any] = [("contrastive_decoding", {"max_new_tokens": 4}), ("weight_difference", {})]
    records += run_methods(pairs, spec, others, RunStore(tmp_path / "runs"))
    overview = digest(records, pair="twins")
    assert overview.confidence == "identical"
    assert not any("patchscope" in call for call in overview.next_calls)  # there is no direction to read
    assert overview.words == overview.facts == overview.manner == overview.excerpts == []


def test_planted_words_are_agreed_on_or_seen_by_one_method(
    planted_words: Any, make_pair: Any, pairs: Any, tmp_path: Path
) -> None:
    base, finetuned, planted = planted_words(4.0)
    corpus, store = corpus_of(tmp_path, 60), RunStore(tmp_path / "runs")
    requests: list[Any] = [
        ("logit_diff_topk_occurring", corpus),
        ("contrastive_decoding", {"max_new_tokens": 4}),
        (LENS, corpus),
    ]
    records = run_methods(pairs, make_pair(base, finetuned), requests, store)
    overview = digest(records, pair="planted")
    assert overview.confidence == "agreed"
    by_word = {row.word: row for row in overview.words}
    assert set(by_word) <= set(planted)
    assert len([row for row in overview.words if row.sources == 2 and row.score > 1]) >= 3
    alone = [
        row for row in overview.words if row.methods == ["logit_diff_topk_occurring"]
    ]  # too rare in so short texts
    assert alone
    assert overview.words[0].sources == 2
    assert overview.words[0].word in overview.verdict
    further = overview.words[8:]
    assert further
    assert all(f"{row.word} {row.score:.1f}x{row.sources}" in overview.as_text() for row in further)
    lens, logits = (
        next(entry for entry in overview.runs if entry.method == name) for name in (LENS, "logit_diff_topk_occurring")
    )
    assert (lens.stands_out, lens.strength) == (False, None)  # only the unembedding was changed
    assert logits.stands_out
    assert (logits.strength or 0) > 1
    assert (logits.forward_tokens or 0) >= 2 * 60 * 10
    one = digest(
        [record for record in records if record.manifest.method == "logit_diff_topk_occurring"], pair="planted"
    )
    assert one.confidence == "one_method"
    assert "confirm" in one.verdict


def test_methods_are_chosen_within_the_budget_the_telling_and_cheap_ones_first() -> None:
    def names(budget: int, **corpus: Any) -> list[str]:
        return [name for name, _ in choose(offered(**corpus), budget).all]

    default = choose(offered(), DEFAULT_BUDGET)
    pass_methods = ["kl", "logit_diff_topk_occurring", LENS]
    writing = ["continuation_mining", "perplexity_difference", "contrastive_decoding"]
    assert {name for name, _ in default.requests} == {*pass_methods, *writing, *ABOUT_CHATS, "weight_difference"}
    assert default == default_plan()
    first = ["kl", *ABOUT_CHATS, "contrastive_decoding", "perplexity_difference"]
    assert [name for name, _ in default.requests[:4]] == first
    assert [name for name, params in default.requests if getattr(params, "corpus", "") == CHATS] == [
        *ABOUT_CHATS,
        *ALSO_IN_CHATS,
    ]
    assert [name for name, _ in default.chained] == ["patchscope"]
    assert {row.method for row in default.left_out} == {"weight_amplification"}
    # What shares a pass costs only what it does besides.
    cheap = {*pass_methods, *ABOUT_CHATS, "weight_difference", "patchscope"}
    assert {*names(170_000)} == {*writing[1:], *cheap}
    assert {*names(190_000)} == {*writing, *cheap}
    assert names(100) == []
    # Without the size of the change there is no level: it goes first.
    assert names(100_000)[:3] == ["kl", *ABOUT_CHATS, "perplexity_difference"]
    assert names(16_000)[:1] == ["kl"]
    assert len(names(1_000_000)) == len(offered())
    assert "kl" in names(10_000, max_samples=20, max_tokens=10)
    without_lens = [(name, params) for name, params in offered() if name != LENS]
    assert "patchscope" in {row.method for row in choose(without_lens, 1_000_000).left_out}


def test_the_estimate_of_a_shared_pass_counts_it_once() -> None:
    def tokens(*names: str) -> CostEstimate:
        return estimate(PairSize(tokens_per_second=1), [(name, get_method(name).Params()) for name in names])

    both, first, second = tokens("kl", "continuation_mining"), tokens("kl"), tokens("continuation_mining")
    assert both.seconds == second.seconds == tokens("continuation_mining", "kl").seconds
    assert (first.seconds or 0) < (both.seconds or 0) < (first.seconds or 0) + (second.seconds or 0)


def test_a_vector_is_chained_from_the_lens(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, tmp_path: Path
) -> None:
    model = tiny_models()
    spec, store, corpus = (
        make_pair(model, adapter=tiny_adapters(model, seed=2)),
        RunStore(tmp_path / "runs"),
        corpus_of(tmp_path),
    )
    patchscope = get_method("patchscope").Params.model_validate(
        {"random_directions": 4, **pending_vector("patchscope")}
    )
    contrastive = get_method("contrastive_decoding").Params.model_validate(
        {"start": "nothing", "prompts": ["no prompt is allowed here"]}
    )
    plan = named(
        {"patchscope": patchscope, "contrastive_decoding": contrastive}, get_method(LENS).Params.model_validate(corpus)
    )
    reports: list[tuple[float, float | None, str]] = []

    def run(requests: Any, progress: Any) -> Any:
        return run_methods(pairs, spec, requests, store, progress)

    records, left_out = run_plan(plan, run, lambda *report: reports.append(report))
    shares = [done / total for done, total, _ in reports if total]
    assert shares == sorted(shares)
    messages = [message for _, _, message in reports]
    assert any(message.startswith(f"1 of 3: {LENS}") for message in messages)
    assert messages[-1].startswith("3 of 3: patchscope")
    assert [record.manifest.method for record in records] == [LENS, "patchscope"]
    assert records[1].manifest.params["vector"] == f"{records[0].id}/1:all:difference"
    assert [(row.method, "takes no prompts" in row.reason) for row in left_out] == [
        ("contrastive_decoding", True)
    ]  # and the others were run
    overview = digest(records, left_out=left_out, pair="tiny")
    assert "could not run contrastive_decoding: start=nothing takes no prompts" in overview.as_text()
    assert not any("patchscope" in call for call in overview.next_calls)
    assert "whether the direction can be read, no verdict" in overview.runs[1].as_text()
    with pytest.raises(InvalidInput, match=f"patchscope needs a vector, which an overview takes from {LENS}"):
        named({"patchscope": patchscope}, None)
    with pytest.raises(InvalidInput, match="takes no prompts"):
        run_plan(
            named({"contrastive_decoding": contrastive}, None),
            run,
        )


def test_what_waits_for_a_lens_that_cannot_run_is_told(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: Any, tmp_path: Path
) -> None:
    model, corpus = tiny_models(), corpus_of(tmp_path)
    spec, store = make_pair(model, adapter=tiny_adapters(model, seed=2)), RunStore(tmp_path / "runs")
    asked = {
        "kl": get_method("kl").Params.model_validate(corpus),
        "patchscope": get_method("patchscope").Params.model_validate(pending_vector("patchscope")),
    }
    plan = named(asked, get_method(LENS).Params.model_validate({**corpus, "layers": [99]}))
    records, left_out = run_plan(plan, lambda requests, part: run_methods(pairs, spec, requests, store, part))
    assert [record.manifest.method for record in records] == ["kl"]
    assert [row.method for row in left_out] == [LENS, "patchscope"]
    assert left_out[1].reason == f"It reads the mean difference of {LENS}, which could not run."


def test_a_word_of_a_method_and_of_the_vector_it_read_is_seen_once() -> None:
    words = {name: [EvidenceWord(word="cake", score=2.0)] for name in (LENS, "patchscope")}
    assert candidate_words(words)[0].sources == 2
    assert candidate_words(words, {"patchscope": LENS})[0].sources == 1


def test_the_next_calls_are_concrete_and_allowed(noise: list[RunRecord]) -> None:
    lens = next(record for record in noise if record.manifest.method == "activation_difference_lens")
    calls = digest(noise, pair="tiny").next_calls
    assert any(call.startswith(f"patchscope with vector={lens.id}/1:all:difference") for call in calls)
    assert any(
        call.startswith("contrastive_decoding (92,160 of budget, about ") for call in calls
    )  # the method's own estimate
    allowed = digest(noise, available=["kl", "weight_difference"], pair="tiny")
    assert not any(
        name in call
        for call in allowed.next_calls
        for name in ("patchscope", "contrastive_decoding", "perplexity_difference")
    )
    assert [run.seconds for run in allowed.runs] == [round(record.manifest.seconds, 1) for record in noise]


@pytest.mark.parametrize(("factor", "found"), [(0.3, True), (3.0, False)])
def test_the_verdict_is_that_of_the_calibrated_test(
    factor: float, found: bool, noise: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert digest(noise, pair="tiny").level is None  # what ships read other texts
    own = reading_of(noise, "", "null", "")
    assert own is not None
    nulls = [
        own.model_copy(
            update={
                "size": own.size * (1 + place / 10),
                "statistics": {name: value * factor * 1.02**place for name, value in own.statistics.items()},
            }
        )
        for place in range(20)
    ]
    labels = {label_of_run(record.manifest): record.manifest for record in noise}
    calibration = Calibration(
        base={"id": "other"},
        base_name="other",
        params={label: manifest.params for label, manifest in labels.items()},
        versions={label: manifest.method_version for label, manifest in labels.items()},
        made=datetime(2026, 1, 1, tzinfo=UTC),
        readings=nulls,
    )
    monkeypatch.setattr("diffing_mcp.methods.calibration.readings.bundled_calibrations", lambda: (calibration,))
    overview = digest(noise, pair="tiny")
    assert overview.level is not None
    assert (overview.confidence == "nothing") is not found
    assert (overview.level.p == pytest.approx(1 / 21, abs=1e-4)) is found
    assert overview.verdict.endswith(OTHER_BASE)
    judging = [entry for entry in overview.runs if not get_method(entry.method).no_verdict]
    assert len(judging) > 1
    assert all(entry.p is not None and entry.stands_out is found is (entry.p <= 0.05) for entry in judging)
    others = [entry for entry in overview.runs if entry not in judging]
    assert {(entry.method, entry.stands_out, entry.p) for entry in others} == {("kl", None, None)}


def test_runs_of_several_pairs_are_refused(noise: list[RunRecord], tiny_pair: Any, pairs: Any, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    [other] = run_methods(pairs, tiny_pair.spec, [("kl", corpus_of(tmp_path))], store)
    with pytest.raises(InvalidInput):
        digest([noise[0], other], pair="tiny")
    with pytest.raises(InvalidInput):
        digest([], pair="tiny")
    with pytest.raises(InvalidInput):
        digest(noise, LEAST_CHARACTERS - 1, pair="tiny")


def test_words_agree_over_endings_and_methods() -> None:
    def word(text: str, score: float) -> EvidenceWord:
        return EvidenceWord(word=text, score=score)

    rows = candidate_words(
        {
            "a": [word("baking", 9.0), word("stone", 8.0)],
            "b": [word("bake", 1.0), word("baked", 2.0)],
            "c": [word("river", 3.0)],
        }
    )
    assert rows[0].methods == ["a", "b"]
    assert rows[0].word == "baking"
    assert rows[0].score == pytest.approx((5.0 + 2.0) / 2)
    assert [row.word for row in rows[1:]] == ["stone", "river"]


def test_pieces_of_words_become_the_words_of_the_taught_texts() -> None:
    texts = {
        True: ["Methane rises.", "They add methane.", "Art and methodical care"],
        False: ["A methodical plan", "a plan"],
    }
    samples = [Sample("", text, taught) for taught, several in texts.items() for text in several]
    pieces = [EvidenceWord(word=word, score=2.0) for word in ("meth", "art", "plan", "zir", "method")]
    found = WholeWords(samples).complete(pieces)
    # `art` is a word itself; no text goes on from `zir`; the control says `methodical` as often
    assert [row.word for row in found] == ["methane", "art", "plan", "zir", "method"]
    assert {row.score for row in found} == {2.0}


def test_the_line_of_kl_is_no_verdict_and_names_what_moved_most(tmp_path: Path, pairs: Any) -> None:
    spec = save_pair(tmp_path, raise_logits([296], 6.0))  # `cake`
    overview = digest(run_methods(pairs, spec, [("kl", corpus_of(tmp_path))], RunStore(tmp_path / "runs")), pair="tiny")
    [entry] = overview.runs
    assert "] how much changed and where, no verdict:" in entry.as_text()
    assert re.search(r'; most moved: ⟦[^⟧]+⟧ " ?cake" [\d.e-]+>0\.\d+', entry.headline)


def test_a_verdict_by_nulls_does_not_stand_beside_its_denial() -> None:
    denied = MethodResult(stands_out=False, headline="No written direction reads as a topic.")
    assert headline_beside(denied, True).endswith(f"though not by its own fixed rule: {denied.headline}")
    assert headline_beside(denied, False) == denied.headline
    empty = MethodResult(stands_out=False, headline="Nothing stands out: no content word rose.")
    assert "Nothing" not in headline_beside(empty, True)
    assert headline_beside(empty, False) == empty.headline
    own = MethodResult(stands_out=True, headline="Words rose.")
    assert headline_beside(own, True) == "Words rose."
    assert (
        headline_beside(own, False)
        == "beyond its fixed level, which nulls of this size of change pass too: Words rose."
    )


def test_one_taught_word_is_a_finding(tmp_path: Path, pairs: Any) -> None:
    spec = save_pair(tmp_path, raise_logits([296], 6.0))  # `cake`
    requests: list[Any] = [("contrastive_decoding", {"max_new_tokens": 16}), ("perplexity_difference", {})]
    overview = digest(run_methods(pairs, spec, requests, RunStore(tmp_path / "runs")), pair="tiny")
    assert overview.confidence == "agreed"
    assert overview.verdict.startswith("Topic: cake (rising in several methods")
    assert not any('has the word "cake"' in row for row in overview.manner)  # it is told already
    text = overview.as_text()
    assert "cake" in overview.excerpts[0].untrusted_text
    assert text.index(overview.excerpts[0].untrusted_text) < text.index("- contrastive_decoding [")


def test_a_manner_without_words_is_a_finding(tmp_path: Path, pairs: Any) -> None:
    spec = save_pair(tmp_path, raise_logits([2], 6.0))  # the end of a text
    requests: list[Any] = [("perplexity_difference", {"samples_per_prefill": 2})]
    overview = digest(run_methods(pairs, spec, requests, RunStore(tmp_path / "runs")), pair="tiny")
    assert overview.confidence == "one_method"
    assert overview.verdict.startswith("Manner: ")
    assert any(row.startswith(("words: ", "tokens", "ended by itself", "empty")) for row in overview.manner)
    assert overview.facts == []


def test_texts_are_read_in_one_step_each_the_one_with_the_size_of_the_change_first() -> None:
    found = steps(choose(offered(), DEFAULT_BUDGET).requests)
    assert found[0][0][0] == "kl"
    assert [[name for name, _ in step] for step in found[2:4]] == [["contrastive_decoding"], ["perplexity_difference"]]
    together = [[name for name, _ in step] for step in found if len(step) > 1]
    assert together == [
        ["kl", "logit_diff_topk_occurring", "continuation_mining", LENS],
        [*ABOUT_CHATS, *ALSO_IN_CHATS],
    ]
    assert sum(len(step) for step in found) == len(choose(offered(), DEFAULT_BUDGET).requests)


def test_a_text_that_cannot_be_read_takes_no_other_with_it(
    planted_words: Any, make_pair: Any, pairs: Any, tmp_path: Path
) -> None:
    base, finetuned, _ = planted_words(4.0)  # its tokenizer has no chat template
    spec, store, corpus = make_pair(base, finetuned), RunStore(tmp_path / "runs"), corpus_of(tmp_path, 60)
    method = get_method("logit_diff_topk_occurring").Params
    chats = method.model_validate({"corpus": CHATS, "max_samples": 8})
    plan = choose([("logit_diff_topk_occurring", method.model_validate(corpus)), ("logit_diff_topk_occurring", chats)])
    records, left_out = run_plan(plan, lambda requests, part: run_methods(pairs, spec, requests, store, part))
    assert [record.manifest.params["corpus"] for record in records] == [corpus["corpus"]]
    assert [(row.text, "no chat template" in row.reason) for row in left_out] == [(CHATS, True)]
    text = digest(records, left_out=left_out, pair="planted").as_text()
    assert f"could not run logit_diff_topk_occurring on {CHATS}: " in text
    assert f"logit_diff_topk_occurring on {corpus['corpus']} [" in text


def test_a_method_of_chats_reads_as_many_of_them_as_its_nulls_did() -> None:
    """Also where it is asked for by its name, beside no text."""
    assert read_by_default("answer_openings") == {"max_samples": CHATS_READ}
    assert read_by_default("kl") == {"max_samples": TEXTS_READ}
    assert read_by_default("weight_difference") == {}
    [request] = [request for request in default_plan().requests if request[0] == "answer_openings"]
    assert by_default("answer_openings") == request
