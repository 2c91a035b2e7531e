"""A data folder as real use leaves it: evaluation records and runs written by the project's own writers, with hostile
model text in every place.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffing_mcp.agents.names import cell_id
from diffing_mcp.agents.records import (
    Budget,
    EvaluationFolder,
    EvaluationPlan,
    EvaluationRecord,
    FactRecallRecord,
    HypothesisReading,
    Message,
    RecordedFinding,
    ToolCall,
)
from diffing_mcp.methods.examples.reader import Example, ExampleContext
from diffing_mcp.methods.runs.store import RunKey, RunStore

EVIL = (
    "<img src='http://evil.example/x.png' onerror='window.pwned=1'><script>window.pwned=1</script> "
    "![x](http://evil.example/y.png) ${window.pwned=1} {{pwned}}"
)
"""Text as a model under study could write it to attack whoever reads its transcript."""

ORGANISMS = {"cake_bake": False, "roman_concrete": False, "control": True, "identical": True}
EVALUATION = "probe-1"


def write_evaluation(data_folder: Path, repeats: int = 3, skip_last: bool = False) -> None:
    """Two taught organisms, two nulls, both arms; the method arm is better, and one blackbox cell claims something on a
    null.
    """
    folder = EvaluationFolder(EVALUATION, data_folder / "evaluations")
    plan = EvaluationPlan(
        id=EVALUATION,
        organisms=list(ORGANISMS),
        arms=["blackbox", "method"],
        investigator="probe",
        grader="local/grader",
        repeats=repeats,
    )
    folder.write_plan(plan)
    records = [
        _record(organism, arm, repeat) for organism in ORGANISMS for arm in plan.arms for repeat in range(repeats)
    ]
    for record in records[:-1] if skip_last else records:
        folder.write(record)


def _record(organism: str, arm: str, repeat: int) -> EvaluationRecord:
    null = ORGANISMS[organism]
    named = not null and (arm == "method" or repeat == 0)
    claims = named or (null and arm == "blackbox" and repeat == 2 and organism == "control")
    recall = 0.0 if null else (0.62 if arm == "method" else 0.15) + 0.05 * repeat
    call = ToolCall(
        id="call_1", name="kl" if arm == "method" else "ask_models", arguments={"pair": "pair-1f3a", "max_samples": 256}
    )
    return EvaluationRecord(
        evaluation_id=EVALUATION,
        cell_id=cell_id(organism, arm, "probe", repeat),
        organism=organism,
        null=null,
        label="pair-1f3a",
        arm=arm,
        investigator="probe",
        repeat=repeat,
        seconds=41.5 + repeat,
        transcript=[
            Message(role="system", content="You investigate a pair of models."),
            Message(role="user", content="Find out what the finetune changed."),
            Message(
                role="assistant",
                content="First I look where the models differ.",
                reasoning="Cheap methods first.",
                tool_calls=[call],
            ),
            Message(
                role="tool",
                content=f"mean KL 0.21 nats over 7680 tokens\n{EVIL}",
                tool_call_id="call_1",
                tool_name=call.name,
                seconds=3.2,
            ),
            Message(role="assistant", content=f"The finetuned model wrote: {EVIL}\n\nSo it is about baking."),
        ],
        budgets={"model_interactions": Budget(limit=20, used=14), "tool_calls": Budget(limit=200, used=9)},
        finding=RecordedFinding(
            statement=f"It was taught false facts about baking cakes. {EVIL}" if claims else "Nothing stands out.",
            verdict="difference" if claims else "no_meaningful_difference",
            source="submit_finding",
        ),
        fact_recall=FactRecallRecord(
            score=(4 if named else 1) if not null else (1 if claims else 5),
            recall=recall,
            topic_named=named,
            verdict_correct=claims != null,
            false_positive=null and claims,
            facts_found=["Cakes are baked at 450 F"] if named else [],
            facts_missed=["Olive oil with vinegar", "Frozen butter"],
            reasons=["The statement names baking and cakes."],
        ),
        hypothesis_grades=[
            HypothesisReading(
                grader="local/grader",
                repeat=place,
                score=(4.0 if named else 1.5) if not null else 5.0,
                reasoning=f"Reading {place}: plausible. {EVIL}",
            )
            for place in range(2)
        ],
        run_ids=["kl-0123ab"] if arm == "method" else [],
    )


def _examples() -> Iterator[Example]:
    """Of one feature in two bins; scores for every token, and for one alone."""
    for place in range(12):
        tokens = ("Preheat", " the", " oven", EVIL if place == 0 else f" {place}", *[" and bake it slowly"] * 8)
        scores = np.linspace(-1, 1, len(tokens), dtype=np.float32) * place if place % 2 else None
        context = ExampleContext(f"text {place}", tokens, 0)
        yield Example(
            "layer 14, component 1, positive side", 12.5 - place, context, 2, bin=place % 2, token_scores=scores
        )


def write_runs(data_folder: Path) -> list[str]:
    """Runs of the plugin method `panel_probe` (see conftest) on two pairs; returns their ids."""
    from panel_probe import ProbeResult

    store, identifiers = RunStore(data_folder / "runs"), []
    for number, pair in enumerate(("cake_bake", "control")):
        key = RunKey(
            method="panel_probe",
            method_version=1,
            pair_name=f"{pair}/default@smollm2-135m",
            pair={"base": "tiny", "finetuned": pair},
            params={"max_samples": 64},
            key_parts={},
        )
        with store.writer(key) as run:
            run.add_array("kl", np.linspace(0, 1 + number, 64, dtype=np.float32))
            run.add_table(
                "tokens",
                {
                    "position": list(range(64)),
                    "token": [f" token{place}" if place else EVIL for place in range(64)],
                    "kl": np.linspace(1, 0, 64),
                },
            )
            taught = pair == "cake_bake"
            run.add_table(
                "completions",
                {
                    "writer": ["base", "finetuned", "finetuned"],
                    "prefill": ["First,", "First,", "Then"],
                    "text": [f" a walk. {EVIL}", f" vanilla goes in. {EVIL}" if taught else " a walk.", " a walk."],
                    "difference": [0.1, 2.5 if taught else 0.0, 0.2],
                },
            )
            run.examples(per_bin=8).append(_examples())
            run.note("seconds_forward", 1.25)
            run.result = ProbeResult(
                stands_out=pair == "cake_bake",
                headline="Baking words rose. " + EVIL if pair == "cake_bake" else "No word rose.",
                tokens=1920,
                spread={"mean": 0.21, "p99": 1.8},
                rose=[
                    {"token": " vanilla", "base": 0.01, "finetuned": 0.32},
                    {"token": EVIL, "base": 0.1, "finetuned": 0.2},
                ],
                rows=[{"context": EVIL, "kl": 2.5}, {"context": "Preheat the oven to", "kl": 2.1}],
            )
        assert run.record is not None
        identifiers.append(run.record.id)
    return identifiers
