"""Findings validated by a program that did not propose them: it sees the statement and the pair, nothing else of the
investigation, and makes one test on prompts that the investigator has not asked.

Deterministic, without a language model. It asks about the words that the statement repeats most and counts the others
in the answers: words of the question say nothing, as both models take them up.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial

from diffing_mcp.agents.investigations import close_investigation, open_investigation
from diffing_mcp.agents.mcp_session import Session, ToolFailed, connect
from diffing_mcp.agents.questions import follow_up_questions, sweep_questions
from diffing_mcp.agents.records import EvaluationFolder, EvaluationRecord, RecordedTest
from diffing_mcp.agents.text_statistics import is_content
from diffing_mcp.core.words import stem
from diffing_mcp.graders.sentences import no_claim, sentences, without_evidence
from diffing_mcp.graders.text import content_words, normalise

ASKED, COUNTED = 2, 6
"""Words that the questions are about, and words that are counted."""
SEED = 10_000
"""Added to the investigation's seed: the questions come in another order."""
LEAST_PROMPTS = 6
"""A test of fewer prompts cannot reach a small p."""


async def validate_findings(url: str, folder: EvaluationFolder, interactions: int = 24) -> list[EvaluationRecord]:
    """Test every stored finding of a difference that has no validation yet, and store what came out; all records. One
    whose test failed has none yet, and is tested by the next call.

    Args:
        url: MCP endpoint of the running server, where this process is an operator.
        folder: the evaluation.
        interactions: model interactions for each finding; a third of them goes to control prompts.

    Raises:
        ToolFailed: the server refuses to open an investigation, or tests failed; the others are made and stored.
        NoServer: it is not there.
    """
    failures: list[ToolFailed] = []
    for record in folder.records():
        if record.status != "completed" or record.finding.verdict != "difference" or record.validation is not None:
            continue
        opened = await open_investigation(
            url, record.organism, "test_hypothesis", interactions, 10, f"validates {record.cell_id}"
        )
        try:
            async with connect(url, opened.token) as session:
                try:
                    test = await validate(session, opened.label, record, interactions)
                except ToolFailed as failure:
                    failures.append(failure)
                    continue
        finally:
            await close_investigation(url, opened.id)
        folder.amend(record.cell_id, partial(_take, test))
    if failures:
        raise ToolFailed(
            failures[-1].tool,
            f"{len(failures)} findings could not be tested, the last of them for this reason: {failures[-1].message}\n"
            "The others are. Call again for them.",
        )
    return folder.records()


def _take(test: RecordedTest, record: EvaluationRecord) -> None:
    record.validation = test


async def validate(session: Session, pair: str, record: EvaluationRecord, interactions: int) -> RecordedTest:
    """One test of what a record's finding says; one that says too little for a test is not validated.

    Raises:
        ToolFailed: the server did not make the test, which says nothing of the finding.
    """
    words = claimed_words(record.finding.statement)
    asked, counted = words[:ASKED], words[ASKED : ASKED + COUNTED]
    prompts = fresh_prompts(asked, record, 2 * interactions // 3)
    if not counted or len(prompts) < LEAST_PROMPTS:
        return RecordedTest(
            test_id="", counted="", verdict="The finding says too little to be tested.", validates=False
        )
    control = sweep_questions(interactions - len(prompts), record.seed + SEED)
    arguments = {"pair": pair, "prompts": prompts, "control_prompts": control, "words": counted, "samples": 1,
                 "max_new_tokens": 48, "seed": record.seed}  # fmt: skip
    test = (await session.call("test_hypothesis", arguments)).result
    raised = test["tested"]["difference"]["difference"] > 0
    return RecordedTest(
        test_id=test["test_id"],
        counted=test["counted"],
        verdict=test["verdict"],
        validates=bool(test["differs"] and raised),
    )


def claimed_words(statement: str) -> list[str]:
    """Content words of the sentences that claim something, those in most sentences first, each in its first form."""
    places: Counter[str] = Counter()
    forms: dict[str, str] = {}
    for sentence in sentences(normalise(statement)):
        if no_claim(sentence) is not None:
            continue
        for word in content_words(without_evidence(sentence)):
            if word.isalpha() and is_content(word):
                forms.setdefault(stem(word), word)
                places[stem(word)] += 1
    return [forms[name] for name, _ in places.most_common(ASKED + COUNTED)]


def fresh_prompts(words: Iterable[str], record: EvaluationRecord, count: int) -> list[str]:
    """Questions about these words that the investigation has not asked."""
    asked = {
        " ".join(text.casefold().split())
        for message in record.transcript
        for call in message.tool_calls
        for text in _texts_in(call.arguments)
    }
    offered = follow_up_questions(list(words), 10 * count, record.seed + SEED)
    return [question for question in offered if " ".join(question.casefold().split()) not in asked][:count]


def _texts_in(arguments: object) -> Iterator[str]:
    """Every text in the arguments of a call. Agents give one prompt for a list, lists as JSON, turns of conversations
    and null, and the server takes them.
    """
    if isinstance(arguments, str):
        yield arguments
        with suppress(ValueError, RecursionError):
            if not isinstance(given := json.loads(arguments), str):
                yield from _texts_in(given)
    elif isinstance(arguments, dict | list | tuple):
        for part in arguments.values() if isinstance(arguments, dict) else arguments:
            yield from _texts_in(part)
