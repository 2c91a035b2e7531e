"""Inputs that several pages share: pickers whose choices change, and a form made from a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from diffing_mcp.model_pairs.resolve import list_pairs

DRAWING: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "drawing"}
"""For every `gr.render`: Gradio has one list of components a page, and two that draw at the same time change it under
each other (`dictionary changed size during iteration`, shown to the user as an error)."""


def picker(choices: Sequence[Any], **shape: Any) -> gr.Dropdown:
    """A dropdown that takes other values than its choices too.

    Gradio refuses a value that is not among the choices it knows of, and an event that was sent before the choices
    changed carries such a value. Every handler here checks what it gets by itself.
    """
    return gr.Dropdown(list(choices), allow_custom_value=True, **shape)


def widget(name: str, field: Mapping[str, Any]) -> Any:
    """The input for one parameter. What is neither a number, a choice nor a text is typed as JSON."""
    default = field.get("default")
    shape: dict[str, Any] = {
        "label": name.replace("_", " "),
        "info": field.get("description"),
        "value": default,
        "min_width": 180,
        "interactive": True,
    }
    if "enum" in field:
        return gr.Dropdown(field["enum"], **shape)
    if field.get("type") == "boolean":
        return gr.Checkbox(**{**shape, "value": bool(default)})
    # An empty number would be sent as 0, so that a number which may be left out is typed as text.
    if field.get("type") in ("integer", "number") and default is not None:
        return gr.Number(
            **shape,
            precision=0 if field["type"] == "integer" else None,
            minimum=field.get("minimum"),
            maximum=field.get("maximum"),
        )
    shown = default if isinstance(default, str) else "" if default is None else json.dumps(default)
    return gr.Textbox(**{**shape, "value": shown})


def pair_choices() -> list[tuple[str, str]]:
    """The pairs of the catalogue as (what is shown, name): those whose files are here first, the others marked."""
    ranked = sorted(list_pairs(), key=lambda pair: not pair.available_offline)
    return [(pair.name if pair.available_offline else f"{pair.name} (needs a download)", pair.name) for pair in ranked]


def acting(elem_id: str, value: Any = None) -> gr.HTML:
    """HTML whose buttons (`conversation_view.act`) fire the event `acted`; its data are the button's `data-*`."""
    listen = (
        "element.addEventListener('click', event => { const button = event.target.closest('button[data-do]'); "
        "if (button) trigger('acted', {...button.dataset}); })"
    )
    return gr.HTML(value, elem_id=elem_id, js_on_load=listen)
