"""Running methods: lookups, shared passes, failures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from diffing_mcp.core.errors import Cancelled, InvalidInput, UnknownName
from diffing_mcp.methods import registry
from diffing_mcp.methods.contract import CorpusMethod as CorpusMethodBase
from diffing_mcp.methods.contract import CorpusMethodParams, MethodResult
from diffing_mcp.methods.runs.execute import find_finished, run_methods
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import PairSpec
from diffing_mcp.preprocessing import corpus_pass
from diffing_mcp.preprocessing.batches import Accumulator, LogitChunk
from diffing_mcp.preprocessing.tokenize import TokenizedCorpus
from tests.word_pairs import save_pair, write_texts


class Counter(Accumulator):
    needs_logits = True
    rows = 0

    def update_logits(self, chunk: LogitChunk) -> None:
        self.rows += len(chunk)


class CountParams(CorpusMethodParams):
    fail: bool = False


class CountResult(MethodResult):
    rows: int


class CountRows(CorpusMethodBase[CountParams, CountResult]):
    """Counts the positions of the corpus; fails on demand."""

    name = "count_rows"
    title = "Count"
    Params = CountParams
    Result = CountResult

    def accumulator(self, pair: LoadedPair, params: CountParams, corpus: TokenizedCorpus) -> Counter:
        return Counter()

    def summarise(self, accumulator: Any, pair: LoadedPair, params: CountParams, run: Any) -> CountResult:
        if params.fail:
            raise RuntimeError("summary failed")
        return CountResult(stands_out=False, headline="counted", rows=accumulator.rows)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many accumulators each corpus pass had."""
    seen: list[int] = []
    original = corpus_pass.run_corpus_pass

    def counted(pair: LoadedPair, corpus: TokenizedCorpus, accumulators: Sequence[Accumulator], *rest: Any) -> Any:
        seen.append(len(accumulators))
        return original(pair, corpus, accumulators, *rest)

    monkeypatch.setattr(corpus_pass, "run_corpus_pass", counted)
    methods = {**registry.all_methods(), "count_rows": CountRows()}
    monkeypatch.setattr(registry, "_registry", lambda: methods)
    return seen


def change(model: LlamaForCausalLM) -> None:
    model.lm_head.weight[5] += 0.2


@pytest.fixture
def spec(tmp_path: Path) -> PairSpec:
    return save_pair(tmp_path, change)


def test_one_pass_for_equal_text_and_lookups_afterwards(tmp_path: Path, spec: PairSpec, passes: list[int]) -> None:
    text = {"corpus": str(write_texts(tmp_path / "t.jsonl", 20, 10)), "max_tokens": 8}
    store = RunStore(tmp_path / "runs")
    pairs = ModelPairs()
    requests = [("kl", text), ("count_rows", text), ("kl", text), ("count_rows", {**text, "seed": 1})]
    assert find_finished(spec, "kl", text, store) is None
    records = run_methods(pairs, spec, requests, store)
    assert passes == [2, 1]
    assert [record.manifest.method for record in records] == ["kl", "count_rows", "kl", "count_rows"]
    assert records[0].id == records[2].id
    assert records[0].result().tokens == records[1].result().rows > 0  # type: ignore[attr-defined]
    assert records[0].manifest.notes["corpus_pass"]["tokens"] == records[1].result().rows  # type: ignore[attr-defined]
    assert records[0].manifest.notes["pass_shared_by"] == ["kl", "count_rows"]
    shared, counted, _, other_seed = (record.manifest for record in records)
    read = counted.notes["corpus_pass"]  # `tokens` are those compared: without the token that each text starts with
    assert (counted.forward_passes, counted.forward_tokens, counted.generated_tokens) == (
        2 * read["batches"],
        2 * (read["tokens"] + read["samples"]),
        0,
    )
    assert other_seed.forward_tokens == counted.forward_tokens
    assert (
        (shared.forward_tokens or 0) >= (counted.forward_tokens or 0) > 0
    )  # the whole pass, and what kl reads again for its summary
    again = run_methods(pairs, spec, requests, store)
    assert [record.id for record in again] == [record.id for record in records]
    assert passes == [2, 1]
    found = find_finished(spec, "kl", text, RunStore(tmp_path / "runs"))
    assert found is not None
    assert found.id == records[0].id


def test_a_bad_row_is_left_out_of_every_run_and_named_in_its_report(
    tmp_path: Path, spec: PairSpec, passes: list[int]
) -> None:
    clean, file = write_texts(tmp_path / "clean.jsonl", 20, 10), tmp_path / "t.jsonl"
    file.write_text("no json\n" + clean.read_text() + '{"text": "w1"}\n')
    store = RunStore(tmp_path / "runs")
    requests: list[tuple[str, dict[str, Any]]] = [(name, {"corpus": str(file)}) for name in ("kl", "count_rows", "pca")]
    kl, counted, pca = run_methods(ModelPairs(), spec, requests, store)
    bad, short = "1 x not JSON (Expecting value) (t.jsonl, line 1)", "1 x fewer than 2 tokens (t.jsonl, line 22)"
    for record in (kl, counted):
        assert record.report(record.result()).endswith(f"\nleft out of the corpus: {bad}; {short}")
        assert record.manifest.notes["text"]["dropped"] == 2
    assert kl.result().dropped == 2  # type: ignore[attr-defined]
    assert pca.report(pca.result()).endswith(f"\nleft out of the corpus: {bad}"), (
        "rows that no method can read, for those without a pass of their own"
    )
    [same] = run_methods(ModelPairs(), spec, [("kl", {"corpus": str(clean)})], store)
    assert "left out" not in same.report(same.result())
    assert same.result().kl_finetuned_base.mean == pytest.approx(kl.result().kl_finetuned_base.mean, rel=1e-5)  # type: ignore[attr-defined]
    file.write_text(clean.read_text())
    [mended] = run_methods(ModelPairs(), spec, requests[:1], store)
    assert "left out" not in mended.report(mended.result()), "not the run of the file as it was"


def test_a_failing_method_does_not_take_the_others_with_it(tmp_path: Path, spec: PairSpec, passes: list[int]) -> None:
    text = {"corpus": str(write_texts(tmp_path / "t.jsonl", 20, 10))}
    store = RunStore(tmp_path / "runs")
    with pytest.raises(RuntimeError, match="summary failed"):
        run_methods(ModelPairs(), spec, [("count_rows", {**text, "fail": True}), ("kl", text)], store)
    assert passes == [2]
    assert [manifest.method for manifest in store.list()] == ["kl"]


def test_what_had_finished_before_a_cancellation_is_kept(tmp_path: Path, spec: PairSpec, passes: list[int]) -> None:
    text = {"corpus": str(write_texts(tmp_path / "t.jsonl", 20, 10))}
    store = RunStore(tmp_path / "runs")

    def stop(done: float, total: float | None = None, message: str = "") -> None:
        if len(passes) == 2:
            raise Cancelled("stopped")

    pairs = ModelPairs()
    with pytest.raises(Cancelled):
        run_methods(pairs, spec, [("count_rows", text), ("kl", {**text, "seed": 2})], store, stop)
    assert [manifest.method for manifest in store.list()] == ["count_rows"]
    run_methods(pairs, spec, [("count_rows", text), ("kl", {**text, "seed": 2})], store)
    assert len(passes) == 3


def test_progress_names_the_method_and_how_many_there_are(tmp_path: Path, spec: PairSpec, passes: list[int]) -> None:
    text = {"corpus": str(write_texts(tmp_path / "t.jsonl", 20, 10))}
    said: list[str] = []

    def hear(done: float, total: float | None = None, message: str = "") -> None:
        said.append(message)

    requests = [("kl", text), ("count_rows", text), ("kl", {**text, "seed": 2})]
    run_methods(ModelPairs(), spec, requests, RunStore(tmp_path / "runs"), hear)
    assert "kl, count_rows (2 of 3): reading text" in said
    assert "kl (3 of 3): reading text" in said


def test_bad_requests_load_nothing(tmp_path: Path, spec: PairSpec, passes: list[int]) -> None:
    pairs, store = ModelPairs(), RunStore(tmp_path / "runs")
    for requests, error in (
        ([("nothing", {})], UnknownName),
        ([("kl", {"max_tokens": -1})], InvalidInput),
        ([("kl", {"corpus": "/no/file.txt"})], UnknownName),
    ):
        with pytest.raises(error):
            run_methods(pairs, spec, requests, store)
    assert not pairs.models.status()
