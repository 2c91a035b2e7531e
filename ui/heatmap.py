"""The tokens of one text, shaded by how differently the two models expect them. Plain escaped HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, isnan, nan
from typing import Any

from markupsafe import Markup

from diffing_mcp.ui.html import details, div, element, escape, join, number, preformatted, table
from diffing_mcp.ui.theme import BASE, FINETUNED
from diffing_mcp.ui.values import render_move

METRICS = {"difference": "Log-probability difference", "kl": "KL divergence"}

_FLOOR = 0.5
"""Nats at which the scale ends at least, so that a pair without differences stays pale instead of
magnifying rounding.
"""

_STRONGEST = 0.62
"""Opacity of the strongest shade: the text above it stays legible in light and in dark mode."""


def scale_end(values: Sequence[float]) -> float:
    """Where the colour scale ends, in nats: the 98th percentile of the absolute values, at least 0.5."""
    ordered = sorted(abs(value) for value in values if isfinite(value))
    return max(_FLOOR, ordered[min(len(ordered) - 1, int(0.98 * len(ordered)))]) if ordered else _FLOOR


def shade(value: float, end: float) -> str:
    """CSS background of a value: orange above zero, blue-grey below, stronger towards `end`; none for what is no
    number.
    """
    if isnan(value):
        return "background-color:transparent"
    red, green, blue = (int((FINETUNED if value >= 0 else BASE)[place : place + 2], 16) for place in (1, 3, 5))
    return f"background-color:rgba({red},{green},{blue},{_STRONGEST * min(1.0, abs(value) / end):.3f})"


def heat_map(result: Mapping[str, Any], metric: str) -> Markup:
    """The answer of `compare_text`: shaded tokens with legend and averages (those of a span underlined in the colour of
    the model that expects it more), the spans, the positions that differ most, candidates and greedy answers; what was
    not asked for is left out.

    Args:
        result: `tokens`, `base_log_prob`, `finetuned_log_prob`, `kl` (one entry a token, nats), `mean_kl`,
            `mean_log_prob_difference`, `top`, `spans`, `candidates`, `greedy`, `unscored`; and a `title`.
        metric: `difference` (finetuned minus base log-probability) or `kl`.
    """
    parts = [element("h4", result["title"])] if result.get("title") else []
    parts += [_shaded(result, metric)] if result["tokens"] else []
    parts += [_spans(result.get("spans") or []), _movers(result.get("top") or [])]
    return join([*parts, _candidates(result.get("candidates") or []), _greedy(result.get("greedy"))])


def _shaded(result: Mapping[str, Any], metric: str) -> Markup:
    tokens = [str(token) for token in result["tokens"]]
    base, finetuned, kl = (
        [_number(value) for value in result[name]] for name in ("base_log_prob", "finetuned_log_prob", "kl")
    )
    differences = [after - before for before, after in zip(base, finetuned, strict=True)]
    values = kl if metric == "kl" else differences
    end = scale_end(values)
    lines = [""] * len(tokens)
    for span in result.get("spans") or []:
        colour = FINETUNED if span["difference"] >= 0 else BASE
        lines[span["start"] : span["end"]] = [f";box-shadow:inset 0 -3px {colour}"] * (span["end"] - span["start"])
    shaded = [
        element(
            "span",
            _visible(token),
            style=shade(value, end) + line,
            title=(
                f"{token!r}\n"
                f"ln p base {number(before)}\n"
                f"ln p finetuned {number(after)}\n"
                f"difference {number(after - before)} nats\n"
                f"KL {number(divergence)} nats"
            ),
        )
        for token, before, after, divergence, value, line in zip(
            tokens, base, finetuned, kl, values, lines, strict=True
        )
    ]
    if result.get("unscored"):
        shaded.insert(
            0,
            element(
                "span",
                _visible(str(result["unscored"])),
                style="opacity:.5",
                title="Not scored: nothing stands before it.",
            ),
        )
    summary = (
        f"{len(tokens)} tokens, mean KL {number(result['mean_kl'])} nats, "
        f"mean log-probability difference {number(result['mean_log_prob_difference'])} nats a token"
        + (" (the text goes on)" if result.get("truncated") else "")
    )
    rows = (
        [str(place), element("code", _visible(token), classes="d-token"), *map(number, numbers)]
        for place, (token, *numbers) in enumerate(zip(tokens, base, finetuned, differences, kl, strict=True))
    )
    columns = ["position", "token", "ln p base", "ln p finetuned", "difference", "KL"]
    return join(
        [
            _legend(metric, end),
            div(*shaded, classes="d-heat"),
            element("p", summary, classes="d-note"),
            # The numbers under the pointer, for those who have none.
            details("Every token with its numbers, in nats", table(columns, rows, [0, 2, 3, 4, 5])),
        ]
    )


def _number(value: float | None) -> float:
    """A number of a result; JSON has none for NaN, which a broken model computes."""
    return nan if value is None else value


def _visible(token: str) -> Markup:
    """A token as it stands in the text; line breaks are shown and kept."""
    return escape(token.replace("\r", "␍").replace("\n", "↵\n").replace("\t", "⇥") or "∅")


def _legend(metric: str, end: float) -> Markup:
    strong = f"rgba({{}},{_STRONGEST})"
    orange, blue = (
        strong.format(",".join(str(int(colour[place : place + 2], 16)) for place in (1, 3, 5)))
        for colour in (FINETUNED, BASE)
    )
    if metric == "kl":
        ramp, left, right = (
            f"linear-gradient(90deg,transparent,{orange})",
            "0",
            f"{number(end, 2)} nats: the models expect different tokens here",
        )
    else:
        ramp = f"linear-gradient(90deg,{blue},transparent,{orange})"
        left, right = (
            f"{number(-end, 2)} nats: likelier under base",
            f"+{number(end, 2)} nats: likelier under finetuned",
        )
    return div(
        element("span", left),
        element("span", "", classes="d-ramp", style=f"background:{ramp}"),
        element("span", right),
        classes="d-scale",
    )


def _movers(top: Sequence[Mapping[str, Any]]) -> Markup:
    if not top:
        return Markup("")
    rows = (
        [
            str(row["position"]),
            element("code", _visible(str(row["token"])), classes="d-token"),
            number(row["kl"]),
            div(*(render_move(move) for move in row.get("up") or []), classes="d-moves"),
            div(*(render_move(move) for move in row.get("down") or []), classes="d-moves"),
        ]
        for row in top
    )
    return join(
        [
            element("h4", "Where they differ most"),
            table(
                ["position", "token in the text", "KL", "finetuned expects more", "finetuned expects less"],
                rows,
                [0, 2],
                classes="d-stack",
            ),
        ]
    )


def _spans(spans: Sequence[Mapping[str, Any]]) -> Markup:
    if not spans:
        return Markup("")
    rows = (
        [
            f"{row['start']}–{row['end'] - 1}",
            element("code", _visible(str(row["text"])), classes="d-token"),
            "finetuned" if row["difference"] >= 0 else "base",
            number(row["difference"]),
        ]
        for row in spans
    )
    return join(
        [
            element("h4", "Stretches that one model expects more"),
            table(["positions", "text", "likelier under", "nats in all"], rows, [0, 3], classes="d-stack"),
        ]
    )


def _candidates(candidates: Sequence[Mapping[str, Any]]) -> Markup:
    if not candidates:
        return Markup("")
    rows = (
        [
            element("code", _visible(str(row["candidate"])), classes="d-token"),
            number(_number(row["finetuned_per_token"]) - _number(row["base_per_token"])),
            *(f"{number(row[f'{side}_per_token'])} ({row[f'{side}_rank']}.)" for side in ("base", "finetuned")),
            str(row["tokens"]),
        ]
        for row in candidates
    )
    columns = ["candidate", "difference, nats a token", "base (rank)", "finetuned (rank)", "tokens"]
    return join(
        [element("h4", "Candidates, those that finetuned prefers most first"), table(columns, rows, [1, 2, 3, 4])]
    )


def _greedy(greedy: Mapping[str, Any] | None) -> Markup:
    if greedy is None:
        return Markup("")
    title = element("h4", "Greedy answers")
    if not greedy["parts"]:
        return join(
            [title, element("p", "Both models write the same:", classes="d-note"), preformatted(str(greedy["common"]))]
        )
    rows = (
        [
            side,
            element("code", _visible(str(greedy[side])), classes="d-token"),
            div(*(render_move(move) for move in greedy[f"{side}_top"]), classes="d-moves"),
        ]
        for side in ("base", "finetuned")
    )
    note = element("p", f"They part after {greedy['after_tokens']} tokens in common:", classes="d-note")
    return join(
        [
            title,
            note,
            preformatted(str(greedy["common"])),
            table(["", "goes on with", "likeliest next tokens, base to finetuned"], rows, []),
        ]
    )
