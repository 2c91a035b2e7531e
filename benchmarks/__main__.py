"""`python -m benchmarks [--samples N] [--json FILE] [--only corpus_pass,...]`: run the benchmarks and print one line a
measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measurement import Measurement, Sizes

NAMES = (
    "corpus_pass",
    "pass_memory",
    "activation_collection",
    "pair_memory",
    "generation",
    "generation_memory",
    "dictionary_training",
    "round_trip",
    "panel_pages",
)


def main() -> None:
    """Parse the command line, run, print the table, exit with 1 when an aim was missed and `--strict` was given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Ratios of what our parts cost to the bare work below them."
    )
    defaults = Sizes()
    parser.add_argument("--pair", default=defaults.pair, help="pair reference (default: %(default)s)")
    parser.add_argument(
        "--samples", type=int, default=defaults.samples, help="documents of the timed pass (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=defaults.tokens, help="tokens a document (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=defaults.repeats, help="timed rounds; the fastest counts (default: %(default)s)"
    )
    parser.add_argument(
        "--calls", type=int, default=defaults.calls, help="calls of the round trip (default: %(default)s)"
    )
    parser.add_argument("--only", default=",".join(NAMES), help="comma-separated, of: %(default)s")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the measurements as JSON; - for stdout, where nothing else is printed then",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 when an aim is missed")
    chosen = parser.parse_args()
    names = [name.strip() for name in chosen.only.split(",")]
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    sizes = Sizes(
        pair=chosen.pair, samples=chosen.samples, tokens=chosen.tokens, repeats=chosen.repeats, calls=chosen.calls
    )

    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="diffing-bench-") as folder:
        # Stored runs of the user would turn the work into look-ups.
        os.environ["DIFFING_DATA_FOLDER"] = folder
        for name in names:
            for measurement in _benchmark(name)(sizes):
                measurements.append(measurement)
                print(measurement.line(), file=sys.stderr if chosen.json == "-" else sys.stdout, flush=True)
    if chosen.json:
        report = {
            "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
            "sizes": sizes.model_dump(),
            "measurements": [measurement.model_dump() | {"met": measurement.met} for measurement in measurements],
        }
        text = json.dumps(report, indent=2) + "\n"
        if chosen.json == "-":
            sys.stdout.write(text)
        else:
            Path(chosen.json).write_text(text, encoding="utf-8")
    if chosen.strict and any(measurement.met is False for measurement in measurements):
        sys.exit(1)


def _benchmark(name: str) -> Callable[[Sizes], list[Measurement]]:
    import importlib

    run: Callable[[Sizes], list[Measurement]] = importlib.import_module(f"benchmarks.{name}").run
    return run


if __name__ == "__main__":
    main()
