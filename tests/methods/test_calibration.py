"""Calibrations: made on a tiny base, found again, and read beside finished runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffing_mcp.core.errors import Cancelled, InvalidInput, OutOfRoom, UnknownName
from diffing_mcp.core.settings import settings
from diffing_mcp.methods.calibration import store
from diffing_mcp.methods.calibration.calibrate import BESIDES, LEFT_OUT, calibrate, default_requests
from diffing_mcp.methods.calibration.readings import (
    TOGETHER,
    calibrated,
    level_of_run,
    level_sentence,
    reading_of,
)
from diffing_mcp.methods.calibration.schema import STATISTICS_VERSION
from diffing_mcp.methods.calibration.statistics import STATISTICS, Statistic, named
from diffing_mcp.methods.calibration.store import (
    base_of,
    calibration_named,
    find_calibration,
    save_calibration,
    stored_calibrations,
)
from diffing_mcp.methods.calibration.summary import summary
from diffing_mcp.methods.overview.plan import (
    CHATS_READ,
    TEXTS_READ,
    by_default,
    default_plan,
    label_of_run,
    labelled,
    text_of,
)
from diffing_mcp.methods.registry import get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.organisms.nulls import NullRecipe, make_null
from tests.methods.conftest import write_random_texts
from tests.methods.invented_calibrations import invented, made

pytestmark = pytest.mark.usefixtures("nothing_bundled")
NULLS = tuple(NullRecipe(name=f"noise-{n}", kind="noise", amount=0.02 * n, seed=n) for n in range(1, 10))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DIFFING_CACHE_FOLDER", str(tmp_path / "cache"))
    settings.cache_clear()
    yield tmp_path / "cache"
    settings.cache_clear()


@pytest.fixture
def few_nulls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffing_mcp.methods.calibration.calibrate.nulls_for", lambda base: list(NULLS))


def requests(tmp_path: Path) -> list[tuple[str, dict[str, Any]]]:
    corpus = {"corpus": str(write_random_texts(tmp_path, 20, seed=2, length=12)), "max_tokens": 12}
    return [("kl", corpus), ("logit_diff_topk_occurring", {**corpus, "topic_entries": "none"})]


def test_a_base_is_calibrated_bit_by_bit_and_found_by_its_weights(
    tiny_models: Any, pairs: ModelPairs, own_cache: Path, few_nulls: None, tmp_path: Path
) -> None:
    base = str(tiny_models())
    with pytest.raises(UnknownName, match="diffing calibrate"):
        calibration_named(base)
    first = calibrate(pairs, base, requests(tmp_path), most=2)
    assert [reading.name for reading in first.readings] == ["noise-1", "noise-2"]
    assert find_calibration(first.base) == first
    assert [path for path in own_cache.glob("calibrations/*/nulls/*") if path.is_dir()] == []  # no whole model stays

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
    (kl, params), logits = requests(tmp_path)
    other = calibrate(pairs, base, [(kl, dict(params, max_samples=5)), logits], most=1)
    assert len(other.readings) == 1  # other parameters do not compare


def test_a_method_that_is_added_later_is_run_alone_on_what_was_measured_before(
    tiny_models: Any, pairs: ModelPairs, own_cache: Path, few_nulls: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
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
    failing = [*more, ("answer_openings", {"corpus": str(tmp_path / "nowhere.jsonl")})]
    once = calibrate(pairs, base, failing, most=2)
    assert [len(reading.left_out) for reading in once.readings[:3]] == [1, 1, 0]
    assert [len(reading.left_out) for reading in calibrate(pairs, base, failing, most=1).readings[:3]] == [1, 1, 1]
    # By fewer methods what the others measured would be lost.
    with pytest.raises(InvalidInput, match=r"holds 3 more: answer_openings.*, logit_diff.*delete the calibration"):
        calibrate(pairs, base, asked[:1])
    # What another version measured is measured anew, and nothing else.
    name = "logit_diff_topk_occurring"
    monkeypatch.setattr(get_method(name), "version", 99)
    again = calibrate(pairs, base, failing, most=1).readings
    assert [any(label.startswith(name) for label in reading.stands_out) for reading in again] == [True, False, False]
    assert all(label in reading.stands_out for reading in again)


def test_a_statistic_that_is_added_later_is_read_from_the_kept_runs_of_its_method(
    tiny_models: Any, pairs: ModelPairs, own_cache: Path, few_nulls: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base, asked, name = str(tiny_models()), requests(tmp_path), "logit_diff_topk_occurring"
    before = calibrate(pairs, base, asked, most=2)
    label = next(label for label in before.params if label.startswith(name))
    added = Statistic("words", 1.0, lambda _, result: 1.0 + len(result.words), aspect="words")
    monkeypatch.setitem(STATISTICS, name, (*STATISTICS[name], added))
    kept = {path.name for path in own_cache.glob("calibrations/*/runs/*")}
    after = calibrate(pairs, base, asked, most=2)
    assert {path.name for path in own_cache.glob("calibrations/*/runs/*")} == kept  # nothing was computed again
    for old, new in zip(before.readings, after.readings, strict=True):
        assert new.statistics == old.statistics | {f"{label}: words": new.statistics[f"{label}: words"]}
    assert calibrate(pairs, base, asked, most=1).readings[:2] == after.readings


def test_what_was_measured_stays_when_a_run_is_made_anew(
    tiny_models: Any, pairs: ModelPairs, own_cache: Path, few_nulls: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Runs are not always kept, and texts that are sampled on another machine are others: a verdict was no longer what
    it had been because a null was read again for one more statistic.
    """
    base, asked, name = str(tiny_models()), requests(tmp_path), "logit_diff_topk_occurring"
    stored = calibrate(pairs, base, asked, most=1)
    label = next(label for label in stored.params if label.startswith(name))
    stored.readings[0].statistics[label] += 1
    save_calibration(stored)
    monkeypatch.setitem(STATISTICS, name, (*STATISTICS[name], Statistic("two", 2.0, lambda *_: 2.0, aspect="two")))
    shutil.rmtree(next(own_cache.glob("calibrations/*/runs")))
    [reading] = calibrate(pairs, base, asked, most=1).readings
    assert reading.statistics == stored.readings[0].statistics | {f"{label}: two": 2.0}


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
    calibrate(pairs, str(base), requests(tmp_path), most=3)
    [begun] = calibrated(records)  # what was begun takes nothing away
    assert begun.level_from == "another base, base"
    assert begun.remarks[-1].startswith("the calibration of this base holds 3 of the 8 nulls that a level needs")
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
    assert "of an older version: `diffing calibrate` reads it anew" in row.remarks[-1]
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
    assert [
        path for path in own_cache.glob("calibrations/*/nulls/*") if path.is_dir()
    ] == []  # no whole model stays, whatever comes of them
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


def test_finetunes_are_trained_without_idle_models_beside_them(
    tiny_models: Any, pairs: ModelPairs, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training loads the base anew: of a model that fills half of a GPU, there is no room for a second copy."""
    trained = NullRecipe(name="own-texts", kind="own_texts", amount=0.001)
    monkeypatch.setattr("diffing_mcp.methods.calibration.calibrate.nulls_for", lambda base: [NULLS[0], trained])
    beside: list[int] = []

    def make(recipe: NullRecipe, *given: Any) -> Path:
        beside.append(sum(not model.in_use for model in pairs.models.status()))
        if recipe == trained:
            raise InvalidInput("not trained here")
        return make_null(recipe, *given)

    monkeypatch.setattr("diffing_mcp.methods.calibration.calibrate.make_null", make)
    pairs.models.unload_idle()
    made_of = calibrate(pairs, str(tiny_models()), requests(tmp_path))
    assert (len(made_of.readings), list(made_of.passed_over)) == (1, [trained.made_name])
    assert beside == [0, 0]


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
    planned = [request for request in default_plan().requests if labelled(request[0], text_of(request)) not in LEFT_OUT]
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

    record: Any = None
    for method in ("logit_diff_topk_occurring", "continuation_mining", "perplexity_difference", "weight_difference"):
        assert [each.read(record, Lists()) for each in STATISTICS[method]] == [None] * len(STATISTICS[method])


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
