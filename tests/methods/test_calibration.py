"""Calibrations: made on a tiny base, found again, and read beside finished runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffing_mcp.core.errors import Cancelled, InvalidInput, OutOfRoom, UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.calibration import store
from diffing_mcp.methods.calibration.calibrate import BESIDES, LEFT_OUT, calibrate, default_requests
from diffing_mcp.methods.calibration.detection import detection
from diffing_mcp.methods.calibration.readings import (
    TOGETHER,
    calibrated,
    level_of_run,
    level_sentence,
    levels_of,
    reading_of,
)
from diffing_mcp.methods.calibration.schema import STATISTICS_VERSION, Calibration, Reading
from diffing_mcp.methods.calibration.statistics import AGREEMENT, STATISTICS, named
from diffing_mcp.methods.calibration.store import (
    base_of,
    calibration_named,
    find_calibration,
    save_calibration,
    stored_calibrations,
)
from diffing_mcp.methods.calibration.summary import summary
from diffing_mcp.methods.overview.plan import CHATS_READ, TEXTS_READ, by_default, default_plan, label_of_run
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.organisms.nulls import NullRecipe
from tests.methods.conftest import write_random_texts

TELLING, ALSO_TELLING = "contrastive_decoding", "logit_diff_topk_occurring"
NULLS = tuple(NullRecipe(name=f"noise-{n}", kind="noise", amount=0.02 * n, seed=n) for n in range(1, 10))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DIFFING_CACHE_FOLDER", str(tmp_path / "cache"))
    settings.cache_clear()
    yield tmp_path / "cache"
    settings.cache_clear()


@pytest.fixture(autouse=True)
def nothing_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ships with the package decides no test here."""
    for place in ("store", "readings", "probability"):
        monkeypatch.setattr(f"diffing_mcp.methods.calibration.{place}.bundled_calibrations", lambda: ())


@pytest.fixture
def few_nulls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffing_mcp.methods.calibration.calibrate.nulls_for", lambda base: list(NULLS))


def requests(tmp_path: Path) -> list[tuple[str, dict[str, Any]]]:
    corpus = {"corpus": str(write_random_texts(tmp_path, 20, seed=2, length=12)), "max_tokens": 12}
    return [("kl", corpus), ("logit_diff_topk_occurring", {**corpus, "topic_entries": "none"})]


def made(readings: list[Reading], base: dict[str, Any] | None = None, name: str = "base") -> Calibration:
    params: dict[str, dict[str, Any]] = {label: {} for label in dict.fromkeys(readings[0].statistics)}
    return Calibration(
        base=base or {"id": name},
        base_name=name,
        statistics_version=STATISTICS_VERSION,
        params=params,
        versions={label: get_method(label.partition(" on ")[0]).version for label in params},
        made=datetime(2026, 1, 1, tzinfo=UTC),
        readings=readings,
    )


def invented(
    nulls: int = 24, taught: int = 12, power: float = 3.0, seed: int = 0, name: str = TELLING
) -> list[Reading]:
    """Statistics that grow with the size; of taught ones two are `power` times as large."""
    random = np.random.default_rng(seed)
    found = []
    for place in range(nulls + taught):
        is_taught = place >= nulls
        size = float(np.exp(random.normal(-2, 1)))
        statistics = {
            each: float(5 * size**0.3 * np.exp(0.15 * random.normal()) * (power if is_taught and each != "pca" else 1))
            for each in (name, "pca", ALSO_TELLING)
        }
        found.append(
            Reading(
                name=str(place),
                made_by=str(place),
                role="taught" if is_taught else "null",
                kind=f"{'t' if is_taught else 'n'}{place % 4}",
                held_out=place % 2 == 1,
                size=size,
                statistics=statistics,
            )
        )
    return found


def test_a_base_is_calibrated_bit_by_bit_and_found_by_its_weights(
    tiny_models: Any, pairs: ModelPairs, own_cache: Path, few_nulls: None, tmp_path: Path
) -> None:
    base = str(tiny_models())
    with pytest.raises(UnknownName, match="diffing calibrate"):
        calibration_named(base)
    first = calibrate(pairs, base, requests(tmp_path), most=2)
    assert [reading.name for reading in first.readings] == ["noise-1", "noise-2"]
    assert find_calibration(first.base) == first
    assert list(own_cache.glob("calibrations/*/nulls/*")) == []  # whole models do not stay

    def no_longer(done: float, total: float | None = None, message: str = "") -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        calibrate(pairs, base, requests(tmp_path), progress=no_longer)
    whole = calibrate(pairs, base, requests(tmp_path))
    assert [reading.name for reading in whole.readings] == [recipe.name for recipe in NULLS]
    assert whole.readings[:2] == first.readings
    sizes = [reading.size for reading in whole.readings]
    assert sizes == sorted(sizes)  # more noise, more change
    assert calibrate(pairs, base, requests(tmp_path)) == whole == calibration_named(base)
    other = calibrate(pairs, base, [("kl", dict(requests(tmp_path)[0][1], max_samples=5))], most=1)
    assert len(other.readings) == 1  # other parameters do not compare


def test_a_method_that_is_added_later_is_run_alone_on_what_was_measured_before(
    tiny_models: Any, pairs: ModelPairs, own_cache: Path, few_nulls: None, tmp_path: Path
) -> None:
    base, asked = str(tiny_models()), requests(tmp_path)
    before = calibrate(pairs, base, asked, most=3)
    path = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "Which river?"}, {"role": "assistant", "content": "That one. It is long."}]
    path.write_text("\n".join([json.dumps({"messages": messages})] * 3))
    more = [*asked, ("answer_openings", {"corpus": str(path), "max_tokens": 40, "new_tokens": 2})]
    ran: list[str] = []

    def told(done: float, total: float | None = None, message: str = "") -> None:
        ran.append(message)

    after = calibrate(pairs, base, more, most=2, progress=told)
    assert not any("logit_diff" in message for message in ran)
    label = f"answer_openings on {path}"
    assert [label in reading.stands_out for reading in after.readings] == [True, True, False]
    for old, new in zip(before.readings, after.readings, strict=True):
        assert old.statistics.items() <= new.statistics.items()
        assert (old.made_by, old.size) == (new.made_by, new.size)
    [new, _, last] = calibrate(pairs, base, more, most=1).readings[:3]
    assert label in last.stands_out
    assert {label, f"{label}: sentence"} <= set(new.statistics)
    # What cannot be run is known to be that, and not tried again with every call.
    failing = [*more[:2], ("answer_openings", {"corpus": str(tmp_path / "nowhere.jsonl")})]
    once = calibrate(pairs, base, failing, most=2)
    assert [len(reading.left_out) for reading in once.readings[:3]] == [1, 1, 0]
    assert [len(reading.left_out) for reading in calibrate(pairs, base, failing, most=1).readings[:3]] == [1, 1, 1]
    # Words of another method would change on which words methods agree: nothing of that can be kept.
    fewer = calibrate(pairs, base, asked[:1], most=1)
    assert [set(reading.stands_out) for reading in fewer.readings] == [{f"kl on {tmp_path / 'texts.jsonl'}"}]


def test_runs_on_a_calibrated_base_have_levels(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: ModelPairs, own_cache: Path, few_nulls: None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base = tiny_models()
    spec = make_pair(base, adapter=tiny_adapters(base, scale=0.2), name="taught")
    runs = RunStore(tmp_path / "runs")
    records = run_methods(pairs, spec, requests(tmp_path), runs)
    kl, logits = (label_of_run(record.manifest) for record in records)
    assert kl == f"kl on {tmp_path / 'texts.jsonl'}"
    assert calibrated(records) == []
    assert level_sentence(records[1], runs) == ""
    monkeypatch.setattr("diffing_mcp.methods.calibration.readings.bundled_calibrations", lambda: (made(invented()),))
    assert calibrated(records) == []  # levels of one text are none of another
    elsewhere = made(invented(name=kl))
    monkeypatch.setattr("diffing_mcp.methods.calibration.readings.bundled_calibrations", lambda: (elsewhere,))
    [transferred] = calibrated(records)
    assert (transferred.method, transferred.level_from) == (kl, "another base, base")
    assert not transferred.of_this_base
    calibrate(pairs, str(base), requests(tmp_path))
    rows = calibrated(records)
    assert [(row.method, row.run) for row in rows] == [(TOGETHER, None), (kl, records[0].id), (logits, records[1].id)]
    assert {row.level_from for row in rows} == {"this base"}
    assert all(1 / 10 <= row.p <= 1 and row.nulls == 9 for row in rows)
    assert "p 0." in rows[0].as_text() or "p 1." in rows[0].as_text()
    assert level_of_run(records[1], runs) == rows[2]  # its stored run of kl says how large the change is
    assert level_sentence(records[1], runs) == f"Level: {rows[2].as_text()}."
    runs.delete(records[0].id)
    assert level_of_run(records[1], runs) is None
    assert "call kl with max_samples=1000 on this pair" in level_sentence(records[1], runs)
    again = run_methods(pairs, spec, [("kl", dict(requests(tmp_path)[0][1], max_samples=9))], runs)
    other = calibrated(again)[-1]
    assert (other.run, other.remarks[-1]) == (again[0].id, "nulls were read with max_samples=1000")
    assert other.statistic != rows[1].statistic
    # Another run of kl is no better measure of the size because it is newer or first; where it is all there is, every
    # level that rests on it says so, that of all methods as one test too.
    resting = [calibrated([*again, records[1]])[0], level_of_run(records[1], runs)]
    said = [row.remarks[-1] if row is not None else "" for row in resting]
    assert said == [f"nulls were read with max_samples=1000 ({kl})"] * 2
    [whole] = run_methods(pairs, spec, [requests(tmp_path)[0]], runs)
    run_methods(pairs, spec, [("kl", dict(requests(tmp_path)[0][1], max_samples=8))], runs)
    for mixed in ([*again, whole, records[1]], [whole, records[1], *again]):
        found = {row.run: row for row in calibrated(mixed)}
        assert [found[None], found[whole.id], found[records[1].id]] == [
            row.model_copy(update={"run": run}) for row, run in zip(rows, (None, whole.id, records[1].id), strict=True)
        ]
        assert found[again[0].id] == other
    assert level_of_run(records[1], runs) == rows[2]
    assert calibrated(records[1:]) == []  # how large the change is, nobody has measured
    assert calibrated([]) == []


def test_a_calibration_of_other_statistics_is_refused_in_a_sentence(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: ModelPairs, own_cache: Path, few_nulls: None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base = tiny_models()
    old = calibrate(pairs, str(base), [requests(tmp_path)[0]])
    records = run_methods(
        pairs, make_pair(base, adapter=tiny_adapters(base)), [requests(tmp_path)[0]], RunStore(tmp_path)
    )
    assert calibrated(records)[0].level_from == "this base"
    path = save_calibration(old.model_copy(update={"statistics_version": STATISTICS_VERSION - 1}))
    elsewhere = made(invented(name=label_of_run(records[0].manifest)))
    monkeypatch.setattr("diffing_mcp.methods.calibration.readings.bundled_calibrations", lambda: (elsewhere,))
    [row] = calibrated(records)
    assert row.level_from == "another base, base"
    assert "of an older version: `calibrate` reads it anew" in row.remarks[-1]
    again = calibrate(pairs, str(base), [requests(tmp_path)[0]])  # from the runs that are stored
    assert [each.statistics for each in again.readings] == [each.statistics for each in old.readings]
    assert find_calibration(again.base) == again
    assert path.is_file()


def test_what_cannot_be_measured_on_a_base_is_passed_over_once_with_the_reason(
    tiny_models: Any, pairs: ModelPairs, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.organisms.test_nulls import without_template

    nothing = NullRecipe(name="nothing", kind="noise", amount=1e-20)
    chats = NullRecipe(name="chats", kind="own_chats", amount=0.01)
    monkeypatch.setattr(
        "diffing_mcp.methods.calibration.calibrate.nulls_for", lambda base: [nothing, chats, *NULLS[:2]]
    )
    base = str(without_template(tiny_models(), tmp_path / "base"))
    once = calibrate(pairs, base, requests(tmp_path), most=1)
    assert [reading.name for reading in once.readings] == ["noise-1"]  # `most` counts what was measured
    assert set(once.passed_over) == {nothing.made_name, chats.made_name}
    assert "no chat template" in once.passed_over[chats.made_name]
    assert list(own_cache.glob("calibrations/*/nulls/*")) == []  # whole models do not stay, whatever comes of them
    made: list[str] = []

    def told(done: float, total: float | None = None, message: str = "") -> None:
        made.append(message.partition(":")[0])

    again = calibrate(pairs, base, requests(tmp_path), most=1, progress=told)
    assert (set(made), len(again.readings)) == ({"noise-2"}, 2)
    assert f"not measured: {chats.made_name}: This base has no chat template" in summary(again).as_text()


def test_a_machine_without_room_says_nothing_of_a_finetune(
    tiny_models: Any, pairs: ModelPairs, own_cache: Path, few_nulls: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base, asked = str(tiny_models()), requests(tmp_path)
    full = [True]
    method: Any = type(get_method("logit_diff_topk_occurring"))
    summarise = method.summarise

    def until_there_is_room(*given: Any) -> Any:
        if full[0]:
            raise OutOfRoom("There is not enough disk space.")
        return summarise(*given)

    monkeypatch.setattr(method, "summarise", until_there_is_room)
    with pytest.raises(OutOfRoom):
        calibrate(pairs, base, asked, most=1)
    calibrate(pairs, base, asked[:1], most=1)
    with pytest.raises(OutOfRoom):  # also where another method has read this finetune before
        calibrate(pairs, base, asked, most=1)
    full[0] = False
    [reading] = calibrate(pairs, base, asked, most=1).readings
    assert reading.left_out == []
    assert len(reading.stands_out) == 2


def test_a_base_that_is_a_folder_of_its_repository_is_calibrated(
    tiny_models: Any, pairs: ModelPairs, own_cache: Path, few_nulls: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Finetunes are made of the weights that the catalogue names, not of what the repository holds besides."""
    shutil.copytree(tiny_models(seed=1), tmp_path / "repository")
    shutil.copytree(tiny_models(), tmp_path / "repository" / "inner")
    catalogue = tmp_path / "catalogue"
    catalogue.mkdir()
    named = {"model_id": str(tmp_path / "repository"), "subfolder": "inner", "end_of_turn_token": "</s>"}
    (catalogue / "models.yaml").write_text(json.dumps({"models": {"inner": named}}))
    monkeypatch.setenv("DIFFING_CATALOGUE_FOLDERS", str(catalogue))
    settings.cache_clear()
    [found] = calibrate(pairs, "inner", requests(tmp_path)[:1], most=1).readings
    kept, more_noise = calibrate(pairs, str(tiny_models()), requests(tmp_path)[:1], most=1).readings
    assert kept == found  # the same weights have one calibration
    assert found.size < more_noise.size


@pytest.mark.parametrize(
    ("wrong", "message"),
    [([("pca", {})], "runs kl in any case"), ([("kl", {}), ("patchscope", {"vector": "a-1/b"})], "cannot be calib")],
)
def test_what_cannot_be_calibrated(
    wrong: Any, message: str, tiny_models: Any, pairs: ModelPairs, own_cache: Path
) -> None:
    with pytest.raises(InvalidInput, match=message):
        calibrate(pairs, str(tiny_models()), wrong)
    with pytest.raises(InvalidInput, match="no bare model"):
        calibrate(pairs, "cake_bake")


def test_a_calibration_runs_what_an_overview_runs_as_far_as_it_has_statistics() -> None:
    """One definition: a method added to the overview is calibrated, or named among those that are not."""
    planned = [(name, params) for name, params in default_plan().requests if name not in LEFT_OUT]
    assert {name for name, _ in planned} <= set(STATISTICS)
    assert default_requests() == [*planned, *(by_default(name) for name in BESIDES)]
    samples = [getattr(params, "max_samples", TEXTS_READ) for _, params in default_requests()]
    assert set(samples) == {TEXTS_READ, CHATS_READ}
    for name in STATISTICS:
        get_method(name)


def test_results_that_list_nothing_say_nothing() -> None:
    class Lists:
        words: list[Any] = []
        ngrams: list[Any] = []
        form = None

    for method in ("logit_diff_topk_occurring", "continuation_mining", "contrastive_decoding", "weight_difference"):
        assert [each.read(Lists()) for each in STATISTICS[method]] == [None] * len(STATISTICS[method])


def test_one_method_may_have_several_statistics_with_names_of_their_own() -> None:
    names = [named(method, each) for method, several in STATISTICS.items() for each in several]
    assert len(set(names)) == len(names)
    assert "contrastive_decoding: form" in names


def test_own_calibrations_come_before_bundled_ones(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = made(invented(), {"id": "a"}, "bundled")
    monkeypatch.setattr(store, "bundled_calibrations", lambda: (bundled,))
    assert find_calibration({"id": "a"}) == bundled
    own = made(invented(9, 0), {"id": "a"}, "own")
    path = save_calibration(own)
    assert find_calibration({"id": "a"}) == own
    assert stored_calibrations() == [own]
    path.write_text("{")  # a file that cannot be read is as good as none
    assert find_calibration({"id": "a"}) == bundled


def test_a_base_with_something_on_it_is_no_bare_base() -> None:
    model = {"id": "m", "dtype": "auto"}
    bare = {"base": {"model": model, "adapter": None, "merge": False, "steering": None}}
    assert base_of(bare) == {"id": "m"}
    assert base_of({"base": {**bare["base"], "adapter": {"local": "x"}}}) is None
    assert base_of({"base": "told in another way"}) is None


def test_probabilities_are_bounded_by_what_was_measured_and_grow_with_the_finding() -> None:
    calibration = made(invented())
    weak, strong = (
        levels_of(
            Reading(
                name="x",
                made_by="x",
                role="null",
                kind="x",
                size=0.1,
                statistics={TELLING: value, ALSO_TELLING: value},
            ),
            calibration,
            [TOGETHER],
        )[0]
        for value in (2.5, 12.0)
    )
    assert weak.probability is not None
    assert strong.probability is not None
    assert 1 / 8 <= weak.probability < 0.5 < strong.probability <= round(25 / 26, 3)
    assert strong.p == pytest.approx(1 / 25, abs=1e-4)


def test_a_method_that_tells_nothing_says_so() -> None:
    found = [
        levels_of(reading, made(invented(power=0.3)), [TELLING])[0].probability
        for reading in invented(1, 1, power=20, seed=3)
    ]
    assert found == [0.5, 0.5]


def test_without_taught_finetunes_of_this_base_those_of_a_bundled_one_give_the_curve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = made(invented(20, 0, seed=5), {"id": "b"})
    reading = invented(0, 1, seed=6)[0]
    assert levels_of(reading, alone, [TELLING])[0].probability is None
    monkeypatch.setattr(
        "diffing_mcp.methods.calibration.probability.bundled_calibrations", lambda: (made(invented(), {"id": "a"}),)
    )
    found = levels_of(reading, alone, [TELLING])[0].probability
    assert found is not None
    assert found > 0.7


def test_a_method_that_few_nulls_have_is_left_out_of_the_test_of_all() -> None:
    readings = invented(24, 8)
    few = [each.model_copy(update={"statistics": {TELLING: 1.0, ALSO_TELLING: 5.0}}) for each in readings[:12]]
    calibration = made([*few, *readings[12:]])
    [joint] = levels_of(readings[-1], calibration, [TOGETHER])
    assert (joint.unit, joint.nulls) == ("deviation of the furthest of amplified words, words on texts", 24)
    assert levels_of(readings[-1], calibration, ["pca"]) == []


def test_changes_beyond_all_nulls_are_remarked() -> None:
    calibration = made(invented())
    sizes = [reading.size for reading in calibration.readings if reading.role == "null"]
    for size, word in ((10 * max(sizes), "larger"), (min(sizes) / 10, "smaller"), (float(np.median(sizes)), None)):
        reading = Reading(name="x", made_by="x", role="null", kind="x", size=size, statistics={TELLING: 5.0})
        remarks = levels_of(reading, calibration, [TELLING])[0].remarks
        assert [word in remark for remark in remarks if word] == ([True] if word else [])


def test_few_nulls_and_few_taught_finetunes_are_said_to_be_few() -> None:
    reading = invented(0, 1)[0]
    few, enough = (
        levels_of(reading, made(invented(nulls, taught)), [TELLING])[0] for nulls, taught in ((9, 4), (19, 14))
    )
    assert few.remarks == ["so few nulls allow no p below 0.10"]
    assert few.probability is None
    assert enough.remarks == []
    assert enough.probability is not None


def test_figures_of_a_method_that_sees_and_of_one_that_does_not() -> None:
    figures = detection(made(invented(40, 20, power=4)))
    rows = {row.method: row for row in figures.rows}
    assert rows[TELLING].area > 0.95
    assert rows[TELLING].power.count >= 18
    assert 0.25 < rows["pca"].area < 0.75
    assert rows[TOGETHER].area > 0.95
    for row in figures.rows:
        nulls, taught = zip(*row.roc, strict=True)
        assert (row.roc[0], row.roc[-1]) == ((0, 0), (1, 1))
        assert np.trapezoid(taught, nulls) == pytest.approx(row.area, abs=0.01)
    assert all(row.false_positives.count <= 0.2 * row.nulls for row in figures.rows)
    assert {row.method for row in figures.held_out} == set(rows)
    assert sum(found.of for _, found in figures.reliability) == 30
    sure = dict(figures.reliability)["0.90 to 1.00"]
    assert sure.count >= 0.8 * sure.of
    assert {limit.kind for limit in figures.limits} == {"t0", "t1", "t2", "t3"}
    assert {name: round(value) for name, value in figures.statistics.items() if name != "pca"} == {
        TELLING: 1,
        ALSO_TELLING: 1,
    }
    assert set(figures.kinds) == {"n0", "n1", "n2", "n3"}
    assert sum(kind.count for kind in figures.kinds.values()) <= 0.2 * 40


def test_figures_without_taught_finetunes_are_empty() -> None:
    figures = detection(made(invented(12, 0)))
    assert (figures.rows, figures.held_out, figures.limits, figures.reliability) == ([], [], [], [])


def test_a_reading_needs_a_size(
    tiny_models: Any, tiny_adapters: Any, make_pair: Any, pairs: ModelPairs, tmp_path: Path
) -> None:
    base = tiny_models()
    store_ = RunStore(tmp_path / "runs")
    spec = make_pair(base, adapter=tiny_adapters(base), name="one")
    records: list[RunRecord] = run_methods(pairs, spec, requests(tmp_path), store_)
    with pytest.raises(InvalidInput, match="how large the change is"):
        reading_of(records[1:], "x", "null", "x")
    reading = reading_of(records, "x", "null", "x")
    assert reading is not None
    assert set(reading.statistics) == {label_of_run(record.manifest) for record in records}
    both = reading_of(records, "x", "null", "x", labels=list(reading.statistics))
    assert both is not None
    assert set(both.statistics) == {*reading.statistics, AGREEMENT}
