"""The benchmarks run and report what they say they report; whether the aims are met is a matter of `make bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.activation_collection import peaks_beyond_pair
from benchmarks.measurement import Measurement, PeakMemory, in_fresh_process

ROOT = Path(__file__).resolve().parent.parent


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def reference(tiny_models: Callable[..., Path], tiny_adapters: Callable[..., Path]) -> str:
    model = tiny_models()
    return f"{model}::{tiny_adapters(model)}"


AIMS = {
    "corpus pass with three readers / two bare passes": 1.25,
    "amplified generation / plain generation": 1.2,
    "collecting activations / two bare passes stopped there": 1.15,
    "memory of a LoRA pair / one model": 1.05,
}


@pytest.mark.long  # many fresh processes
def test_the_models_part_reports_ratios_as_json(reference: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    sizes = ("--pair", reference, "--samples", "16", "--tokens", "12", "--repeats", "1")
    finished = bench(
        "--only", "corpus_pass,generation,pass_memory,activation_collection,pair_memory", *sizes, "--json", str(report)
    )
    assert finished.returncode == 0, finished.stderr
    content = json.loads(report.read_text(encoding="utf-8"))
    assert content["sizes"]["samples"] == 16
    by_name = {entry["name"]: entry for entry in content["measurements"]}
    assert {name: by_name[name]["aim"] for name in AIMS} == AIMS
    memory = ("pass beyond", "peak memory of collecting")
    assert all(
        entry["value"] > 0 for entry in content["measurements"] if not any(part in entry["name"] for part in memory)
    )
    assert all(name in finished.stdout for name in by_name)


@pytest.mark.long
def test_a_round_trip_is_measured_over_both_transports_and_stdout_is_json_alone() -> None:
    finished = bench("--only", "round_trip", "--calls", "5", "--json", "-")
    assert finished.returncode == 0, finished.stderr
    measurements = json.loads(finished.stdout)["measurements"]
    assert [entry["unit"] for entry in measurements] == ["ms", "ratio", "ms", "ratio"]


def test_an_unknown_benchmark_is_refused() -> None:
    finished = bench("--only", "no_such")
    assert finished.returncode == 2
    assert "corpus_pass" in finished.stderr


def test_an_aim_is_met_or_missed_or_absent() -> None:
    assert Measurement(name="a", value=1.2, unit="ratio", aim=1.25).met is True
    assert Measurement(name="a", value=1.3, unit="ratio", aim=1.25).met is False
    assert Measurement(name="a", value=1.3, unit="ratio").met is None
    assert "MISSED" in Measurement(name="a", value=1.3, unit="ratio", aim=1.25).line()


def peak_of_a_block(size: int) -> int:
    with PeakMemory() as memory:
        before = memory.peak
        block = bytearray(size)
        block[::4096] = b"x" * len(block[::4096])
        del block
    return memory.peak - before


def test_peak_memory_sees_what_is_freed_again() -> None:
    """In a process of its own: here, what earlier tests held may be freed in the meantime."""
    size = 200 * 2**20
    assert in_fresh_process(peak_of_a_block, size=size) > 0.9 * size


@pytest.mark.long
def test_memory_of_collections_is_measured_in_one_process_after_a_warm_up(reference: str) -> None:
    small, large = peaks_beyond_pair({"pair": reference, "samples": 8, "tokens": 12}, [1, 4])
    assert large["tokens"] > 2 * small["tokens"] > 0
    assert abs(large["bytes"] - small["bytes"]) < 200e6


@pytest.mark.long
def test_the_check_of_a_gpu_runs_its_parts_on_a_cpu(reference: str) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--quick", "--pair", reference]
    done = subprocess.run([*command, "--only", "methods,vllm"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "passed" in rows["kl"]
    assert "passed" in rows["steering"]
    assert "GiB" in rows["crosscoder"]
    assert "skipped" in rows["activation_oracle"]
    assert "skipped" in rows["vLLM"] or "aim 5" in rows["vLLM"]
    assert "nothing failed" in done.stdout


def test_a_part_that_fails_leaves_the_others() -> None:
    def broken() -> str:
        raise ValueError("no such kernel\nmore")

    line = gpu_check.checked("part", "cpu", broken)
    assert (line.state, line.detail) == ("FAILED", "ValueError: no such kernel")
    with pytest.raises(RuntimeError, match="not done after 0 s"):
        gpu_check.finished([sys.executable, "-c", "input()"], 0.01)
