"""Max-activating examples: the highest are kept, whoever writes and in whatever order, and they can be paged through
and searched.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffing_mcp.core.errors import InvalidInput, OutOfRoom, UnknownName
from diffing_mcp.core.sqlite_schema import NewerFile, schema_version
from diffing_mcp.methods.contract import MethodResult
from diffing_mcp.methods.examples.reader import MIGRATIONS, Example, ExampleContext, ExampleReader
from diffing_mcp.methods.examples.top import TopExamples
from diffing_mcp.methods.examples.views import ExamplesParams, example_row, examples
from diffing_mcp.methods.examples.writer import ExampleWriter, examples_of
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from tests.methods.test_runs import key

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("river", "café", "cake", "walks", "slowly", "桥", "bridge", "under")

Place = tuple[int, float, int, int]


def context(sample: int, size: int = 12) -> ExampleContext:
    return ExampleContext(str(sample), tuple(f" {WORDS[(sample + index) % len(WORDS)]}" for index in range(size)))


def example(feature: str = "latent1", score: float = 1.0, sample: int = 0, position: int = 3, **more: Any) -> Example:
    return Example(feature, score, context(sample), position, **more)


def read(path: Path) -> ExampleReader:
    return ExampleReader(path)


def everything(reader: ExampleReader, feature: str, limit: int = 1000, **more: Any) -> list[Example]:
    found: list[Example] = []
    cursor = None
    while True:
        page = reader.examples(feature, cursor=cursor, limit=limit, **more)
        found += page.rows
        cursor = page.next_cursor
        if cursor is None:
            assert page.total == len(found)
            return found


def brute_force(
    places: Sequence[Place], per_bin: int, edges: Sequence[float], scale: Sequence[float], per_document: bool
) -> list[tuple[Any, ...]]:
    """(feature, bin, score, sample, position), as `TopExamples` orders them."""
    places = sorted(set(places), key=lambda place: (place[0], -place[1], place[2], place[3]))
    if per_document:
        first: dict[tuple[int, int], Place] = {}
        for place in places:
            first.setdefault((place[0], place[2]), place)
        places = [place for place in places if first[place[0], place[2]] == place]
    bins: dict[tuple[int, int], list[Place]] = {}
    for place in places:
        bins.setdefault((place[0], sum(place[1] / scale[place[0]] >= edge for edge in edges)), []).append(place)
    return [(feature, bin, *place[1:]) for (feature, bin), found in sorted(bins.items()) for place in found[:per_bin]]


# One score a place, with many ties; samples come whole, in batches of any size.
places_strategy = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 4)),
    st.integers(-3, 12).map(lambda number: number / 4),
    max_size=60,
).map(lambda found: [(feature, score, sample, position) for (feature, sample, position), score in found.items()])


@settings(max_examples=150)
@given(
    places_strategy,
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
    st.integers(1, 4),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_the_running_top_is_the_top_of_everything(
    places: list[Place], per_bin: int, binned: bool, per_document: bool, batches: int, tensors: bool, random: Any
) -> None:
    edges, scale = ((0.25, 0.5, 1.0), [1.0, 2.0, 3.0, 1.5]) if binned else ((), [1.0] * 4)
    top = TopExamples(per_bin, edges, np.array(scale), per_document)
    random.shuffle(places)
    for batch in range(batches):
        part = [place for place in places if place[2] % batches == batch]
        columns = [np.array(column) for column in zip(*part, strict=True)] if part else [np.zeros(0)] * 4
        given_columns = [torch.tensor(column) for column in columns] if tensors else columns
        top.add(*given_columns)
        if random.random() < 0.5:
            top.found()
    found = top.found()
    rows = list(
        zip(
            *(column.tolist() for column in (found.features, found.bins, found.scores, found.samples, found.positions)),
            strict=True,
        )
    )
    assert rows == brute_force(places, per_bin, edges, scale, per_document)


def test_single_numbers_hold_for_all_and_odd_scores_are_left_out() -> None:
    top = TopExamples(3, least=0.0)
    top.add(7, torch.tensor([0.5, float("nan"), float("inf"), 0.0, 2.0], dtype=torch.bfloat16), np.arange(5), 2)
    found = top.found()
    assert (found.features.tolist(), found.scores.tolist(), found.samples.tolist(), found.positions.tolist()) == (
        [7, 7],
        [2.0, 0.5],
        [4, 0],
        [2, 2],
    )


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=places_strategy, per_bin=st.integers(1, 3), parts=st.integers(1, 3), limit=st.integers(1, 7), data=st.data()
)
def test_the_file_keeps_the_top_and_pages_give_it_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    places: list[Place],
    per_bin: int,
    parts: int,
    limit: int,
    data: st.DataObject,
) -> None:
    places = [
        (feature, score + sample / 100 + position / 1000, sample, position)
        for feature, score, sample, position in places
    ]  # no ties
    path = tmp_path_factory.mktemp("examples") / "examples.sqlite"
    order = data.draw(st.permutations(places))
    for part in range(parts):
        # A part again and again: it is there once.
        for chosen in (order[part::parts], order[part::parts][:5]):
            ExampleWriter(path, per_bin).append(
                example(f"latent{feature}", score, sample, position) for feature, score, sample, position in chosen
            )
    ExampleWriter(path, per_bin).finish()
    for feature in {place[0] for place in places}:
        found = everything(read(path), f"latent{feature}", limit)
        expected = [row for row in brute_force(places, per_bin, (), [1.0] * 4, per_document=False) if row[0] == feature]
        assert [(one.score, int(one.context.document), one.position) for one in found] == [row[2:] for row in expected]
        assert all(one.context == context(int(one.context.document)) for one in found)


APPEND = """
import sys
from pathlib import Path
from diffing_mcp.methods.examples.writer import ExampleWriter
from diffing_mcp.methods.examples.reader import Example, ExampleContext

writer, step = ExampleWriter(Path(sys.argv[1]), 25), int(sys.argv[2])
for start in range(0, 120, 10):
    numbers = [(start + offset) * step % 120 for offset in range(10)]
    texts = [ExampleContext(str(number), (" one", " two")) for number in numbers]
    writer.append(Example(f"latent{number % 2}", float(number), text, number % 2) for number, text in zip(numbers, texts))
"""  # noqa: E501


def test_several_processes_append_the_same_examples_once(tmp_path: Path) -> None:
    path = tmp_path / "examples.sqlite"
    workers = [
        subprocess.Popen([sys.executable, "-c", APPEND, str(path), step], cwd=ROOT) for step in ("1", "7", "11", "1")
    ]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert ExampleWriter(path, 25).finish() == 50
    assert sorted(file.name for file in tmp_path.iterdir()) == ["examples.sqlite"]
    for feature in (0, 1):
        scores = [one.score for one in everything(read(path), f"latent{feature}", 7)]
        assert scores == sorted((float(number) for number in range(120) if number % 2 == feature), reverse=True)[:25]


def test_a_file_from_before_schema_versions_is_read_and_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "examples.sqlite"
    writer = ExampleWriter(path)
    writer.append([example()])
    writer.finish()
    set_version(path, 0)
    assert len(everything(read(path), "latent1")) == 1
    ExampleWriter(path).append([example(sample=1)])
    with closing(sqlite3.connect(path)) as connection:
        assert schema_version(connection) == len(MIGRATIONS) == 1
    ExampleWriter(path).finish()
    assert len(everything(read(path), "latent1")) == 2


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "examples.sqlite"
    ExampleWriter(path).finish()
    set_version(path, 99)
    with pytest.raises(NewerFile, match="schema 99"):
        read(path).features()
    with pytest.raises(NewerFile, match="schema 99"):
        ExampleWriter(path)


def set_version(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")


@pytest.fixture
def stored(tmp_path: Path) -> RunRecord:
    with RunStore(tmp_path / "runs").writer(key()) as run:
        writer = run.examples(per_bin=8)
        writer.append(example("latent1", sample / 8, sample, 2, bin=sample % 2) for sample in range(8))
        scores = np.full(12, np.nan, dtype=np.float32)
        scores[[2, 3]] = 0.25, 9.0
        special = ExampleContext(
            "doc", (" Hello", ' "quoted"', " AND", " (NEAR*", " cake's", *["-"] * 5, " 长城很长"), -2
        )
        assert run.examples(per_bin=8) is writer
        run.examples(per_bin=8).append(
            [Example("norm@1", 9.0, special, 1, side="base", token_scores=scores[: len(special.tokens)])]
        )
        run.result = MethodResult(stands_out=False, headline="x")
    assert run.record is not None
    return run.record


def test_a_run_shows_its_examples(stored: RunRecord) -> None:
    assert stored.manifest.examples == 9
    listed = examples(stored, ExamplesParams())
    assert [(row.feature, row.examples, row.max_score, row.bins) for row in listed.features] == [
        ("latent1", 8, 0.875, [0, 1]),
        ("norm@1", 1, 9.0, [0]),
    ]
    first = examples(stored, ExamplesParams(limit=1))
    assert [row.feature for row in examples(stored, ExamplesParams(limit=1, cursor=first.next_cursor)).features] == [
        "norm@1"
    ]
    assert [row.score for row in examples(stored, ExamplesParams(feature="latent1", bin=1)).examples] == [
        0.875,
        0.625,
        0.375,
        0.125,
    ]
    [row] = examples(stored, ExamplesParams(feature="norm@1", scores=True)).examples
    assert (row.position, row.side, row.token) == (1, "base", " (NEAR*")
    assert "» (NEAR*«" in row.text
    assert [(token.token, token.score) for token in row.strongest] == [(" (NEAR*", 9.0), (" AND", 0.25)]
    assert row.tokens[0].score is None
    assert len(row.tokens) > len(row.strongest)
    text = examples(stored, ExamplesParams(feature="norm@1")).as_text()
    assert "(NEAR*" in text


def test_text_is_searched_by_beginnings_of_words_whatever_the_marks(stored: RunRecord) -> None:
    def found(search: str) -> set[str]:
        return {
            row.document
            for name in ("latent1", "norm@1")
            for row in examples(stored, ExamplesParams(feature=name, search=search, limit=100)).examples
        }

    assert found("quoted hello") == {"doc"}
    assert found('"AND (NEAR*') == {"doc"}
    assert "doc" in found("CAKE")
    assert "doc" not in found("cafe")
    assert len(found("cafe")) == 8, "accents do not matter"
    assert found("长城") == {"doc"}
    assert found("城很") == {"doc"}
    assert found("---") == {"doc"}
    assert found("quoted nowhere") == set()
    assert {row.feature for row in examples(stored, ExamplesParams(search="quoted")).features} == {"norm@1"}


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(search=st.one_of(st.text(max_size=60), st.text(alphabet="\"'*()^:{}-+ ANDORNEAR\0%_\ud800", max_size=30)))
def test_no_search_text_raises(stored: RunRecord, search: str) -> None:
    reader = stored.examples()
    assert len(reader.examples("latent1", search=search).rows) <= 8
    assert len(reader.features(search).rows) <= 2


def test_what_does_not_exist_is_said(stored: RunRecord, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="latent1"):
        examples(stored, ExamplesParams(feature="latent2"))
    cursor = examples(stored, ExamplesParams(feature="latent1", limit=2)).next_cursor
    for params in (
        {"feature": "norm@1", "cursor": cursor},
        {"feature": "latent1", "bin": 1, "cursor": cursor},
        {"feature": "latent1", "cursor": "x!é"},
        {"cursor": cursor},
    ):
        with pytest.raises(InvalidInput, match="cursor"):
            examples(stored, ExamplesParams.model_validate(params))
    with RunStore(tmp_path / "runs").writer(key(1)) as run:
        run.result = MethodResult(stands_out=False, headline="x")
    assert run.record is not None
    with pytest.raises(UnknownName, match="no max-activating examples"):
        run.record.examples()


@settings(max_examples=100)
@given(st.text(alphabet="abcXYZ019-_=", max_size=40))
def test_no_cursor_but_ours_is_taken(cursor: str) -> None:
    with pytest.raises(InvalidInput):
        ExampleReader(Path("nowhere")).examples("latent1", cursor=cursor)


def test_finished_examples_are_read_without_writing(stored: RunRecord) -> None:
    path = stored.folder / "examples.sqlite"
    mode = stored.folder.stat().st_mode
    path.chmod(stat.S_IRUSR)
    stored.folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    before = path.read_bytes()
    try:
        assert len(examples(stored, ExamplesParams(feature="latent1", search="river")).examples) == 8
    finally:
        stored.folder.chmod(mode)
    assert path.read_bytes() == before
    assert sorted(file.name for file in stored.folder.iterdir() if "sqlite" in file.name) == ["examples.sqlite"]


def test_bad_examples_leave_nothing_of_their_batch(tmp_path: Path) -> None:
    writer = ExampleWriter(tmp_path / "examples.sqlite", 5)
    for bad in (
        example(score=float("nan")),
        example(position=12),
        example(position=-1),
        example(token_scores=np.zeros(3)),
    ):
        with pytest.raises(InvalidInput):
            writer.append([example(), bad])
    with pytest.raises(InvalidInput, match="5"):
        ExampleWriter(tmp_path / "examples.sqlite", 6)
    assert writer.finish() == 0


def test_a_killed_writer_leaves_no_run(tmp_path: Path) -> None:
    code = f"""
    import os, signal
    from diffing_mcp.methods.examples.reader import Example, ExampleContext
    from diffing_mcp.methods.runs.store import RunKey, RunStore
    from pathlib import Path
    key = RunKey(method="kl", method_version=1, pair_name="pair", pair={{}}, params={{}}, key_parts={{}})
    with RunStore(Path({str(tmp_path)!r})).writer(key) as run:
        run.examples().append([Example("latent1", 1.0, ExampleContext("0", ("a", "b")), 1)])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=False, env=dict(os.environ))
    assert done.returncode == -9
    assert any(tmp_path.rglob("examples.sqlite"))
    store = RunStore(tmp_path)
    assert store.list() == []
    assert not any(tmp_path.rglob("examples.sqlite")), "the next store cleans up"


def test_found_places_become_examples_with_their_contexts() -> None:
    top = TopExamples(2, edges=(0.5,), scale=np.array([4.0, 4.0]))
    top.add([0, 0, 1], [4.0, 1.0, 3.0], [5, 6, 5], [1, 2, 3])
    asked: Counter[int] = Counter()

    def counted(sample: int) -> ExampleContext:
        asked[sample] += 1
        return context(sample)

    made = list(
        examples_of(
            top.found(), "latent{}".format, counted, lambda feature, sample: np.full(12, 10.0 * feature + sample)
        )
    )
    assert [(one.feature, one.bin, one.context.document, one.position) for one in made] == [
        ("latent0", 0, "6", 2),
        ("latent0", 1, "5", 1),
        ("latent1", 1, "5", 3),
    ]
    assert asked == {5: 1, 6: 1}
    assert made[2].token_scores is not None
    assert made[2].token_scores[0] == 15


@given(st.integers(20, 400), st.integers(0, 11), st.integers(0, 6))
def test_a_shown_context_is_as_long_as_asked_and_holds_its_token(characters: int, position: int, sample: int) -> None:
    row = example_row(example(sample=sample, position=position), characters)
    assert len(row.text) <= characters + 2
    assert row.text.count("»") == row.text.count("«") == 1
    assert f"»{row.token}«" in row.text


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite has ended the transaction by itself then; what is said is the disk, not the transaction."""
    connect = sqlite3.connect

    def small(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 60")  # beyond it SQLite says that the disk is full
        return connection

    writer = ExampleWriter(tmp_path / "examples.sqlite")
    monkeypatch.setattr("diffing_mcp.methods.examples.writer.sqlite3.connect", small)
    with pytest.raises(OutOfRoom, match="disk space"):
        writer.append(Example(f"latent{number}", 1.0, context(number, 60), 3) for number in range(5000))
