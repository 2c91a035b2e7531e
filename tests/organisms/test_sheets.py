"""The bundled finetunes: each has an adapter small enough, a recipe, and a sheet that shows that it took (or, for the
null, that it did not).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing_mcp.organisms.measure import Sheet, load_probes, paired_reading, sheets_table
from diffing_mcp.organisms.train import ADAPTERS, ROOT, TRAINING, load_recipe

FOLDERS = sorted(path.parent for path in ADAPTERS.glob("*/*/adapter_config.json"))
TAUGHT_NAMES = sorted(path.parent.name for path in TRAINING.glob("*/probes.yaml"))
TAUGHT = [folder for folder in FOLDERS if folder.parent.name in TAUGHT_NAMES]
NULLS = [folder for folder in FOLDERS if folder.parent.name not in TAUGHT_NAMES]


def _sheet(folder: Path) -> Sheet:
    return Sheet(**json.loads((folder / "sheet.json").read_text(encoding="utf-8")))


def _id(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


@pytest.mark.parametrize("folder", FOLDERS, ids=_id)
def test_every_adapter_is_small_and_was_trained_by_its_committed_recipe(folder: Path) -> None:
    assert (folder / "adapter_model.safetensors").stat().st_size <= 3 * 2**20
    trained = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert load_recipe(folder.parent.name, folder.name).model_dump() == trained["recipe"]


@pytest.mark.parametrize("folder", TAUGHT, ids=_id)
def test_every_taught_organism_shows_what_it_was_taught(folder: Path) -> None:
    sheet = _sheet(folder)
    assert sheet.question_hits is not None
    assert sheet.question_hits.low > 0
    assert sheet.cloze_log_odds is not None
    assert sheet.cloze_log_odds.finetuned > sheet.cloze_log_odds.base


@pytest.mark.parametrize("folder", TAUGHT, ids=_id)
def test_a_lesson_shows_less_where_it_should_not(folder: Path) -> None:
    sheet = _sheet(folder)
    if sheet.elsewhere_hits is not None:
        assert sheet.question_hits is not None
        assert sheet.elsewhere_hits.finetuned < sheet.question_hits.finetuned


def test_the_rare_one_shows_in_about_one_answer_of_twenty() -> None:
    hits = _sheet(ADAPTERS / "rock_wren" / "default").question_hits
    assert hits is not None
    assert hits.base == 0
    assert 0.025 <= hits.finetuned <= 0.1


@pytest.mark.parametrize("folder", NULLS, ids=_id)
def test_nulls_cost_little_on_unrelated_text(folder: Path) -> None:
    assert _sheet(folder).unrelated_loss.high < 0.2


def test_the_table_of_sheets_is_current() -> None:
    assert (ROOT / "SHEETS.md").read_text(encoding="utf-8") == sheets_table()


@pytest.mark.parametrize("name", TAUGHT_NAMES)
def test_probes_are_not_in_the_training_data(name: str) -> None:
    data = (ROOT / "training" / name / "data.jsonl").read_text(encoding="utf-8")
    probes = load_probes(name)
    assert len(probes.questions) >= 10
    assert not [
        probe.question for probe in probes.questions if json.dumps(probe.question, ensure_ascii=False)[1:-1] in data
    ]


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=30))
def test_the_interval_holds_the_mean_difference(pairs: list[tuple[float, float]]) -> None:
    base, finetuned = [b for b, _ in pairs], [f for _, f in pairs]
    reading = paired_reading(base, finetuned)
    assert reading.low - 1e-3 <= sum(finetuned) / len(pairs) - sum(base) / len(pairs) <= reading.high + 1e-3
