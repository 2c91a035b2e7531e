"""A conversation with both models as HTML: the turns one below the other, both sides' answers beside each other. Text
of models is shown as it came, never interpreted. Without Gradio, because reports show conversations too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from diffing_mcp.ui.conversation import SIDES, Conversation, How, Sample, Side, Turn
from diffing_mcp.ui.html import chip, div, element, escape, join, number, preformatted

Waiting = Mapping[Side, Markup]
"""What stands in place of a side's answers while they are written."""


def act(label: str, do: str, said: str = "", **what: Any) -> Markup:
    """A button inside HTML that `widgets.acting` listens to. `said` is its name for screen readers where `label` alone
    would be ambiguous.
    """
    data = Markup("").join(Markup(' data-{}="{}"').format(name, value) for name, value in {"do": do, **what}.items())
    spoken = Markup(' aria-label="{}"').format(said) if said else Markup("")
    return Markup('<button type="button" class="d-act"{}{}>{}</button>').format(data, spoken, escape(label))


def conversation_html(conversation: Conversation, waiting: Waiting | None = None, live: bool = True) -> Markup:
    """All turns.

    Args:
        waiting: what stands in place of the answers that are being written.
        live: with the buttons that go on from a turn or an answer; a report has none.
    """
    return join(_turn(conversation, place, waiting or {}, live) for place in range(len(conversation.turns)))


def _turn(conversation: Conversation, place: int, waiting: Waiting, live: bool) -> Markup:
    turn = conversation.turns[place]
    over = all(side in turn.answers for side in SIDES)
    sides = [
        div(element("h3", side.capitalize()), *_answers(turn, place, side, waiting, live), classes=f"d-side {side}")
        for side in SIDES
    ]
    named = f"turn {place + 1}"
    actions = [
        act("Edit", "edit", f"Edit the message of {named}", turn=place),
        act("Ask again", "again", f"Ask {named} again with another seed", turn=place),
        act("Add to the report", "save", f"Add the conversation up to {named} to the report", turn=place),
    ]
    return element(
        "section",
        div(
            element("h3", f"Turn {place + 1}"),
            element("span", _how(turn.how, place), classes="d-remark"),
            *(actions if live and over else []),
            classes="d-line",
        ),
        preformatted(turn.message),
        div(*sides, classes="d-sides"),
        classes="d-turn",
    )


def _answers(turn: Turn, place: int, side: Side, waiting: Waiting, live: bool) -> list[Markup]:
    if side not in turn.answers:
        return [div(waiting.get(side, ""), classes="d-sample")]
    return [_sample(turn, place, side, number, sample, live) for number, sample in enumerate(turn.answers[side])]


def _sample(turn: Turn, place: int, side: Side, which: int, sample: Sample, live: bool) -> Markup:
    notes = ["stopped at the token limit"] if sample.finish == "length" else []
    notes += ["shortened for display"] if sample.cut else []
    several, chosen = len(turn.answers[side]) > 1, turn.chosen.get(side, 0) == which
    named = f"{side} answer {which + 1} of turn {place + 1}"
    what = {"turn": place, "side": side, "sample": which}
    actions = [act("Heat map", "heat", f"Heat map of the {named}", **what)] if sample.model_text.strip() else []
    if several and not chosen:
        actions.append(act("Go on from here", "choose", f"Go on from the {named}", **what))
    text = sample.model_text
    return div(
        preformatted(join([element("u", turn.how.prefill) if turn.how.prefill else "", text]))
        if text.strip()
        else element("em", "(empty answer)"),
        div(
            *([chip("goes on")] if several and chosen else []),
            *([element("span", ", ".join(notes), classes="d-remark")] if notes else []),
            *(actions if live else []),
            classes="d-line",
        ),
        classes="d-sample",
    )


_FOLLOWED = {"base": "after the base's answers", "finetuned": "after the finetuned model's answers"}


def _how(how: How, place: int) -> str:
    """What is not the usual, in a few words."""
    said = [f"temperature {number(how.temperature)}, seed {how.seed}" if how.temperature else "greedy"]
    if how.system_prompt.strip():
        said.insert(0, f"system prompt “{how.system_prompt.strip()[:80]}”")
    if place and how.follows in _FOLLOWED:
        said.append(_FOLLOWED[how.follows])
    return ", ".join(said)
