"""Evidence that a person added to a pair's report, as HTML; without Gradio."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from diffing_mcp.ui.conversation_view import act, conversation_html
from diffing_mcp.ui.heatmap import heat_map
from diffing_mcp.ui.html import alert, div, element, section
from diffing_mcp.ui.saved_evidence import SavedEvidence


def saved_html(saved: Sequence[SavedEvidence], live: bool = True) -> Markup:
    """All of it, with a button that removes each where the page is `live`."""
    if not saved:
        return Markup("")
    now = saved[-1].pair
    return section("Evidence added by hand", *(_card(evidence, live, evidence.pair != now) for evidence in saved))


def _card(evidence: SavedEvidence, live: bool, other: bool) -> Markup:
    made = evidence.created.strftime("%Y-%m-%d %H:%M")
    changed = "The models had other weights when this was seen than they had for the newest evidence."
    return div(
        div(
            element("h4", evidence.note or ("Heat map" if evidence.heat_map else "Conversation")),
            element("span", f"{made} UTC", classes="d-remark"),
            act("Remove", "remove", f"Remove the evidence of {made}", id=evidence.id) if live else "",
            classes="d-line",
        ),
        alert(changed, "warn") if other else "",
        conversation_html(evidence.conversation, live=False) if evidence.conversation else "",
        heat_map(evidence.heat_map, "difference") if evidence.heat_map else "",
        classes="d-card",
    )
