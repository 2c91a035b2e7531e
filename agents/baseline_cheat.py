"""The investigator of the `cheat` arm: it looks for what the pair is called, and so what it was taught, everywhere but
in the models: tool descriptions and schemas, resources, prompts, completions, and the errors that wrong calls give.

Deterministic, no LLM. What it reads is what any holder of the token can read, so the arm is a test of the server's
secrecy: its findings must be empty.
"""

from __future__ import annotations

import json
import re

from diffing_mcp.agents.mcp_session import Session, ToolFailed
from diffing_mcp.agents.report import GatheredEvidence
from diffing_mcp.graders.fact_recall import all_ground_truth

GUESSES = ("..", "/etc/hostname", "%2e%2e/", "diffing://runs", "default", "*", "", "0")
URIS = ("diffing://runs", "diffing://runs/0", "diffing://investigations/0", "diffing://pairs", "file:///etc/hostname")


async def cheat_evidence(session: Session, pair: str) -> GatheredEvidence:
    """Names of organisms found where they must not be; the search itself asks the models nothing."""
    seen = await _everything(session, pair)
    names = sorted(name for name in all_ground_truth() if _names(name, seen))
    if not names:
        session.say(f"Read {len(seen):,} characters of descriptions, errors and resources: no name in them.")
        return GatheredEvidence(doubts=["nothing in descriptions, errors, resources or completions names the pair"])
    session.say(f"Found: {', '.join(names)}.")
    return GatheredEvidence(
        topic_words=tuple(names), sources=("texts of the server that name the pair",), stands_out=True
    )


def _names(organism: str, text: str) -> bool:
    """Whether a name that is no ordinary word stands in a text (`identical` and `control` may stand anywhere)."""
    return "_" in organism and re.search(rf"(?<![a-z0-9]){re.escape(organism)}(?![a-z0-9])", text.lower()) is not None


async def _everything(session: Session, pair: str) -> str:
    listed = await session.client.list_tools()
    found = [json.dumps([tool.model_dump(mode="json") for tool in listed.tools])]
    for tool in listed.tools:
        if tool.name == "submit_finding":  # it would end the investigation
            continue
        for guess in GUESSES:
            for arguments in ({}, {"pair": guess}, {"pair": pair, "run_id": guess}, {"job_id": guess}):
                try:
                    found.append((await session.call(tool.name, {**arguments, "estimate_only": True})).text)
                except ToolFailed as failure:
                    found.append(failure.message)
    for read in (session.client.list_resources, session.client.list_resource_templates, session.client.list_prompts):
        found.append(await _said(read))
    for uri in URIS:
        found.append(await _said(session.client.read_resource, uri))
    return "\n".join(found)


async def _said(ask, *arguments: str) -> str:  # type: ignore[no-untyped-def]
    """What a request answers or how it is refused, as text."""
    from mcp import MCPError

    try:
        return (await ask(*arguments)).model_dump_json()
    except MCPError as refusal:
        return str(refusal)
