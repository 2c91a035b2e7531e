"""The corpus pass against plain forward passes, text by text."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from diffing_mcp.core.errors import Cancelled, OutOfRoom
from diffing_mcp.core.settings import settings
from diffing_mcp.model_pairs.forward import ForwardOutput
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import SIDES, Side
from diffing_mcp.preprocessing import corpus_pass, spool
from diffing_mcp.preprocessing.corpora import CorpusParams, load_corpus
from diffing_mcp.preprocessing.corpus_pass import Accumulator, LogitChunk, PairedBatch, plan_batches, run_corpus_pass
from diffing_mcp.preprocessing.tokenize import TokenizedCorpus, tokenize
from tests.word_pairs import save_pair, write_texts


class Everything(Accumulator):
    """Keeps all logits and hidden states, by sample and position."""

    needs_logits = True
    layers = (0, 2)

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
        self.hidden: dict[tuple[int, int], torch.Tensor] = {}
        self.next: dict[tuple[int, int], tuple[int, int]] = {}

    def update_logits(self, chunk: LogitChunk) -> None:
        for row, place in enumerate(zip(chunk.sample_indices.tolist(), chunk.positions.tolist(), strict=True)):
            assert place not in self.rows
            names = (
                "base_logits",
                "finetuned_logits",
                "difference",
                "base_log_probs",
                "finetuned_log_probs",
                "base_probs",
                "finetuned_probs",
                "log_ratio",
            )
            self.rows[place] = {name: getattr(chunk, name)[row].clone() for name in names}
            self.next[place] = (int(chunk.token_ids[row]), int(chunk.next_ids[row]))

    def update(self, batch: PairedBatch) -> None:
        for row, sample in enumerate(batch.sample_indices.tolist()):
            for column, position in enumerate(batch.positions[row].tolist()):
                if position >= 0:
                    sides = (batch.base_hidden, batch.finetuned_hidden)
                    self.hidden[sample, position] = torch.stack(
                        [side[layer][row, column] for side in sides for layer in self.layers]
                    ).clone()


def change(model: LlamaForCausalLM) -> None:
    model.lm_head.weight[5] += 0.2


def _present(logits: torch.Tensor | None) -> torch.Tensor:
    assert logits is not None
    return logits


def check(pair: LoadedPair, tokens: TokenizedCorpus, seen: Everything) -> None:
    assert len(seen.rows) == len(seen.hidden) == tokens.tokens
    expected: dict[Side, list[ForwardOutput]] = {}
    for side in SIDES:
        with pair.side_loaded(side):  # a sequential pair would load a model for every text
            expected[side] = [
                pair.forward(side, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long), layers=(0, 2))
                for ids in tokens.ids
            ]
    for sample, (ids, start) in enumerate(zip(tokens.ids, tokens.content_start, strict=True)):
        outputs = {side: expected[side][sample] for side in SIDES}
        for index in range(start, len(ids)):
            place = (sample, index - start)
            row = seen.rows[place]
            logits = {side: _present(outputs[side].logits)[0, index] for side in SIDES}
            for side in outputs:
                torch.testing.assert_close(row[f"{side}_logits"], logits[side], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(row[f"{side}_log_probs"], logits[side].log_softmax(0), atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(row[f"{side}_probs"], logits[side].softmax(0), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(row["difference"], logits["finetuned"] - logits["base"], atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(
                row["log_ratio"],
                logits["finetuned"].log_softmax(0) - logits["base"].log_softmax(0),
                atol=2e-4,
                rtol=1e-4,
            )
            hidden = torch.stack([outputs[side].hidden[layer][0, index] for side in outputs for layer in (0, 2)])
            torch.testing.assert_close(seen.hidden[place], hidden, atol=1e-4, rtol=1e-4)
            assert seen.next[place] == (ids[index], ids[index + 1] if index + 1 < len(ids) else -1)


@pytest.fixture
def corpus_file(tmp_path: Path) -> str:
    return str(write_texts(tmp_path / "texts.jsonl", 40, 12))


@pytest.mark.parametrize("bos", [True, False])
def test_every_position_once_with_the_right_values(
    tmp_path: Path, corpus_file: str, bos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_pass, "CHUNK_BYTES_CPU", 7 * 4 * 297)  # seven rows: chunks cut through texts
    params = CorpusParams(corpus=corpus_file, max_tokens=9)
    with ModelPairs().use(save_pair(tmp_path, change, bos=bos)) as pair:
        tokens = tokenize(load_corpus(params), pair, params)
        seen = Everything()
        reported: list[tuple[float, float | None]] = []
        statistics = run_corpus_pass(
            pair, tokens, [seen], lambda done, total=None, message="": reported.append((done, total))
        )
        check(pair, tokens, seen)
    assert statistics.tokens == tokens.tokens
    assert statistics.read_tokens >= tokens.tokens
    assert statistics.seconds >= statistics.forward_seconds > 0
    assert reported[-1][0] == reported[-1][1] == 2 * statistics.read_tokens


def test_a_sequential_pair_gives_the_same(tmp_path: Path, corpus_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFING_BATCH_TOKENS", "64")
    monkeypatch.setenv("DIFFING_CACHE_FOLDER", str(tmp_path / "cache"))
    settings.cache_clear()
    params = CorpusParams(corpus=corpus_file, max_tokens=9)
    spec = save_pair(tmp_path, change)
    size = (tmp_path / "base" / "model.safetensors").stat().st_size
    with ModelPairs(memory_limit=int(1.5 * size)).use(spec) as pair:
        assert pair.sequential
        tokens = tokenize(load_corpus(params), pair, params)
        monkeypatch.setattr(spool, "SPOOL_BYTES", 3 * 64 * 4 * (297 + 2 * 32))  # blocks of about three batches
        seen = Everything()
        statistics = run_corpus_pass(pair, tokens, [seen])
        check(pair, tokens, seen)
        assert statistics.spooled_bytes > 0
        assert statistics.batches > 4
        monkeypatch.setattr(spool, "SPOOL_BYTES", 1000)
        with pytest.raises(OutOfRoom, match="disk"):
            run_corpus_pass(pair, tokens, [Everything()])
    assert not list((tmp_path / "cache").iterdir())
    settings.cache_clear()


def test_identical_sides_differ_by_exactly_zero(tmp_path: Path, corpus_file: str) -> None:
    params = CorpusParams(corpus=corpus_file)
    with ModelPairs().use(save_pair(tmp_path, None, dtype=torch.bfloat16)) as pair:
        tokens = tokenize(load_corpus(params), pair, params)
        seen = Everything()
        run_corpus_pass(pair, tokens, [seen])
    for row in seen.rows.values():
        assert not row["difference"].any()
        assert not row["log_ratio"].any()


def test_cancelled_between_batches(tmp_path: Path, corpus_file: str) -> None:
    def stop(done: float, total: float | None = None, message: str = "") -> None:
        if done > 0:
            raise Cancelled("stopped")

    params = CorpusParams(corpus=corpus_file)
    with ModelPairs().use(save_pair(tmp_path, change)) as pair:
        tokens = tokenize(load_corpus(params), pair, params)
        with pytest.raises(Cancelled):
            run_corpus_pass(pair, tokens, [Everything()], stop)


def test_progress_is_told_between_the_chunks_of_a_batch(
    tmp_path: Path, corpus_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question waits for a chunk, not for a batch, which takes ten seconds on a slow machine."""

    class Chunks(Accumulator):
        needs_logits = True

        def update_logits(self, chunk: LogitChunk) -> None:
            events.append("chunk")

    events: list[str] = []
    params = CorpusParams(corpus=corpus_file)
    with ModelPairs().use(save_pair(tmp_path, change)) as pair:
        monkeypatch.setattr(corpus_pass, "CHUNK_BYTES_CPU", 4 * 4 * pair.vocab_size)
        tokens = tokenize(load_corpus(params), pair, params)
        run_corpus_pass(pair, tokens, [Chunks()], lambda *told: events.append("progress"))
    assert events.count("chunk") > 4
    assert all(after == "progress" for event, after in pairwise(events) if event == "chunk")


def test_without_logits_only_hidden_states_are_made(tmp_path: Path, corpus_file: str) -> None:
    class Shallow(Accumulator):
        layers = (1,)
        batches = 0

        def update(self, batch: PairedBatch) -> None:
            assert batch.base_logits is None
            assert set(batch.base_hidden) == set(batch.finetuned_hidden) == {1}
            self.batches += 1

    params = CorpusParams(corpus=corpus_file)
    with ModelPairs().use(save_pair(tmp_path, change)) as pair:
        shallow = Shallow()
        statistics = run_corpus_pass(pair, tokenize(load_corpus(params), pair, params), [shallow])
    assert shallow.batches == statistics.batches > 0


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 300))
def test_batches_hold_every_sample_once_within_the_limit(lengths: list[int], limit: int) -> None:
    plan = plan_batches(lengths, limit)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= limit for batch in plan)
    firsts = [lengths[batch[0]] for batch in plan]
    assert firsts == sorted(firsts, reverse=True)


def test_logits_that_memory_does_not_hold_are_refused_before_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = CorpusParams(corpus=str(write_texts(tmp_path / "texts.jsonl", 6, 12)), max_samples=6)
    with ModelPairs().use(save_pair(tmp_path, change)) as pair:
        tokens = tokenize(load_corpus(params), pair, params)
        monkeypatch.setattr(corpus_pass, "free_bytes", lambda devices: 1000)
        with pytest.raises(OutOfRoom, match=r"logits of both models.*max_tokens"):
            run_corpus_pass(pair, tokens, [Everything()])
        assert pair.forwards.passes == 0
