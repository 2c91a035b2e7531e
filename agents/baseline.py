"""The baseline investigators: deterministic, without any LLM, one for each arm, over the same server and with the same
budgets as an LLM agent. `blackbox` only asks both models; `method` starts from what the diffing methods see and asks
afterwards. Neither knows any organism.
"""

from __future__ import annotations

from diffing_mcp.agents.arms import BLACKBOX, CHEAT, Arm
from diffing_mcp.agents.baseline_blackbox import BaselineOptions, blackbox_evidence
from diffing_mcp.agents.baseline_cheat import cheat_evidence
from diffing_mcp.agents.baseline_method import method_evidence
from diffing_mcp.agents.mcp_session import Session
from diffing_mcp.agents.report import finding_of


async def investigate(session: Session, arm: Arm, options: BaselineOptions) -> None:
    """Investigate the one pair this session's token shows and hand the finding in."""
    listed = await session.call("list_pairs")
    pair = str(listed.result["pairs"][0]["name"])
    if arm == CHEAT:
        evidence = await cheat_evidence(session, pair)
    else:
        evidence = await (blackbox_evidence if arm == BLACKBOX else method_evidence)(session, pair, options)
    finding = finding_of(evidence)
    if finding.verdict == "difference":
        sources = [{"source": run, "note": "stored run"} for run in session.run_ids[:10]] or [
            {"source": "prompt", "note": "paired answers of both models"}
        ]
        await session.call(
            "record_hypothesis", {"statement": finding.statement, "likelihood": 0.8, "evidence": sources}
        )
    await session.call(
        "submit_finding",
        {
            "statement": finding.statement,
            "verdict": finding.verdict,
            "likelihood": 0.8,
            "evidence": [{"source": test} for test in evidence.tests],
        },
    )
