"""Stored examples of a feature (a latent, a direction, a score at a layer) as HTML: every token shaded by its score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from diffing_mcp.methods.examples.reader import Example
from diffing_mcp.ui.heatmap import shade
from diffing_mcp.ui.html import div, element, join, number, visible_token

_BARS = 24


def examples_html(examples: Sequence[Example], strongest: float) -> Markup:
    """Contexts in the order given; `strongest` is the score that gets the full shade."""
    return join(_example(example, strongest) for example in examples)


def _example(example: Example, strongest: float) -> Markup:
    end = abs(strongest) or 1.0
    scores = example.token_scores
    tokens = []
    for place, token in enumerate(example.context.tokens):
        score = float(scores[place]) if scores is not None and np.isfinite(scores[place]) else None
        if score is None and place == example.place:
            score = example.score
        colour = shade(score, end) if score is not None else ""
        here = ";box-shadow:inset 0 -3px currentColor" if place == example.place else ""
        told = f"{visible_token(token)} {number(score)}" if score is not None else None
        tokens.append(element("span", token, style=colour + here, title=told))
    side = f", {example.side}" if example.side else ""
    said = (
        f"{number(example.score)} at {visible_token(example.context.tokens[example.place])}, quantile bin "
        f"{example.bin}{side}, text {example.context.document}, position {example.position}"
    )
    return div(div(*tokens, classes="d-heat"), element("p", said, classes="d-remark"), classes="d-example")


def histogram_html(scores: Sequence[float]) -> Markup:
    """How many stored examples have which score."""
    if not scores:
        return Markup("")
    counts, edges = np.histogram(np.asarray(scores, dtype=np.float64), _BARS)
    most = int(counts.max())
    bars = [
        element(
            "i",
            style=f"height:{100 * count / most:.0f}%",
            title=f"{count} of {number(float(edges[place]))} to {number(float(edges[place + 1]))}",
        )
        for place, count in enumerate(counts.tolist())
    ]
    said = (
        f"{len(scores)} stored examples, scores {number(float(edges[0]))} to {number(float(edges[-1]))}: those of each "
        "quantile that the run kept, not all positions of the corpus."
    )
    bar = Markup('<div class="d-bars" role="img" aria-label="{}">{}</div>').format(said, join(bars))
    return join([bar, element("p", said, classes="d-note")])
