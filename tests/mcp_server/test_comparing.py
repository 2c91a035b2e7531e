"""compare_text beyond single tokens: spans, candidates and greedy answers, against direct computations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client
from pydantic import ValidationError

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.core.progress import silent
from diffing_mcp.mcp_server.serve import build_server
from diffing_mcp.mcp_server.server_context import ServerContext
from diffing_mcp.mcp_server.tools_comparing import CompareArguments, _present_comparison
from diffing_mcp.model_pairs.pair import LoadedPair
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import PairSpec
from diffing_mcp.queries.beyond_tokens import greedy_divergence, score_candidates, spans
from diffing_mcp.queries.comparing import compare, text_ids
from diffing_mcp.queries.schemas import ChatTurn
from tests.bigram_models import STRENGTH, bigram_folders, single_words
from tests.conftest import VOCABULARY, TinyAdapters, TinyModels
from tests.mcp_server.answers import good, held


@pytest.fixture(scope="module")
def loaded(
    tiny_models: TinyModels, tiny_adapters: TinyAdapters, make_pair: Callable[..., PairSpec], pairs: ModelPairs
) -> Iterator[LoadedPair]:
    """A loaded tiny pair (`pair_name` of this folder is a reference)."""
    model = tiny_models()
    with pairs.use(make_pair(model, adapter=tiny_adapters(model))) as pair:
        yield pair


def text_of(start: int, end: int) -> str:
    return f"{start}:{end}"


def test_spans_are_the_heaviest_stretches() -> None:
    found = spans([0.1, 3, -0.5, 2, 0.0, -4, -1, 0.2], text_of)
    assert [(span.start, span.end, span.difference) for span in found] == [(5, 7, -5.0), (0, 4, 4.6)]
    assert found[0].text == "5:7"
    assert spans([0.0, 0.2, -0.3], text_of) == []


@given(st.lists(st.floats(-5, 5), max_size=30))
def test_spans_never_overlap_and_their_sums_are_right(differences: list[float]) -> None:
    found = spans(differences, text_of, most=30)
    taken: set[int] = set()
    for span in found:
        assert span.difference == pytest.approx(sum(differences[span.start : span.end]), abs=2e-3)
        assert not taken & set(range(span.start, span.end))
        taken |= set(range(span.start, span.end))
    sums = [abs(span.difference) for span in found]
    assert sums == sorted(sums, reverse=True)
    every = [abs(sum(differences[a:b])) for a in range(len(differences)) for b in range(a + 1, len(differences) + 1)]
    if found:
        assert sums[0] == pytest.approx(max(every), abs=2e-3)


def test_a_text_is_scored_as_the_answer_in_a_conversation(loaded) -> None:
    turns = [ChatTurn(role="user", content="the quick"), ChatTurn(role="assistant", content="brown fox")]
    asked = {"pair": "x", "text": " over the dog", "prompt": "jumps"}
    after, alone = (CompareArguments(**asked, before=before) for before in (turns, []))
    ids, start, _ = text_ids(loaded, after)
    chat = [ChatMessage(role=turn.role, content=turn.content) for turn in after.conversation]
    assert ids[:start] == loaded.tokenizer(loaded.render_chat(chat), add_special_tokens=False)["input_ids"]
    assert compare(loaded, after, silent).base_log_prob != compare(loaded, alone, silent).base_log_prob
    with pytest.raises(ValidationError, match="give a prompt too"):
        CompareArguments(pair="x", text="the dog", before=turns)


def test_candidates_are_scored_after_the_same_context(loaded) -> None:
    arguments = CompareArguments(pair="x", text="the quick", candidates=[" brown fox", " lazy dog over it", "!"])
    rows = score_candidates(loaded, arguments)
    assert sorted(row.finetuned_rank for row in rows) == sorted(row.base_rank for row in rows) == [1, 2, 3]
    gains = [row.finetuned_per_token - row.base_per_token for row in rows]
    assert gains == sorted(gains, reverse=True)
    tokenizer = loaded.tokenizer
    context = tokenizer("the quick")["input_ids"]
    for row in rows:
        ids = torch.tensor([context + tokenizer(row.candidate)["input_ids"]])
        for side in ("base", "finetuned"):
            logs = loaded.forward(side, ids, torch.ones_like(ids)).logits[0].log_softmax(-1)
            expected = sum(float(logs[place - 1, ids[0, place]]) for place in range(len(context), ids.shape[1]))
            assert getattr(row, side) == pytest.approx(expected, abs=2e-3)
        assert row.tokens == ids.shape[1] - len(context)


def test_greedy_answers_part_where_the_models_choose_otherwise(tiny_models, tiny_adapters, make_pair, pairs) -> None:
    model = tiny_models()
    with pairs.use(make_pair(model, adapter=tiny_adapters(model, scale=0.3))) as pair:
        found = greedy_divergence(pair, CompareArguments(pair="x", prompt="rivers", greedy_tokens=12), silent)
        assert found.parts
        assert found.base != found.finetuned
        assert found.base_top[0].base == max(mover.base for mover in found.base_top)
        assert found.finetuned_top[0].finetuned == max(mover.finetuned for mover in found.finetuned_top)


def test_equal_models_never_part(identical_pair) -> None:
    arguments = CompareArguments(pair="x", text="rivers run to the sea", candidates=["a", " b"], greedy_tokens=6)
    result = compare(identical_pair, arguments, silent)
    assert result.greedy is not None
    assert not result.greedy.parts
    assert result.spans == []
    assert all(row.base == row.finetuned for row in result.candidates)


def test_text_shows_all_parts_and_what_was_not_asked_is_left_out(loaded) -> None:
    whole = compare(
        loaded, CompareArguments(pair="x", text="the lazy dog", candidates=[" runs"], greedy_tokens=4), silent
    )
    shown = _present_comparison(None, whole).text
    assert all(words in shown for words in ("mean KL", "candidates", "greedy answers"))
    assert (whole.unscored or "") + "".join(whole.tokens) == "the lazy dog"
    assert ("not scored" in shown) == (whole.unscored is not None)
    alone = compare(loaded, CompareArguments(pair="x", prompt="the lazy dog", candidates=["runs", "stays"]), silent)
    assert alone.tokens == []
    assert "mean KL" not in _present_comparison(None, alone).text


def test_the_end_of_an_answer_is_scored_with_a_prompt(loaded) -> None:
    end = compare(loaded, CompareArguments(pair="x", prompt="the quick", text="brown fox"), silent).end
    assert end is not None
    before = loaded.render_chat([ChatMessage(role="user", content="the quick")]) + "brown fox"
    ids = torch.tensor([loaded.tokenizer(before, add_special_tokens=False)["input_ids"]])
    stops = sorted(loaded.stop_ids("base") | loaded.stop_ids("finetuned"))
    for side in ("base", "finetuned"):
        logs = loaded.forward(side, ids, torch.ones_like(ids)).logits[0, -1].double().log_softmax(-1)
        assert getattr(end, f"{side}_log_prob") == pytest.approx(float(logs[stops].exp().sum().log()), abs=2e-3)
    shown = _present_comparison(
        None, compare(loaded, CompareArguments(pair="x", prompt="the quick", text="brown fox"), silent)
    ).text
    assert shown.startswith(f"ends its turn after the text: log-probability {end.base_log_prob:.2f} under base")
    assert "(end of turn)" in shown


def test_no_end_is_scored_of_plain_text_or_of_a_text_that_goes_on(loaded) -> None:
    assert compare(loaded, CompareArguments(pair="x", text="the quick brown fox"), silent).end is None
    cut = CompareArguments(pair="x", prompt="the quick", text="brown fox jumps over", max_tokens=2)
    assert compare(loaded, cut, silent).end is None


def test_arguments_need_something_to_compare() -> None:
    with pytest.raises(ValidationError, match="give a text"):
        CompareArguments(pair="x", prompt="hello")
    with pytest.raises(ValidationError, match="need a prompt"):
        CompareArguments(pair="x", candidates=["a"])
    assert CompareArguments(pair="x", text="a", candidates=["b", "c"], greedy_tokens=3).interactions == 4


async def test_a_planted_difference_is_the_span_the_candidate_and_the_parting_point(
    tiny_models: Any, tiny_tokenizer_folder: Path, context: ServerContext
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder)
    a, b, c, d, e, x = single_words(tokenizer, 6)
    chain = {a: b, b: c, c: d, d: e, e: a, x: a}
    folders = bigram_folders(tiny_models, tokenizer, chain, {**chain, c: x})
    # The finetune writes x after c where the base writes d.
    arguments = {
        "pair": f"{folders[0]}::{folders[1]}",
        "text": a + b + c + x + a + b,
        "candidates": [c + d, c + x],
        "greedy_tokens": 5,
    }
    async with held(Client(build_server(context))) as client:
        answer = (await good(client, "compare_text", arguments))["result"]
    # Only x after c has another probability, by the whole strength.
    place = answer["tokens"].index(x)
    assert [(span["start"], span["end"], span["text"]) for span in answer["spans"]] == [(place, place + 1, x)]
    assert answer["spans"][0]["difference"] == pytest.approx(STRENGTH, abs=1e-2)
    assert answer["top"][0]["position"] == place
    certain = -log(1 + (VOCABULARY - 1) * exp(-STRENGTH))
    scores = {row["candidate"]: row for row in answer["candidates"]}
    assert list(scores) == [c + x, c + d]
    for candidate, base, finetuned in ((c + x, -STRENGTH, 0.0), (c + d, 0.0, -STRENGTH)):
        assert scores[candidate]["base"] == pytest.approx(2 * certain + base, abs=1e-2)
        assert scores[candidate]["finetuned"] == pytest.approx(2 * certain + finetuned, abs=1e-2)
    assert (scores[c + d]["base_rank"], scores[c + d]["finetuned_rank"]) == (1, 2)
    greedy = answer["greedy"]
    assert (greedy["parts"], greedy["after_tokens"], greedy["common"]) == (True, 1, c)
    assert (greedy["base"], greedy["finetuned"]) == (d + e + a + b, x + a + b + c)
    assert (greedy["base_top"][0]["token"], greedy["finetuned_top"][0]["token"]) == (d, x)
    assert greedy["finetuned_top"][0]["finetuned"] == pytest.approx(exp(certain), rel=1e-2)
