"""The investigator of the `cheat` arm: it looks for what the pair is called, and so what it was taught, everywhere but
in the models: tool descriptions and schemas, resources, prompts, completions, and the errors that wrong calls give.

Deterministic, no LLM. What it reads is what any holder of the token can read, so the arm is a test of the server's
secrecy: its findings must be empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from diffing_mcp.agents.mcp_session import Session, ToolFailed
from diffing_mcp.agents.report import GatheredEvidence
from diffing_mcp.graders.fact_recall import all_ground_truth

GUESSES = {
    "pair": ("", "*", "default", "/etc/hostname"),
    "run_id": ("", "*", "0", "../.."),
    "job_id": ("*", "0"),
    "corpus": ("training:", "../..", "/etc/hostname"),
}
"""Argument of tools -> what it is given."""
URIS = ("diffing://runs", "diffing://runs/0", "diffing://investigations/0", "diffing://pairs", "file:///etc/hostname")
PROMPTS = {"audit_pair": "pair", "compare_two_finetunes": "first", "explain_finding": "run_id"}
"""Prompts and templates, and the argument of each that is completed."""
TEMPLATES = {"diffing://runs/{run_id}": "run_id", "diffing://investigations/{identifier}": "identifier"}
ENDING = ("submit_finding", "record_hypothesis")
"""Tools that would end the investigation, or write the answer that is looked for into it."""


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
    from mcp.types import PromptReference, ResourceTemplateReference

    listed = await session.client.list_tools()
    found = [json.dumps([tool.model_dump(mode="json") for tool in listed.tools])]
    for name in await session.tool_names():  # listed or not
        described = await session.call("more_tools", {"tool": name})
        found.append(described.text)
        if name not in ENDING:
            takes = described.result["tool"]["input_schema"].get("properties", {})
            found += [await _answer(session, name, arguments) for arguments in _guesses(takes, pair)]
    for read in (session.client.list_resources, session.client.list_resource_templates, session.client.list_prompts):
        found.append(await _said(read))
    for uri in URIS:
        found.append(await _said(session.client.read_resource, uri))
    for prompt, argument in PROMPTS.items():
        found.append(await _said(session.client.get_prompt, prompt))
        found.append(await _said(session.client.complete, PromptReference(name=prompt), _begun(argument)))
    for template, argument in TEMPLATES.items():
        found.append(await _said(session.client.complete, ResourceTemplateReference(uri=template), _begun(argument)))
    return "\n".join(found)


def _guesses(takes: Mapping[str, object], pair: str) -> Iterator[dict[str, object]]:
    """Arguments of a tool that takes these: none, the pair alone, and each guess. Where work can be estimated it is."""
    free: dict[str, object] = {"estimate_only": True} if "estimate_only" in takes else {}
    plain = free | ({"pair": pair} if "pair" in takes else {})
    yield free
    yield plain
    for name, guesses in GUESSES.items():
        if name in takes:
            yield from ({**plain, name: guess} for guess in guesses)


async def _answer(session: Session, tool: str, arguments: dict[str, object]) -> str:
    """What a call answers, its data with it: more stands in them than in the text."""
    try:
        answer = await session.call(tool, arguments)
    except ToolFailed as failure:
        return failure.message
    return f"{answer.text}\n{json.dumps(answer.result, ensure_ascii=False)}"


def _begun(argument: str) -> dict[str, str]:
    return {"name": argument, "value": ""}


async def _said(ask, *arguments: object) -> str:  # type: ignore[no-untyped-def]
    """What a request answers or how it is refused, as text."""
    from mcp import MCPError

    try:
        return (await ask(*arguments)).model_dump_json()
    except MCPError as refusal:
        return str(refusal)
