"""Suite files, what they cost, and the table over them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from diffing_mcp.agents.cells import cells_of, check_continues
from diffing_mcp.agents.costs import CapReached, check_cap, cost_of, estimate, spent_on
from diffing_mcp.agents.grading import truth_of
from diffing_mcp.agents.records import (
    EvaluationFolder,
    EvaluationRecord,
    FactRecallRecord,
    RecordedFinding,
    TokenUsage,
)
from diffing_mcp.agents.suite_files import Limits, Price, SuiteFile, plans_of, presets, read_suite
from diffing_mcp.agents.summary import summarise
from diffing_mcp.agents.table import ALL, NULLS, table_of
from diffing_mcp.cli.main import app
from diffing_mcp.core.errors import InvalidInput, UnknownName
from diffing_mcp.graders.ordinal import ordered_logit, organisms_needed

MODEL = "openai/some-model"
SUITE = SuiteFile.model_validate(
    {
        "organisms": ["kettles", "kettles/other", "same"],
        "investigators": [MODEL],
        "interactions": [0, 5],
        "repeats": 2,
        "prices": {MODEL: {"input": 1.0, "output": 10.0}},
    }
)


def record(plan_id: str, organism: str, arm: str, repeat: int, score: int, **values: object) -> EvaluationRecord:
    null = organism == "same"
    return EvaluationRecord.model_validate(
        {
            "evaluation_id": plan_id,
            "cell_id": next(cell.id for cell in cells_of(plans_of("s", SUITE)[0])
                            if (cell.organism, cell.arm, cell.repeat) == (organism, arm, repeat)),
            "organism": organism,
            "null": null,
            "arm": arm,
            "investigator": MODEL,
            "repeat": repeat,
            "seconds": 36.0,
            "usage": [TokenUsage(model=MODEL, input_tokens=900, output_tokens=100, total_tokens=1000)],
            "finding": RecordedFinding(statement="x", verdict="no_meaningful_difference" if null else "difference",
                               likelihood=0.9, source="submit_finding"),
            "fact_recall": FactRecallRecord(score=score, recall=(score - 1) / 4, topic_named=score > 2, precision=0.5),
            **values,
        }
    )  # fmt: skip


def finished(grades: dict[str, int]) -> list[EvaluationRecord]:
    """A record for each cell, with the arm's grade (one less on the second organism)."""
    return [
        record("s", organism, arm, repeat, max(1, grade - (organism == "kettles/other")))
        for arm, grade in grades.items()
        for organism in SUITE.organisms
        for repeat in range(2)
    ]


def test_the_presets_are_suites_with_ground_truth() -> None:
    assert {
        "bundled",
        "hard",
        "activation-difference-study",
        "diff-mining-study",
        "auditbench",
        "model-diffing-agents",
    } <= set(presets())
    for name in presets():
        found, suite = read_suite(name)
        assert found == name
        assert suite.description
        assert len({plan.id for plan in plans_of(name, suite)}) == len(suite.investigators) * len(suite.interactions)


def test_the_hard_suite_can_show_false_positives_as_well() -> None:
    suite = presets()["hard"]
    nulls = [organism for organism in suite.organisms if truth_of(organism).is_null]
    assert len(nulls) >= 12
    assert len(suite.organisms) - len(nulls) >= 5
    assert suite.repeats >= 5
    assert {"blackbox", "method"} <= set(suite.arms)


def test_a_file_with_mistakes_is_explained(tmp_path: Path) -> None:
    def written(**values: object) -> str:
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return str(file)

    assert read_suite(written(organisms=["cake_bake"]))[0] == "mine"
    for values, said in (
        ({"organisms": ["cake_bake"], "arms": ["greybox"]}, "greybox"),
        ({"organisms": []}, "organisms"),
        ({"organisms": ["cake_bake"], "repeat": 3}, "repeat"),
        ({"organisms": ["cake_bake"], "investigators": [MODEL], "cap": {"money": 1}}, "prices"),
        ({"organisms": ["cake_bake"], "grader": "openai/reader", "cap": {"money": 1}}, "prices.*openai/reader"),
    ):
        with pytest.raises(InvalidInput, match=said):
            read_suite(written(**values))
    with pytest.raises(UnknownName, match="ground truth"):
        read_suite(written(organisms=["nothing"]))
    with pytest.raises(UnknownName, match="bundled"):
        read_suite("no-such-suite")
    (tmp_path / "broken.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(InvalidInput, match="not a YAML file"):
        read_suite(str(tmp_path / "broken.yaml"))


def test_what_stands_twice_in_a_suite_is_run_once() -> None:
    twice = SuiteFile(organisms=("same", "same"), arms=("method", "method"), investigators=("baseline", "baseline"))
    assert [cell.id for plan in plans_of("s", twice) for cell in cells_of(plan)] == ["same--method--baseline--r0"]


def test_growing_a_suite_continues_it() -> None:
    more = SUITE.model_copy(update={"repeats": 9, "organisms": ("kettles",)})
    assert [plan.id for plan in plans_of("s", more)] == [plan.id for plan in plans_of("s", SUITE)]
    other = SUITE.model_copy(update={"seed": 1})
    assert not {plan.id for plan in plans_of("s", other)} & {plan.id for plan in plans_of("s", SUITE)}


def test_costs_rest_on_finished_investigations_and_else_on_limits(evaluation_settings: Path) -> None:
    plans = plans_of("s", SUITE)
    before = estimate(SUITE, plans)
    assert (before.cells, before.measured, before.bounded) == (24, 0, 24)
    assert before.spent.tokens == 24 * SUITE.limits.token_limit
    folder = EvaluationFolder(plans[0].id)
    folder.write_plan(plans[0])
    folder.write(record(plans[0].id, "kettles", "method", 0, 3))
    after = estimate(SUITE, plans)
    assert (after.cells, after.measured, after.bounded) == (23, 11, 12)
    assert after.spent.tokens == 11 * 1000 + 12 * SUITE.limits.token_limit
    same_budget = {"budgets": {"model_interactions": {"limit": 5, "used": 5}}, "seconds": 360.0}
    folder.write(record(plans[0].id, "kettles", "method", 1, 3, **same_budget))
    # Of the budgets 0 and 5, only the second has been run with that budget: six cells at ten times the hours.
    assert estimate(SUITE, plans[1:]).spent.hours == pytest.approx(6 * 0.1 + 6 * SUITE.limits.time_limit / 3600)
    spent = spent_on(folder.records()[:1], SUITE.prices)
    assert (spent.tokens, spent.hours) == (1000, 0.01)
    assert spent.money == pytest.approx((900 * 1.0 + 100 * 10.0) / 1e6)
    assert spent_on(folder.records(), {}).money is None
    check_cap(SUITE, spent)
    with pytest.raises(CapReached, match="tokens"):
        check_cap(SUITE.model_copy(update={"cap": SUITE.cap.model_copy(update={"tokens": 1000})}), spent)


def test_money_counts_what_the_provider_had_cached_and_what_failed() -> None:
    """Of an agent nearly all input is: with caching the sum, and the cap on it, missed most of it."""
    used = TokenUsage(model=MODEL, input_tokens=100, cache_read_tokens=1000, cache_write_tokens=200, output_tokens=10,
                      total_tokens=1310)  # fmt: skip
    done = record("s", "kettles", "method", 0, 3, usage=[used], former_usage=[used], former_seconds=36.0)
    dear, cheap = Price(input=1, output=10), Price(input=1, output=10, cache_read=0.1, cache_write=1.25)
    assert cost_of(done, {MODEL: dear}).money == pytest.approx(1400e-6)
    assert cost_of(done, {MODEL: cheap}).money == pytest.approx((100 + 100 + 250 + 100) * 1e-6)
    spent = spent_on([done], {MODEL: cheap})
    assert (spent.tokens, spent.money, spent.hours) == (2620, pytest.approx(1100e-6), 0.02)


def test_a_cap_on_money_holds_where_a_price_is_missing() -> None:
    """What an unpriced grader takes made the sum unknown, and a suite with an unknown sum was never stopped."""
    capped = SUITE.model_copy(update={"cap": SUITE.cap.model_copy(update={"money": 100.0})})
    read = TokenUsage(model="openai/reader", input_tokens=5, total_tokens=5)
    check_cap(capped, spent_on(finished({"method": 3}), SUITE.prices))
    with pytest.raises(CapReached, match="openai/reader"):
        check_cap(capped, spent_on([record("s", "kettles", "method", 0, 3, grading_usage=[read])], SUITE.prices))
    check_cap(SUITE, spent_on([record("s", "kettles", "method", 0, 3, grading_usage=[read])], SUITE.prices))


def test_a_suite_may_be_called_anything(tmp_path: Path) -> None:
    ids = set()
    for name in ("my suite", "猫", "犬", "a"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"organisms": ["cake_bake"], "investigators": ["openai/модель"]}), "utf-8")
        (suite_plan,) = plans_of(*read_suite(str(file)))
        ids.add(EvaluationFolder(suite_plan.id, tmp_path).id)
    assert len(ids) == 4


def test_another_limit_is_another_evaluation() -> None:
    """A suite with longer investigations printed the grades of the short ones that were stored."""
    short = SUITE.model_copy(update={"limits": Limits(token_limit=25_000)})
    assert not {plan.id for plan in plans_of("s", short)} & {plan.id for plan in plans_of("s", SUITE)}
    with pytest.raises(InvalidInput, match="token_limit=25000, not its default"):
        check_continues(plans_of("s", short)[0], plans_of("s", SUITE)[0])
    assert estimate(SUITE, plans_of("s", SUITE)).measured == 0
    at_a_time = SUITE.model_copy(update={"limits": Limits(max_samples=1)})
    assert [plan.id for plan in plans_of("s", at_a_time)] == [plan.id for plan in plans_of("s", SUITE)]
    baseline = SUITE.model_copy(update={"investigators": ("baseline",)})
    fewer = [plan.id for plan in plans_of("s", baseline, overview_samples=8)]
    assert not set(fewer) & {plan.id for plan in plans_of("s", baseline)}


def test_a_suite_refuses_options_that_it_does_not_heed() -> None:
    refused = CliRunner().invoke(app, ["evaluate", "bundled", "--investigator", MODEL, "--repeats", "3", "--estimate"])
    assert isinstance(refused.exception, InvalidInput)
    assert "--investigator, --repeats" in str(refused.exception)


def test_a_table_that_cannot_be_written_is_refused_before_anything_runs(
    evaluation_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After hours of a suite the suffix was refused, and the table was not printed either."""

    def begun(*given: object) -> None:
        raise AssertionError("it began")

    monkeypatch.setattr("diffing_mcp.cli.evaluate._investigate", begun)
    asked = ["evaluate", "--organisms", "kettles", "--output", str(tmp_path / "table.xlsx")]
    with pytest.raises(InvalidInput, match="parquet"):
        CliRunner().invoke(app, asked, catch_exceptions=False, standalone_mode=False)


def test_the_table_and_the_summary_count_the_same_false_positives() -> None:
    """An inconclusive verdict over a statement that asserts was one in the summary alone."""
    plan = plans_of("s", SUITE)[0]
    asserted = FactRecallRecord(score=1, recall=0, false_positive=True)
    said = RecordedFinding(statement="It was trained on trams.", verdict="inconclusive")
    found = [record(plan.id, "same", "method", repeat, 1, finding=said, fact_recall=asserted) for repeat in range(2)]
    row = next(row for row in table_of([(plan, found)]).rows if row.organism == NULLS)
    (arm,) = summarise(found).arms
    assert row.false_positives == arm.false_positive_rate
    assert row.false_positives is not None
    assert row.false_positives.estimate == 1


def test_grades_of_two_graders_are_not_averaged() -> None:
    """Where the LLM grader had failed the deterministic grade took its place, in the same mean."""
    read = {"grader": MODEL, "score": 2.0}
    found = [
        record("s", "kettles", arm, repeat, 5, hypothesis_grades=[read] if repeat == 0 else [{**read, "score": None}])
        for arm in ("method", "blackbox")
        for repeat in range(2)
    ]
    table = table_of([(plans_of("s", SUITE)[0], found)])
    row = next(row for row in table.rows if (row.arm, row.organism) == ("method", ALL))
    assert row.grade is not None
    assert row.grade_by_words is not None
    assert (row.grade.estimate, row.grade.count, row.ungraded, row.grade_by_words.estimate) == (2.0, 1, 1, 5.0)
    assert table.comparisons[0].grade is not None
    assert table.comparisons[0].grade.count == 1
    assert any("2 findings have no grade" in note for note in table.notes())


def test_one_organism_is_not_known_without_error() -> None:
    """Its mean over several runs was shown with an interval of no width."""
    found = [
        record("s", "kettles", arm, repeat, grade, claims=[])
        for arm, grades in (("method", (2, 5)), ("blackbox", (2, 3)))
        for repeat, grade in enumerate(grades)
    ]
    summary = summarise(found)
    (comparison,) = table_of([(plans_of("s", SUITE)[0], found)]).comparisons
    for interval in (summary.arms[0].fact_recall, summary.method_minus_blackbox, comparison.grade):
        assert interval is not None
        assert interval.low < interval.estimate < interval.high


def test_later_repeats_are_counted_at_what_later_repeats_took(evaluation_settings: Path) -> None:
    suite = SUITE.model_copy(update={"arms": ("method",), "interactions": (5,), "repeats": 5})
    plan = plans_of("s", suite)[0]
    folder = EvaluationFolder(plan.id)
    folder.write_plan(plan)
    folder.write(record(plan.id, "kettles", "method", 0, 3, seconds=3600.0))
    folder.write(record(plan.id, "kettles", "method", 1, 3, seconds=36.0))
    # Three more of kettles; of the two other organisms a first one and four more each.
    assert estimate(suite, [plan]).spent.hours == pytest.approx(2 * 1.0 + (3 + 2 * 4) * 0.01)


def test_the_table_says_what_an_arm_is_worth(tmp_path: Path) -> None:
    plan = plans_of("s", SUITE)[0]
    table = table_of([(plan, finished({"blackbox": 2, "method": 4}))], {MODEL: Price(input=1, output=10)})
    rows = {(row.arm, row.organism): row for row in table.rows}
    grade, false = rows["method", ALL].grade, rows["method", NULLS].false_positives
    assert grade is not None
    assert grade.estimate == 3.5
    assert false is not None
    assert false.estimate == 0
    assert rows["method", "kettles"].tokens_per_grade_point == pytest.approx(1000 / 3)
    assert rows["method", ALL].brier == pytest.approx(0.01)
    (comparison,) = table.comparisons
    assert comparison.grade is not None
    assert (comparison.grade.estimate, comparison.grade.low, comparison.grade.high) == (2, 2, 2)
    assert comparison.log_odds is None, "arms that are separated completely have no finite odds ratio"
    for suffix in (".parquet", ".csv", ".md"):
        table.write(tmp_path / f"table{suffix}")
    frame = pd.read_parquet(tmp_path / "table.parquet")
    assert len(frame) == len(table.rows)
    assert frame.set_index(["arm", "organism"]).loc[("method", ALL), "grade"] == 3.5
    assert "method minus blackbox" in (tmp_path / "table.md").read_text(encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"\.parquet"):
        table.write(tmp_path / "table.xlsx")


def test_ordered_logit_recovers_a_planted_odds_ratio() -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    organisms = [index % 40 for index in range(800)]
    cuts = np.array([-1.0, 0.0, 1.0])

    def grades(shift: float) -> list[int]:
        return [int((shift + generator.logistic() > cuts).sum()) + 1 for _ in organisms]

    found = ordered_logit(grades(1.5), grades(0.0), organisms)
    assert found is not None
    assert found.low < 1.5 < found.high
    assert found.high - found.low < 1
    assert ordered_logit([3, 3], [3, 3], [0, 1]) is None


@pytest.mark.parametrize(
    ("first", "second"), [([5, 4, 4, 4, 4], [4] * 5), ([5] * 5, [4, 4, 4, 4, 5]), ([4] * 5, [5, 4, 4, 4, 4])]
)
def test_an_arm_that_is_never_worse_has_no_finite_odds_ratio(first: list[int], second: list[int]) -> None:
    """One better grade of five was reported as log odds 10.9 [8.1, 13.7], where the fit happened to stop."""
    assert ordered_logit(first, second, list(range(5))) is None


@settings(max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=4, max_size=30), st.integers(0, 10_000))
def test_equal_arms_have_no_odds_ratio_but_one(scores: list[int], seed: int) -> None:
    found = ordered_logit(scores, scores, list(range(len(scores))))
    if len(set(scores)) < 2:
        assert found is None
    elif found is not None:
        assert abs(found.estimate) < 1e-3
        assert found.low <= 0 <= found.high


def test_grades_that_are_all_different_leave_no_odds_ratio() -> None:
    """Means of a grader's readings on two organisms: as many levels as grades ended the table in a division by zero."""
    assert ordered_logit([10 / 3, 14 / 3], [4.0, 3.0], ["a", "b"]) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(3, 15), st.integers(3, 15), st.sampled_from("abc")), min_size=1, max_size=5),
)
def test_no_few_grades_end_the_table(cells: list[tuple[int, int, str]]) -> None:
    found = ordered_logit([a / 3 for a, _, _ in cells], [b / 3 for _, b, _ in cells], [at for _, _, at in cells])
    assert found is None or found.low <= found.estimate <= found.high


def test_a_difference_that_is_rounding_needs_no_organisms() -> None:
    """Repeats that cancel out on every organism were said to show a difference with 26 organisms."""
    first, second = [13 / 3, 13 / 3, 4.0], [4.0, 4.0, 14 / 3]
    cancelled = sum(a - b for a, b in zip(first, second, strict=True)) / 3
    assert cancelled != 0, "it is not exactly nothing"
    assert organisms_needed([cancelled, 0.0, 0.0]) is None
    assert organisms_needed([1 + cancelled, 1.0, 1.0]) == 3


def test_more_spread_needs_more_organisms() -> None:
    few, many = organisms_needed([1.0, 1.2, 0.8, 1.1]), organisms_needed([1.0, -0.6, 1.8, -0.2])
    assert few is not None
    assert many is not None
    assert few < many
    assert organisms_needed([1.0, 1.0]) is None
    assert organisms_needed([0.0, 0.0, 0.0]) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the solver's complaint stood above the table
        assert organisms_needed([0.1, 0.2, -0.3]) is None


def test_claims_abstentions_and_validated_findings_have_columns() -> None:
    plan = plans_of("s", SUITE)[0]
    words = {"grader": "words", "right": 3, "wrong": 1, "precision": 0.75, "abstains": False, "validated": True}
    model = {"grader": MODEL, "right": 1, "wrong": 1, "precision": 0.5, "abstains": True, "validated": False}
    cited = [{"test_id": "test-1", "counted": "answers with cake", "verdict": "raised", "validates": True}]
    records = [
        record(plan.id, "kettles", "method", 0, 4, claims=[words, model], tests=cited),
        record(plan.id, "kettles", "method", 1, 2, claims=[{**words, "precision": None, "validated": False}]),
        record(plan.id, "same", "method", 0, 5, claims=[{**words, "precision": None, "validated": None}]),
    ]
    row = next(row for row in table_of([(plan, records)]).rows if row.organism == ALL)
    assert row.claim_precision is not None
    assert row.claim_precision_llm is not None
    assert (row.claim_precision.estimate, row.claim_precision_llm.estimate) == (0.75, 0.5)
    shares = [each and each.estimate for each in (row.tested, row.validated, row.validated_llm, row.abstained)]
    assert shares == [0.5, 0.5, 0.0, 0.0]
    assert row.abstained_llm is not None
    frame = table_of([(plan, records)]).frame()
    assert {"claim_precision_low", "validated_high", "abstained_llm", "tested"} <= set(frame.columns)
    assert "0.75 (LLM 0.50)" in table_of([(plan, records)]).markdown()
