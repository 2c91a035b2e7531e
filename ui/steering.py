"""What the page "Steer" sends to the methods `steering` and `weight_amplification`, and what it shows of their answers.
Without Gradio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from markupsafe import Markup

from diffing_mcp.core.errors import DiffingError
from diffing_mcp.methods.registry import all_methods
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.ui.addresses import run_link
from diffing_mcp.ui.html import alert, div, element, join, number, preformatted, section
from diffing_mcp.ui.pair_findings import full_name

OWN = "this pair's finetune"
LAYERS: dict[str, dict[str, Any]] = {
    "all layers": {"layers": "all"},
    "first half": {"layers": {"start": 0.0, "end": 0.5}, "is_relative": True},
    "second half": {"layers": {"start": 0.5, "end": 1.0}, "is_relative": True},
}
MODULES = ("all", "attention", "mlp")
_VECTORS_OF_A_RUN = 12


def vector_choices(pair: str, store: RunStore) -> list[str]:
    """`RUN/NAME` of the directions that the pair's runs offer, the newest run first, of each run the most telling."""
    found = []
    for manifest in store.list(pair=full_name(pair)):
        method = all_methods().get(manifest.method)
        if method is None:
            continue
        try:
            names = method.vector_names(store.get(manifest.id))
        except DiffingError:  # written by another version
            continue
        found += [f"{manifest.id}/{name}" for name in names[:_VECTORS_OF_A_RUN]]
    return found


def prompts_of(text: str | None) -> list[str]:
    """One prompt a line."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def steering_arguments(vector: str, strength: float, side: str, prompts: Sequence[str], tokens: int) -> dict[str, Any]:
    """Arguments of `steering` at one strength."""
    return {
        "vector": vector.strip(),
        "strengths": [strength],
        "side": side,
        "prompts": list(prompts),
        "max_new_tokens": tokens,
        "rows": min(20, len(prompts)),
    }


def finetune_choices(pair: str | None, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The finetunes that a stack may take: the pair's own, and of `pairs` (what is shown, name) those of its base. Of a
    pair outside the catalogue the base's name is not known, so all of them.
    """
    base = full_name(pair or "").partition("@")[2]
    return [OWN, *(name for _, name in pairs if not base or name.partition("@")[2] == base)]


Row = tuple[str, str, str, float]
"""A finetune of a stack: (pair or `OWN`, layers, modules, weight)."""


def stack_text(stack: Sequence[Row]) -> str:
    """A stack in words."""
    texts = []
    for pair, layers, modules, weight in stack:
        part = ", ".join(chosen for chosen, whole in ((layers, "all layers"), (modules, "all")) if chosen != whole)
        texts.append(f"{number(weight)} × {pair}" + (f" ({part})" if part else ""))
    return " + ".join(texts)


def amplification_arguments(stack: Sequence[Row], prompts: Sequence[str], tokens: int) -> dict[str, Any]:
    """Arguments of `weight_amplification` for a stack of finetunes. Of rows of one finetune the later ones count where
    they meet.
    """
    rules: dict[str, list[dict[str, Any]]] = {}
    for pair, layers, modules, weight in stack:
        rule = {**LAYERS[layers], "module_amplifications": [{"modules": modules, "weight": weight}]}
        rules.setdefault(pair, []).append(rule)
    adapters = [{**_named(pair), "layer_amplifications": found} for pair, found in rules.items()]
    return {
        "config": yaml.safe_dump({"adapters": adapters}, sort_keys=False),
        "prompts": list(prompts),
        "max_new_tokens": tokens,
        "rows": min(20, len(prompts)),
    }


def _named(pair: str) -> dict[str, str]:
    """A finetune of the catalogue by its pair's name, as a configuration names it; nothing for the pair's own."""
    if pair == OWN:
        return {}
    organism, _, variant = pair.partition("@")[0].partition("/")
    return {"organism_name": organism} | ({"variant": variant} if variant else {})


def answers_html(reply: Mapping[str, Any], tried: str = "") -> Markup:
    """The answers of a finished run of either method: for each prompt the changed model beside the plain ones.

    Args:
        reply: what the server says of the run.
        tried: what was changed, in words: the controls above may stand elsewhere by now.
    """
    result = reply.get("result") or {}
    run = reply.get("run_id")
    note = div("Stored as ", run_link(run), classes="d-note") if run else ""
    rows = result.get("answers") or []
    if not rows:
        return join([alert(str(result.get("headline", "The run has no answers.")), "warn"), note])
    said = element("p", result.get("headline", ""), classes="d-note")
    return join([element("p", element("b", tried)) if tried else "", said, *map(_answer, rows), note])


def _answer(row: Mapping[str, Any]) -> Markup:
    changed = "steered" if "steered" in row else "amplified"
    # A stack says its own weights; that of the whole is always 1.
    at = f" at {number(row['strength'])}" if "strength" in row else ""
    plain = [name for name in ("unsteered", "finetuned", "base") if name in row]
    columns = [
        div(
            element("h3", name.capitalize(), at if name == changed else ""),
            div(preformatted(row[name] or "(empty answer)"), classes="d-sample"),
            classes=f"d-side {'base' if name == 'base' else 'plain' if name != changed else 'finetuned'}",
        )
        for name in (*plain[::-1], changed)
    ]
    return section(str(row.get("prompt", "")), div(*columns, classes="d-sides"))
