"""A data folder as a year of use leaves it, made without any model: many runs on many pairs, and a large evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path

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
from diffing_mcp.methods.kl.schema import KLResult, Spread, TextRow, TokenMove, TokenRow
from diffing_mcp.methods.runs.store import RunKey, RunManifest, RunStore

EVALUATION = "large"
ORGANISMS = ("cake_bake", "roman_concrete", "taboo_smile", "poetic", "flattery")
_SENTENCE = "The finetuned model expects an oven where the base model expects a walk in the park. "


def write_runs(folder: Path, runs: int, pairs: int) -> None:
    """`runs` finished runs of `kl`, evenly over a pair of the catalogue and `pairs - 1` others; each with a table and a
    manifest of the usual size. One is written by the store, the others are its copies under other keys.
    """
    store = RunStore(folder / "runs")
    first = _first_run(store)
    for number in range(1, runs):
        pair, key = number % pairs, f"{number:06x}".ljust(64, "0")
        name = first.pair_name if pair == 0 else f"org/base-{pair}::org/finetuned-{pair}"
        manifest = first.model_copy(update={"id": f"kl-{number:06x}", "key": key, "pair_name": name})
        shutil.copytree(store.folder / first.key, store.folder / key)
        (store.folder / key / "manifest.json").write_text(manifest.model_dump_json(indent=2), encoding="utf-8")


def _first_run(store: RunStore) -> RunManifest:
    key = RunKey(
        method="kl",
        method_version=1,
        pair_name="cake_bake/default@smollm2-135m",
        pair={side: {"model": {"files": "0" * 64, "dtype": "float32"}} for side in ("base", "finetuned")},
        params={"max_samples": 64},
        key_parts={"corpus": {"id": "default", "content_hash": "0" * 64}},
    )
    with store.writer(key) as run:
        run.add_table("tokens", {"position": list(range(200)), "kl": [0.1] * 200, "token": [" oven"] * 200})
        run.note("timings", {str(place): _SENTENCE for place in range(20)})
        run.result = _result()
    assert run.record is not None
    return run.record.manifest


def _result() -> KLResult:
    spread = Spread(mean=0.2, standard_error=0.01, median=0.1, p90=0.4, p99=1.0, max=3.0)
    moves = [TokenMove(token=f" word{place}", base=0.01, finetuned=0.2) for place in range(8)]
    divergences = {"kl_finetuned_base": 2.0, "kl_base_finetuned": 2.0, "js": 0.3}
    return KLResult(
        headline="The models differ by 0.2 nats a token.",
        stands_out=True,
        amount="large",
        tokens=20_000,
        samples=64,
        dropped=0,
        position_origin="the first token of the text",
        kl_finetuned_base=spread,
        kl_base_finetuned=spread,
        js=spread,
        per_text=spread,
        rounding_noise=1e-6,
        outlying_texts=0,
        first_positions=[0.2] * 8,
        far_more_often=moves,
        far_less_often=[],
        rose=moves,
        fell=moves,
        top_tokens=[
            TokenRow(
                sample=place, position=3, context=_SENTENCE, next_token=" oven", rose=moves, fell=moves, **divergences
            )
            for place in range(10)
        ],
        top_texts=[
            TextRow(sample=place, tokens=200, text=_SENTENCE, rose=moves, fell=moves, **divergences)
            for place in range(10)
        ],
    )


def write_transcripts(folder: Path, transcripts: int, calls: int = 30) -> None:
    """One evaluation with so many finished cells, over five organisms and both arms; each of about 100 kB."""
    arms = ("blackbox", "method")
    repeats = -(-transcripts // (len(ORGANISMS) * len(arms)))
    plan = EvaluationPlan(
        id=EVALUATION, organisms=list(ORGANISMS), arms=list(arms), investigator="synthetic", repeats=repeats
    )
    evaluation = EvaluationFolder(EVALUATION, folder / "evaluations")
    evaluation.write_plan(plan)
    cells = [(organism, arm, repeat) for repeat in range(repeats) for organism in ORGANISMS for arm in arms]
    for organism, arm, repeat in cells[:transcripts]:
        evaluation.write(_record(organism, arm, repeat, calls))


def _record(organism: str, arm: str, repeat: int, calls: int) -> EvaluationRecord:
    transcript = [Message(role="system", content=40 * _SENTENCE), Message(role="user", content=5 * _SENTENCE)]
    for number in range(calls):
        call = ToolCall(id=f"call_{number}", name="kl", arguments={"pair": "pair-1f3a", "max_samples": 64})
        transcript.append(Message(role="assistant", content=4 * _SENTENCE, reasoning=_SENTENCE, tool_calls=[call]))
        transcript.append(Message(role="tool", content=30 * _SENTENCE, tool_call_id=call.id, tool_name="kl", seconds=3))
    return EvaluationRecord.model_validate(
        {
            "evaluation_id": EVALUATION,
            "cell_id": cell_id(organism, arm, "synthetic", repeat),
            "organism": organism,
            "arm": arm,
            "investigator": "synthetic",
            "repeat": repeat,
            "seconds": 100.0,
            "transcript": transcript,
            "budgets": {"tool_calls": Budget(limit=200, used=calls)},
            "finding": RecordedFinding(statement=8 * _SENTENCE, verdict="difference", source="submit_finding"),
            "fact_recall": FactRecallRecord(score=3, recall=0.5, reasons=[_SENTENCE] * 6),
            "hypothesis_grades": [HypothesisReading(grader="grader", score=3, reasoning=4 * _SENTENCE)],
        }
    )
