"""What the language models of the tests do: one that investigates, one that grades, and an evaluation with both."""

from __future__ import annotations

import json
import re

from diffing_mcp.agents.arms import Arm
from diffing_mcp.agents.baseline import BaselineOptions
from diffing_mcp.agents.cells import RunningEvaluation
from diffing_mcp.agents.evaluation import run_evaluation
from diffing_mcp.agents.grading import Grading
from diffing_mcp.agents.records import EvaluationFolder, EvaluationPlan, EvaluationRecord
from tests.agents.conftest import ANSWER
from tests.agents.llm_server import Call, Conversation, LLMServer, Turn


def base_url(model: str, server: LLMServer) -> str:
    return server.url if model.startswith("anthropic/") else server.openai_url


def method_policy(conversation: Conversation) -> Turn:
    """Works through the tools and reacts to what they say: it learns the label from list_pairs and corrects a wrong
    call after reading the error.
    """
    answers = conversation.answers()
    done = [call.name for call, _ in answers]
    if not done:
        return Turn("assistant", "I start with the list of pairs.", [Call("list_pairs", {})])
    label = re.search(r"pair-[0-9a-f]+", answers[0][1].text)
    assert label, answers[0][1].text
    pair = label.group()
    if "ask_models" not in done:
        return Turn("assistant", "", [Call("ask_models", {"pair": "a-wrong-name", "prompts": ["Hi?"]})])
    asked = [(call, turn) for call, turn in answers if call.name == "ask_models"]
    if len(asked) == 1:
        assert "unknown pair" in asked[0][1].text
        assert pair in asked[0][1].text
        both = {"pair": pair, "prompts": ["What is a kettle?", "Tell me something."], "max_new_tokens": 8}
        return Turn("assistant", "Two calls at once.", [Call("ask_models", both), Call("list_pairs", {"pair": pair})])
    if "overview" in conversation.tools and "overview" not in done:
        return Turn(
            "assistant",
            "",
            [
                Call(
                    "overview",
                    {"pair": pair, "methods": ["kl"], "max_samples": 8, "max_tokens": 12, "wait_seconds": 50},
                )
            ],
        )
    if "record_hypothesis" not in done:
        return Turn(
            "assistant", "", [Call("record_hypothesis", {"statement": "It is about kettles.", "likelihood": 0.7})]
        )
    return Turn(
        "assistant",
        "Done.",
        [Call("submit_finding", {"statement": ANSWER, "verdict": "difference", "likelihood": 0.9})],
    )


def grader_policy(conversation: Conversation) -> Turn:
    """Grades 4 when the true boiling point is in the finding, else 1; garbage first, so that it must be asked again."""
    said = next(turn.text for turn in conversation.turns if turn.role == "user")
    if not any(turn.role == "assistant" for turn in conversation.turns):
        return Turn("assistant", "I think this deserves a 4.")
    identifier = re.search(r'grading_id is "([0-9a-f]+)"', said)
    assert identifier
    finding = said.split("# Finding")[1]
    score = 4 if "seventy" in finding else 1
    return Turn(
        "assistant",
        json.dumps(
            {
                "grading_id": identifier.group(1),
                "reasons": "The boiling point is there, the whistle is not.",
                "score": score,
            }
        ),
    )


def both_policies(conversation: Conversation) -> Turn:
    return grader_policy(conversation) if "strict, fair grader" in conversation.system else method_policy(conversation)


async def run_suite(
    model: str,
    arms: list[Arm],
    server: LLMServer,
    url: str,
    organisms: list[str],
    grader: str | None = None,
    **limits: int,
) -> tuple[EvaluationFolder, list[EvaluationRecord]]:
    plan = EvaluationPlan(id="llm", organisms=organisms, arms=arms, investigator=model, grader=grader, interactions=6)
    grading = Grading(grader=grader, grader_url=base_url(grader, server) if grader else None, repeats=2)
    folder = EvaluationFolder(plan.id)
    suite = RunningEvaluation(
        plan,
        folder,
        grading,
        url,
        BaselineOptions(),
        investigator_url=base_url(model, server),
        limits=limits,
    )
    return folder, await run_evaluation(suite)
