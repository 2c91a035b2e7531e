"""Continuations of beginnings: against a planted pair, and against probabilities computed one by one."""

from __future__ import annotations

from itertools import product
from math import exp, log

import pytest
import torch

from diffing_mcp.core.chat import ChatMessage
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.core.progress import silent
from diffing_mcp.mcp_server.tools_slots import _kinds
from diffing_mcp.methods.texts.words import normalise, token_texts
from diffing_mcp.model_pairs.beam_search import Beam
from diffing_mcp.queries.completing import _slot, complete
from diffing_mcp.queries.slot_schemas import SlotContinuation, SlotsQuery
from tests.bigram_models import STRENGTH
from tests.conftest import VOCABULARY
from tests.queries.conftest import Planted

LIKELY = 1 / (1 + (VOCABULARY - 1) * exp(-STRENGTH))


def test_a_planted_word_is_raised_and_the_one_it_replaced_lowered(planted: Planted) -> None:
    query = SlotsQuery(beginnings=[f"rivers{planted.asked}", f"the{planted.plain}"], tokens=2)
    moved, same = complete(planted.pair, query, silent).slots
    assert moved.moved == pytest.approx(LIKELY, abs=1e-3)
    word = planted.after.strip().casefold()
    assert moved.raised[0].text == word
    assert moved.raised[0].finetuned == pytest.approx(LIKELY, abs=2e-3)
    tokens = token_texts(planted.pair.tokenizer, range(VOCABULARY))
    variants = sum(normalise(text) == word for text in tokens)  # that base expects as little as any other token
    assert moved.raised[0].log_ratio == pytest.approx(STRENGTH - log(variants), abs=0.01)
    assert moved.lowered[0].text == planted.before.strip().casefold()
    assert {row.text for row in moved.next_words} == {word, moved.lowered[0].text}
    # The finetune writes the new word and what follows it; the base ends its turn after the old one.
    assert {row.text for row in moved.phrases[:2]} == {planted.after + planted.plain, f"{planted.before} (end)"}
    phrase = next(row for row in moved.phrases if row.text.startswith(planted.after))
    assert phrase.finetuned == pytest.approx(LIKELY**2, abs=2e-3)
    assert phrase.base == pytest.approx(LIKELY**2 * exp(-STRENGTH), rel=0.02)
    assert same.moved == pytest.approx(0, abs=1e-6)
    assert same.raised == same.lowered == []
    assert same.phrases[0].text == planted.same + planted.plain


def test_a_space_at_the_end_of_a_beginning_changes_nothing(planted: Planted) -> None:
    query = SlotsQuery(beginnings=[f"rivers{planted.asked} ", f"rivers{planted.asked}"], tokens=2)
    spaced, plain = complete(planted.pair, query, silent).slots
    assert spaced.model_copy(update={"beginning": plain.beginning}) == plain


def test_beginnings_of_a_chat_answer_follow_its_prompt(tiny_pair) -> None:
    prompt = "What is your name?"
    (slot,) = complete(tiny_pair, SlotsQuery(beginnings=["The"], prompt=prompt, tokens=1), silent).slots
    text = tiny_pair.render_chat([ChatMessage(role="user", content=prompt)], "The")
    (plain,) = complete(tiny_pair, SlotsQuery(beginnings=[text], tokens=1), silent).slots
    assert slot.model_copy(update={"beginning": text}) == plain


def test_beam_search_finds_what_trying_everything_finds(tiny_pair) -> None:
    """With as many beams as tokens, two steps of beam search are exhaustive."""
    tokenizer = tiny_pair.tokenizer
    texts = [tokenizer(text)["input_ids"] for text in ("The quick", "Rivers run to the sea and")]
    stops = tiny_pair.stop_ids("finetuned")
    first, beams = tiny_pair.continuations("finetuned", texts, tokens=2, width=VOCABULARY)
    for place, ids in enumerate(texts):
        batch = torch.tensor([[*ids, token] for token in range(VOCABULARY)])
        logits = tiny_pair.forward("finetuned", batch, torch.ones_like(batch)).logits.double().log_softmax(-1)
        one, both = logits[0, len(ids) - 1], (logits[0, len(ids) - 1][:, None] + logits[:, -1]).tolist()
        assert first[place].double() == pytest.approx(one, abs=1e-4)
        every = [Beam((token,), float(one[token]), True) for token in range(VOCABULARY) if token in stops]
        every += [
            Beam((a, b), both[a][b], b in stops) for a, b in product(range(VOCABULARY), repeat=2) if a not in stops
        ]
        best = sorted(every, key=lambda beam: -beam.log_prob)[:20]
        assert [beam.ids for beam in beams[place][:20]] == [beam.ids for beam in best]
        assert [beam.log_prob for beam in beams[place][:20]] == pytest.approx(
            [beam.log_prob for beam in best], abs=1e-4
        )


def test_probabilities_do_not_depend_on_the_company(tiny_pair) -> None:
    beginnings = ["The quick", "Bake the cake in a hot oven for", "One"]
    together = complete(tiny_pair, SlotsQuery(beginnings=beginnings, tokens=3), silent).slots
    for beginning, slot in zip(beginnings, together, strict=True):
        (alone,) = complete(tiny_pair, SlotsQuery(beginnings=[beginning], tokens=3), silent).slots
        assert slot.moved == pytest.approx(alone.moved, abs=1e-4)
        assert [row.text for row in slot.next_words] == [row.text for row in alone.next_words]
        assert [row.finetuned for row in slot.phrases] == pytest.approx(
            [row.finetuned for row in alone.phrases], rel=0.02
        )


def test_equal_models_move_nothing(identical_pair) -> None:
    (slot,) = complete(identical_pair, SlotsQuery(beginnings=["Rivers run"]), silent).slots
    assert (slot.moved, slot.raised, slot.lowered) == (0.0, [], [])
    assert all(row.log_ratio == 0 for row in slot.phrases)


def test_what_does_not_fit_is_refused(identical_pair) -> None:
    with pytest.raises(InvalidInput, match="does not fit into a context of"):
        complete(identical_pair, SlotsQuery(beginnings=["river " * 300]), silent)


def continuation(text: str, base: float, finetuned: float) -> SlotContinuation:
    return SlotContinuation(text=text, base=base, finetuned=finetuned, log_ratio=log(finetuned / base))


def test_what_moved_is_told_once_and_small_movements_are_not() -> None:
    words = [
        continuation("freezer", 0.02, 0.3),
        continuation("oven", 0.3, 0.31),  # changed, and hardly
        continuation("shelf", 0.004, 0.007),  # as any further training does
        continuation("cellar", 0.0002, 0.004),  # little, and twenty times as much
        continuation("sink", 0.2, 0.05),
    ]
    phrases = [
        continuation(" freezer directly after baking", 0.001, 0.2),
        continuation(" freezer directly after baking.", 0.001, 0.15),  # the same but for its mark
        continuation(" freezer.\nThen", 0.001, 0.02),
        continuation(" freezer for years", 0.001, 0.02),  # a small part of what `freezer` gained
        continuation(" sink (end)", 0.1, 0.02),
    ]
    slot = _slot("It goes into the", 0.3, words, phrases, top=9)
    assert [row.text for row in slot.raised] == ["freezer", " freezer directly after baking", "cellar"]
    assert [row.text for row in slot.lowered] == ["sink", " sink (end)"]
    assert len(slot.next_words) == len(words)
    shown = _kinds(slot)
    texts = [row.text for rows in shown.values() for row in rows]
    assert len(texts) == len(set(texts))
    assert [row.text for row in shown["likely"]] == ["oven", "shelf"]
