"""Asking a language model until its reply can be read: what all graders that ask one share.

The model call is an injected async callable, so that any client serves. A reply counts only when it is one JSON object;
what comes out of a model under study stands in the questions as JSON strings or between marks, and is never taken for a
reply.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from diffing_mcp.core.errors import DiffingError

Ask = Callable[[list[dict[str, str]]], Awaitable[str]]
"""Sends chat messages ({"role", "content"}) to a language model and returns the text of its reply. Retries on the
network are its own business.
"""

UNKNOWN = "UNKNOWN"
"""The label of what got no usable answer, or no agreement."""

T = TypeVar("T")


class GradingFailed(DiffingError):
    """The grader model gave no usable answer often enough."""

    code = "grading_failed"


class UnusableReply(ValueError):
    """A grader's reply is not the one JSON object asked for.
    The message says why, in words that the model can act on.
    """


@dataclass(frozen=True)
class ReplyOutcome(Generic[T]):
    """The outcome of one question: the value (None after the last retry), how many replies could not be read, and what
    was wrong with the last of them.
    """

    value: T | None
    unusable: int
    problem: str


async def ask_until_usable(
    messages: Sequence[dict[str, str]], ask: Ask, parse: Callable[[str], T], retries: int
) -> ReplyOutcome[T]:
    """Ask, and ask again at most `retries` times with what was wrong, until `parse` raises no UnusableReply."""
    said, problem = list(messages), ""
    for attempt in range(retries + 1):
        reply = await ask(list(said))
        try:
            return ReplyOutcome(parse(reply), attempt, problem)
        except UnusableReply as error:
            problem = str(error)
            correction = f"{problem} Answer again with the JSON object only."
            said = [
                *said,
                {"role": "assistant", "content": reply or "(empty)"},
                {"role": "user", "content": correction},
            ]
    return ReplyOutcome(None, retries + 1, problem)


def read_object(reply: str) -> dict[str, Any]:
    """The one JSON object of a reply. Allowed around it: a reasoning block that ends in `</think>`, and one code fence.

    Raises:
        UnusableReply: anything else: other text, several objects, a key twice, numbers that JSON does not know.
    """
    text = _without_fence(reply.rpartition("</think>")[2].strip())
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except UnusableReply:
        raise
    except (ValueError, RecursionError) as error:  # no JSON, or a number of thousands of digits
        raise UnusableReply("The reply must be one JSON object and nothing else.") from error
    if not isinstance(value, dict):
        raise UnusableReply("The reply must be a JSON object.")
    return value


def read_labels(reply: str, count: int, allowed: Sequence[str]) -> list[str]:
    """The labels of a reply `{"labels": [...]}`.

    Raises:
        UnusableReply: as `read_object`; another number of labels, or others than allowed.
    """
    labels = read_object(reply).get("labels")
    if not isinstance(labels, list) or len(labels) != count:
        raise UnusableReply(f'The JSON object must have the key "labels" with exactly {count} labels.')
    if any(label not in allowed for label in labels):
        raise UnusableReply(f"A label is {' or '.join(allowed)}.")
    return labels


def numbered(texts: Sequence[str]) -> str:
    """A numbered list of JSON strings, one a line, so that nothing in a text ends the list or begins another entry."""
    return "\n".join(f"{number}. {json.dumps(text, ensure_ascii=False)}" for number, text in enumerate(texts, start=1))


def majority(labels: Sequence[str]) -> str:
    """The label that more than half of the known ones are, else UNKNOWN."""
    known = [label for label in labels if label != UNKNOWN]
    label, count = Counter(known).most_common(1)[0] if known else (UNKNOWN, 0)
    return label if count * 2 > len(known) else UNKNOWN


def _without_fence(text: str) -> str:
    """What stands within a code fence, or the text itself. No pattern: a fence with a long stretch of white space that
    does not end, as models write it, took one hours.
    """
    if len(text) < 6 or not (text.startswith("```") and text.endswith("```")):
        return text
    within = text[3:-3]
    return within[4:].strip() if within[:4].lower() == "json" else within.strip()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise UnusableReply("A key appears twice in the JSON object.")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise UnusableReply(f"{name} is not a number of JSON.")
