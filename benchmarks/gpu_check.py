"""`python -m benchmarks.gpu_check [--device cuda] [--quick]`: the models' tests, every method, vLLM where it is
installed, and the benchmarks, on one device within a time limit. Prints what passed, ratios, and peak memory; exits
with 1 when a part failed.

`--device cpu --quick` runs the same code on small sizes. It has not been run on CUDA by those who wrote it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 480
"""Seconds for all of it."""
SHARES = {"tests": 0.35, "methods": 0.35, "vllm": 0.15, "benchmarks": 0.15}
"""Of the time that each part may take; what a part leaves is for the next ones."""
SKIPPED = {"activation_oracle": "needs a verbaliser of this base"}
SMALL = {"max_samples": 16, "max_tokens": 12, "max_new_tokens": 8, "steps": 20, "new_tokens": 4, "places": 8,
         "topic_positions": 50, "patchscope_positions": 8, "random_directions": 64}  # fmt: skip
"""Parameters of `--quick`, where a method has them."""
NEEDED = ("model_pairs/test_forward.py", "model_pairs/test_generation.py")
"""The tests of `--quick`; otherwise all of `model_pairs`."""


@dataclass
class Line:
    """One row of the report."""

    name: str
    state: str
    seconds: float
    peak_gib: float | None = None
    detail: str = ""

    def text(self) -> str:
        """In one line."""
        peak = "" if self.peak_gib is None else f"{self.peak_gib:6.2f} GiB"
        return f"{self.name:44} {self.state:8} {self.seconds:7.1f} s {peak:>12}  {self.detail}".rstrip()


class Peak:
    """The device's peak memory since it was made, in GiB: allocated by torch on CUDA, else resident."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()

    def gib(self) -> float:
        """What it came to."""
        if self._cuda:
            import torch

            return torch.cuda.max_memory_allocated() / 2**30
        from benchmarks.measurement import resident_bytes

        return resident_bytes() / 2**30


def checked(name: str, device: str, work: Callable[[], str]) -> Line:
    """Do one thing; what goes wrong is its row."""
    started, peak = time.monotonic(), Peak(device)
    try:
        detail, state = work(), "passed"
    except Exception as error:  # one part that fails must not take the others with it
        traceback.print_exc()
        detail, state = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160], "FAILED"
    return Line(name, state, time.monotonic() - started, peak.gib(), detail)


def environment(device: str) -> str:
    """What runs here."""
    import torch
    import transformers

    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise SystemExit("torch sees no CUDA device; --device cpu runs the same code without one.")
        found = torch.cuda.get_device_properties(0)
        shown = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        shown = f"{os.cpu_count()} CPUs"
    return f"torch {torch.__version__}, transformers {transformers.__version__}, {shown}"


def tests(quick: bool, seconds: float) -> str:
    """The tests of the models with this device as the setting."""
    processes = 1 if quick else min(4, os.cpu_count() or 1)
    chosen = [f"tests/{name}" for name in NEEDED] if quick else ["tests/model_pairs"]
    spread = ["-n", str(processes)] if processes > 1 and importlib.util.find_spec("xdist") else []
    said = finished([sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *spread, *chosen],
                    seconds)  # fmt: skip
    return said.splitlines()[-1]


def method_lines(pair_name: str, device: str, quick: bool, seconds: float) -> list[Line]:
    """Every method once on a pair, those that need a vector with that of the activation difference lens."""
    import diffing_mcp as dm
    from diffing_mcp.methods.registry import all_methods

    pair = dm.load_pair(*pair_name.split("::"))
    ends = time.monotonic() + seconds
    vector: str | None = None
    lines = []
    methods = sorted(all_methods().items(), key=lambda item: item[1].needs_vector)
    for name, method in methods:
        fields = method.Params.model_fields
        params: dict[str, Any] = {key: value for key, value in SMALL.items() if quick and key in fields}
        if method.needs_vector:
            params |= {"vector": vector} if "vector" in fields else {"vectors": [vector]}
        lacking = SKIPPED.get(name) or ("no vector" if method.needs_vector and vector is None else None)
        if lacking or time.monotonic() > ends:
            lines.append(Line(name, "skipped", 0.0, None, lacking or "the time of this part is over"))
            continue

        def work(name: str = name, params: dict[str, Any] = params) -> str:
            nonlocal vector
            run = dm.run(pair, name, params)
            if name == "activation_difference_lens":
                vector = f"{run.id}/{int(run.array('layers')[0])}:all:difference"
            return str(run.id)

        lines.append(checked(name, device, work))
    return lines


def vllm_ratio(pair_name: str, quick: bool) -> str:
    """Tokens a second of batched vLLM over one-at-a-time generation by transformers, same prompts, in one run."""
    import diffing_mcp as dm
    from diffing_mcp.core.battery import subjects
    from diffing_mcp.core.chat import ChatMessage
    from diffing_mcp.model_pairs import vllm_backend
    from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling

    questions = [question for asked in subjects().values() for question in asked][: 8 if quick else 128]
    requests = [GenerationRequest(messages=(ChatMessage(role="user", content=each),)) for each in questions]
    sampling = Sampling(n=1, temperature=1.0, max_new_tokens=16 if quick else 64)

    def rate(write: Callable[[], Sequence[Sequence[Any]]]) -> float:
        started = time.monotonic()
        rows = write()
        return sum(each.tokens for row in rows for each in row) / (time.monotonic() - started)

    with dm.load_pair(*pair_name.split("::")) as pair:
        alone = requests[: 4 if quick else 16]
        slow = rate(lambda: [row for each in alone for row in pair.generate("finetuned", [each], sampling)])
        try:
            vllm_backend.generate(pair, "finetuned", requests[:2], sampling)  # starts the engine
            fast = rate(lambda: vllm_backend.generate(pair, "finetuned", requests, sampling))
        finally:
            vllm_backend.release()
    return f"{fast:.0f} tokens/s batched, {slow:.0f} one at a time: {fast / slow:.1f} times (aim 5)"


def benchmark_lines(pair_name: str, quick: bool, seconds: float) -> list[Line]:
    """The ratios of `make bench`, those of models."""
    started = time.monotonic()
    names = "corpus_pass" if quick else "corpus_pass,generation,activation_collection"
    sizes = ["--samples", "16", "--tokens", "12", "--repeats", "1"] if quick else ["--repeats", "2"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "benchmarks", "--pair", pair_name, "--only", names, *sizes]
        try:
            finished([*command, "--json", str(report)], seconds)
            found = json.loads(report.read_text(encoding="utf-8"))["measurements"]
        except (RuntimeError, OSError) as error:
            return [Line("benchmarks", "FAILED", time.monotonic() - started, None, str(error)[-160:])]
    spent = (time.monotonic() - started) / max(1, len(found))
    return [Line(f"{each['name'][:44]}", f"{each['value']:.2f}", spent, None, each["unit"]) for each in found]


def finished(command: Sequence[str], seconds: float) -> str:
    """What a program says.

    Raises:
        RuntimeError: it failed, or took longer.
    """
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done after {seconds:.0f} s") from error
    if done.returncode:
        raise RuntimeError((done.stdout.strip() or done.stderr.strip())[-1500:].splitlines()[-1])
    return done.stdout.strip()


def check(pair_name: str, device: str, quick: bool, parts: Sequence[str] = tuple(SHARES)) -> list[Line]:
    """All parts that were asked for, each within its share of the time that is left."""
    ends = time.monotonic() + LIMIT
    left = {part: SHARES[part] for part in SHARES if part in parts}
    lines: list[Line] = []
    shown = 0
    for part in list(left):
        seconds = (ends - time.monotonic()) * left[part] / sum(left.values())
        del left[part]
        if part == "tests":
            lines.append(checked("tests of the models", device, partial(tests, quick, seconds)))
        elif part == "methods":
            lines += method_lines(pair_name, device, quick, seconds)
        elif part == "benchmarks":
            lines += benchmark_lines(pair_name, quick, seconds)
        elif importlib.util.find_spec("vllm") is None:
            lines.append(Line("vLLM", "skipped", 0.0, None, "not installed"))
        else:
            lines.append(checked("vLLM", device, partial(vllm_ratio, pair_name, quick)))
        for line in lines[shown:]:
            print(line.text(), flush=True)
        shown = len(lines)
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="small sizes, few tests")
    parser.add_argument(
        "--pair", default="cake_bake", help="a catalogue pair, or BASE::FINETUNE (default: %(default)s)"
    )
    parser.add_argument("--only", default=",".join(SHARES), help="comma-separated, of: %(default)s")
    chosen = parser.parse_args(arguments)
    os.environ["DIFFING_DEVICE"] = chosen.device
    started = time.monotonic()
    print(environment(chosen.device), flush=True)
    with tempfile.TemporaryDirectory() as data:
        os.environ["DIFFING_DATA_FOLDER"] = data
        lines = check(chosen.pair, chosen.device, chosen.quick, chosen.only.split(","))
    failed = [line.name for line in lines if line.state == "FAILED"]
    skipped = sum(line.state == "skipped" for line in lines)
    said = f"FAILED: {', '.join(failed)}" if failed else "nothing failed"
    print(f"{time.monotonic() - started:.0f} s; {said}, {skipped} skipped")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
