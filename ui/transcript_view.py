"""A transcript as HTML: every step has an anchor, a tool call with its answer is folded, JSON is indented, and runs are
links. All text is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from diffing_mcp.agents.records import EvaluationRecord, Message, ToolCall
from diffing_mcp.ui.addresses import run_link
from diffing_mcp.ui.html import chip, details, div, element, escape, join, preformatted, seconds_text

_ARGUMENT_CHARACTERS = 70
_SPEAKERS = {"reasoning": "Reasoning", "system": "System prompt", "user": "Task", "assistant": "Investigator"}
_FOLDED = ("reasoning", "system")


@dataclass(frozen=True)
class Step:
    """What an investigator thought, was told, said, or called with its answer. UNTRUSTED text."""

    kind: Literal["reasoning", "system", "user", "assistant", "call"]
    text: str
    """Everything in it: what a search looks in."""
    call: ToolCall | None = None
    answer: Message | None = None


def steps_of(record: EvaluationRecord) -> list[Step]:
    """The steps in their order; a call and its answer are one."""
    answers = {message.tool_call_id: message for message in record.transcript if message.role == "tool"}
    steps: list[Step] = []
    for message in record.transcript:
        if message.role == "tool":
            continue
        if message.reasoning:
            steps.append(Step("reasoning", message.reasoning))
        if message.role == "system" or message.content.strip():
            steps.append(Step(message.role, message.content))
        for call in message.tool_calls:
            answer = answers.get(call.id)
            said = f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)} {answer.content if answer else ''}"
            steps.append(Step("call", said, call, answer))
    return steps


def transcript_html(record: EvaluationRecord, anchor: str = "step") -> Markup:
    """The steps of a transcript. `anchor`: beginning of their ids."""
    shown = (_shown(step, record.run_ids) for step in steps_of(record))
    return div(*(_step(step, place, anchor) for place, step in enumerate(shown, 1)), classes="d-steps")


def _shown(step: Step, runs: Sequence[str]) -> Markup:
    if step.call is not None:
        return _call(step.call, step.answer, runs)
    if step.kind in _FOLDED:
        return details(_SPEAKERS[step.kind], preformatted(step.text))
    return join([element("h4", _SPEAKERS[step.kind]), preformatted(step.text)])


def _step(step: Markup, place: int, anchor: str) -> Markup:
    name = f"{anchor}-{place}"
    link = Markup('<a class="d-link d-anchor" href="#{0}" aria-label="Step {1}">{1}</a>').format(name, place)
    return Markup('<section class="d-step" id="{}">{}<div>{}</div></section>').format(name, link, step)


def _call(call: ToolCall, answer: Message | None, runs: Sequence[str]) -> Markup:
    text = answer.content if answer is not None else "No answer was recorded."
    wrong = answer is not None and answer.is_error
    said = join(
        [
            element("code", f"{call.name}({_short_arguments(call)})"),
            *([chip("failed", "bad")] if wrong else []),
            *([seconds_text(answer.seconds)] if answer is not None and answer.seconds is not None else []),
        ],
        " ",
    )
    seen = [run for run in runs if re.search(rf"\b{re.escape(run)}\b", text)]
    return details(
        said,
        preformatted(json.dumps(call.arguments, ensure_ascii=False, indent=2)) if call.arguments else "",
        div("Run ", join(map(run_link, seen), " "), classes="d-remark") if seen else "",
        preformatted(readable(text)),
    )


def readable(text: str) -> str:
    """JSON with line breaks and indents; other text as it is."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, indent=2) if text.lstrip()[:1] in "{[" else text
    except (ValueError, RecursionError):
        return text


def _short_arguments(call: ToolCall) -> str:
    text = ", ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items() if name != "pair"
    )
    return text if len(text) <= _ARGUMENT_CHARACTERS else text[: _ARGUMENT_CHARACTERS - 1] + "…"


def side_title(record: EvaluationRecord) -> Markup:
    """Which cell a column shows."""
    return element("h3", escape(f"{record.organism}, {record.arm}, repeat {record.repeat}"))
