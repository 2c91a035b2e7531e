"""The folder of trained dictionaries: what a crash, a full disk, a foreign file or a second process leaves there, and
deletion.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from diffing_mcp.core.errors import Cancelled, InvalidInput, OutOfRoom, UnknownName
from diffing_mcp.methods.dictionaries import preparation
from diffing_mcp.methods.dictionaries.files import load_dictionary, save_dictionary
from diffing_mcp.methods.dictionaries.models import Normalisation, SparseDictionary
from diffing_mcp.methods.dictionaries.recipe import CurvePoint, TrainingRecipe
from diffing_mcp.methods.dictionaries.stored import (
    StoredConfig,
    delete,
    dictionaries_folder,
    dictionary_lock,
    export,
    folder_of,
    folder_of_run,
    listing,
)
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunRecord, RunStore
from diffing_mcp.model_pairs.residency import ModelPairs
from tests.methods.planted_latents import plant

pytestmark = pytest.mark.usefixtures("own_data_folder")

RECIPE = TrainingRecipe(kind="sae", latents=4, k=1, steps=20, batch_rows=8, learning_rate=0.01)
TRAINING = {
    "max_samples": 24,
    "max_tokens": 16,
    "layer": 1,
    "steps": 40,
    "batch_rows": 64,
    "k": 4,
    "expansion": 1,
    "read_latents": 2,
}


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"text": f"Number {i}: the river ran past mill {i * 7} and the cat stood by."})
            for i in range(24)
        )
    )
    return str(path)


def stored(name: str, layer: int = 3) -> Path:
    """A finished SAE of 4 latents over 3 dimensions, in the folder of dictionaries."""
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(layer))
    dictionary = SparseDictionary(
        weights,
        torch.zeros(4),
        weights.T.contiguous(),
        torch.zeros(3),
        torch.zeros(4),
        "none",
        Normalisation.none(3),
        1,
    )
    curve = [CurvePoint(step=20, loss=0.5, variance_explained=0.75)]
    config = StoredConfig(recipe=RECIPE, layer=layer, activation_dim=3, steps=20, stopped_early=False, curve=curve)
    return save_dictionary(dictionary, dictionaries_folder() / name, config.model_dump(mode="json"))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def test_broken_neighbours_hide_no_dictionary_and_are_named(own_data_folder: Path) -> None:
    good = stored("a1")
    foreign, torn, unparsable, empty = stored("b1"), stored("c1"), stored("d1"), dictionaries_folder() / "e1"
    (foreign / "config.json").write_text('{"trainer": {"k": 3}}')
    cut_off(torn / "model.safetensors")
    (unparsable / "config.json").write_bytes(b"\xff{")
    empty.mkdir()
    found = listing()
    assert [each.id for each in found.dictionaries] == [each.id for each in listing().dictionaries] == ["a1"]
    problems = {each.id: each.problem for each in found.leftovers}
    assert set(problems) == {"b1", "c1", "d1", "e1"}
    assert {each.state for each in found.leftovers} == {"unreadable"}
    assert "config.json" in problems["b1"]
    assert "damaged" in problems["c1"]
    assert all(f"diffing dictionaries delete {name}" in problem for name, problem in problems.items())
    assert folder_of("a") == good
    assert (
        export(good, own_data_folder / "copy").joinpath("model.safetensors").read_bytes()
        == (good / "model.safetensors").read_bytes()
    )
    with pytest.raises(InvalidInput, match=r"c1 is unreadable.*delete c1"):
        folder_of("c")
    with pytest.raises(UnknownName, match="There are: a1"):
        folder_of("f")


def test_a_write_that_fails_leaves_the_dictionary_that_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: without its weights, which come last, a folder holds no dictionary."""
    from diffing_mcp.core import atomic_files

    folder = stored("a1", layer=1)
    before = (folder / "model.safetensors").read_bytes()
    write = atomic_files.write_synced

    def full(path: Path, content: Any) -> None:
        if "model" in path.name:
            write(path, content[:100])
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(atomic_files, "write_synced", full)
    for name in ("a1", "b1"):
        with pytest.raises(OSError, match="No space"):
            stored(name, layer=2)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [each.id for each in listing().dictionaries] == ["a1"]
    assert [each.id for each in listing().leftovers] == ["b1"]


def test_damaged_files_are_refused_in_words(tmp_path: Path) -> None:
    folder = stored("a1")
    for content in ('{"k": ', "[1]"):
        (folder / "config.json").write_text(content)
        with pytest.raises(InvalidInput, match=r"config\.json.*again"):
            load_dictionary(str(folder), 1, 3)
    (folder / "config.json").unlink()
    assert load_dictionary(str(folder), 1, 3).num_latents == 4
    cut_off(folder / "model.safetensors")
    with pytest.raises(InvalidInput, match="damaged or not complete"):
        load_dictionary(str(folder), 1, 3)


def test_deletion_takes_one_folder_by_its_whole_id(tmp_path: Path) -> None:
    for name in ("a1", "a12", "b1"):
        stored(name)
    (tmp_path / "elsewhere").mkdir()
    for wrong in ("a", "", "..", "../elsewhere", str(tmp_path / "elsewhere"), ".lock-a1", "*"):
        with pytest.raises(UnknownName, match="whole id"):
            delete(wrong)
    with dictionary_lock("a1"), pytest.raises(InvalidInput, match="being trained"):
        delete("a1")
    assert delete("a1") > 0
    cut_off(folder_of("b1") / "model.safetensors")
    delete("b1")
    assert [each.id for each in listing().dictionaries] == ["a12"]
    assert listing().leftovers == []
    assert [path.name for path in dictionaries_folder().iterdir() if not path.name.startswith(".lock-")] == ["a12"]
    assert (tmp_path / "elsewhere").is_dir()


def run(
    pairs: ModelPairs,
    spec: Any,
    store: RunStore,
    corpus: str,
    name: str = "crosscoder",
    progress: Any = None,
    **params: Any,
) -> RunRecord:
    arguments = {} if progress is None else {"progress": progress}
    return run_methods(pairs, spec, [(name, {"corpus": corpus, **TRAINING, **params})], store, **arguments)[0]


def test_two_that_train_the_same_train_once(pairs: ModelPairs, tiny_pair: Any, corpus: str, tmp_path: Path) -> None:
    """They differ in a parameter of the analysis only; the second waits for the first, and a wait can be cancelled."""
    store = RunStore(tmp_path / "runs")
    started, waited = threading.Event(), threading.Event()
    steps: dict[str, int] = {"first": 0, "second": 0}
    records: dict[str, RunRecord] = {}

    def first(done: float, total: float | None = None, message: str = "") -> None:
        if "loss" in message:
            steps["first"] += 1
            started.set()
            assert waited.wait(60)

    def second(done: float, total: float | None = None, message: str = "") -> None:
        steps["second"] += "loss" in message
        if "another process" in message:
            waited.set()

    def cancelled(done: float, total: float | None = None, message: str = "") -> None:
        if "another process" in message:
            raise Cancelled("stop")

    def train() -> None:
        records["first"] = run(pairs, tiny_pair.spec, store, corpus, progress=first)

    thread = threading.Thread(target=train)
    thread.start()
    assert started.wait(60)
    others = ModelPairs()
    with pytest.raises(Cancelled):
        run(others, tiny_pair.spec, store, corpus, progress=cancelled, top_latents=3)
    records["second"] = run(others, tiny_pair.spec, store, corpus, progress=second, top_latents=2)
    thread.join(60)
    assert (steps["first"], steps["second"]) == (TRAINING["steps"], 0)
    assert records["first"].id != records["second"].id
    [trained] = listing().dictionaries
    assert {folder_of_run(record).name for record in records.values()} == {trained.id}
    assert records["first"].result().training == records["second"].result().training  # type: ignore[attr-defined]


def test_a_damaged_dictionary_of_ours_says_how_to_train_it_again(
    pairs: ModelPairs, tiny_pair: Any, corpus: str, tmp_path: Path
) -> None:
    store = RunStore(tmp_path / "runs")
    record = run(pairs, tiny_pair.spec, store, corpus, "sae_difference")
    folder = folder_of_run(record)
    whole = (folder / "model.safetensors").read_bytes()
    cut_off(folder / "model.safetensors")
    with pytest.raises(InvalidInput, match=f"dictionaries delete {folder.name}") as refusal:
        run(pairs, tiny_pair.spec, store, corpus, "sae_difference", top_latents=2)
    assert str(tmp_path) not in refusal.value.message
    delete(folder.name)
    run(pairs, tiny_pair.spec, store, corpus, "sae_difference", top_latents=2)
    assert (folder / "model.safetensors").read_bytes() == whole


def test_no_room_is_refused_before_training(
    pairs: ModelPairs, tiny_pair: Any, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    needed = 2 * 3 * 4 * (2 * 32 * 64 + 32 + 64)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=preparation.SPARE_BYTES + needed - 1))
    with pytest.raises(OutOfRoom, match="MiB of disk"):
        run(pairs, tiny_pair.spec, RunStore(tmp_path / "runs"), corpus)
    assert listing().leftovers == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=preparation.SPARE_BYTES + needed))
    run(pairs, tiny_pair.spec, RunStore(tmp_path / "runs"), corpus)
    assert len(listing().dictionaries) == 1


def test_a_killed_training_is_listed_and_ends_in_the_same_dictionary(own_data_folder: Path) -> None:
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from diffing_mcp.methods.dictionaries.recipe import TrainingRecipe
        from diffing_mcp.methods.dictionaries.training import both_sides, fit_normalisation, train
        from tests.methods.planted_latents import plant
        data, stop = plant(2, 2000, features=40, own=3, d_model=24), 1600
        def kill(done, total=None, message=""):
            if done == 45:
                os.kill(os.getpid(), signal.SIGKILL)
        recipe = TrainingRecipe.model_validate_json(sys.argv[1])
        train(data, both_sides, recipe, fit_normalisation(data, both_sides, stop), stop, checkpoint=Path(sys.argv[2]), progress=kill)
        """  # noqa: E501
    )
    from diffing_mcp.methods.dictionaries.training import both_sides, fit_normalisation, train

    recipe = TrainingRecipe(
        kind="batch_top_k", latents=48, k=3, steps=60, batch_rows=128, learning_rate=8e-3, validate_every=20, seed=5
    )
    checkpoint = dictionaries_folder() / "abc" / "checkpoint.safetensors"
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", program, recipe.model_dump_json(), str(checkpoint)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    [left] = listing().leftovers
    assert (left.id, left.state, left.kind, left.steps) == ("abc", "unfinished", "batch_top_k", 40)
    assert left.megabytes == pytest.approx(checkpoint.stat().st_size / 1e6)
    assert "goes on from there" in left.problem
    with pytest.raises(InvalidInput, match="abc is unfinished: 40 of 60 steps"):
        folder_of("abc")
    data, stop = plant(2, 2000, features=40, own=3, d_model=24), 1600
    normalisation = fit_normalisation(data, both_sides, stop)
    assert normalisation is not None
    seen: list[float] = []
    resumed = train(
        data,
        both_sides,
        recipe,
        normalisation,
        stop,
        checkpoint=checkpoint,
        progress=lambda done, total=None, message="": seen.append(done),
    )
    whole = train(data, both_sides, recipe, normalisation, stop)
    assert min(seen) == 41
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold"):
        assert torch.equal(getattr(resumed.dictionary, name), getattr(whole.dictionary, name)), name
    delete("abc")
    assert listing().leftovers == []


def test_a_cancelled_run_goes_on_from_its_checkpoint(
    pairs: ModelPairs, tiny_pair: Any, corpus: str, tmp_path: Path
) -> None:
    """Through the entry that every surface uses: loss and validation while it trains, a cancel that leaves nothing but
    the checkpoint, then the rest.
    """
    store = RunStore(tmp_path / "runs")
    seen: list[tuple[float, str]] = []

    def watch(stop_at: float | None) -> Any:
        def progress(done: float, total: float | None = None, message: str = "") -> None:
            if "loss" in message:
                seen.append((done, message))
                if done == stop_at:
                    raise Cancelled("stop")

        return progress

    with pytest.raises(Cancelled):
        run(pairs, tiny_pair.spec, store, corpus, progress=watch(205), steps=230)
    losses = [float(message.partition("loss ")[2].split()[0].rstrip(",")) for _, message in seen]
    assert losses[-1] < losses[0]
    assert "held-out variance explained" in seen[-1][1]
    assert store.list() == []
    [left] = listing().leftovers
    assert (left.state, left.steps, left.kind) == ("unfinished", 205, "batch_top_k")
    seen.clear()
    record = run(pairs, tiny_pair.spec, store, corpus, progress=watch(None), steps=230)
    assert [done for done, _ in seen] == list(range(206, 231))
    assert record.result().training.steps == 230  # type: ignore[attr-defined]
    assert listing().leftovers == []
    assert sorted(path.name for path in folder_of_run(record).iterdir()) == ["config.json", "model.safetensors"]
