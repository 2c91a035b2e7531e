"""What a benchmark reports, how large it is, and how memory is read."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel


class Sizes(BaseModel):
    """How much work the benchmarks do. The defaults take about five minutes on two cores."""

    pair: str = "cake_bake"
    samples: int = 192
    tokens: int = 30
    repeats: int = 2
    calls: int = 200


class Measurement(BaseModel):
    """One number. `aim` is the highest value that is good enough; None where there is none."""

    name: str
    value: float
    unit: str
    aim: float | None = None
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the aim is reached; None without one."""
        return None if self.aim is None else self.value <= self.aim

    def line(self) -> str:
        """The measurement in one line of text."""
        aim = (
            ""
            if self.aim is None
            else (
                f"  (aim: at most {self.aim:g}{'' if self.unit == 'ratio' else ' ' + self.unit}; "
                f"{'met' if self.met else 'MISSED'})"
            )
        )
        value = f"{self.value:.2f}" if self.unit == "ratio" else f"{self.value:.1f} {self.unit}"
        return f"{self.name:58} {value:>10}{aim}" + (f"\n    {self.detail}" if self.detail else "")


def resident_bytes() -> int:
    """Memory of this process now, after giving back what is free."""
    import psutil

    gc.collect()
    _trim()
    return int(psutil.Process().memory_info().rss)


def _trim() -> None:
    import ctypes

    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except OSError:  # not glibc
        return


def _reset_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _high_water() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


class PeakMemory:
    """Highest resident memory while the context lasts. `peak` is in bytes: sampled every 5 ms, and exact at the end
    where Linux keeps a high-water mark.
    """

    def __enter__(self) -> PeakMemory:
        import psutil

        self._process = psutil.Process()
        self._marked = _reset_high_water()
        self._stop = threading.Event()
        self.peak = int(self._process.memory_info().rss)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._marked:
            self.peak = max(self.peak, _high_water())

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, int(self._process.memory_info().rss))


def in_fresh_process(function: Callable[..., Any], **arguments: Any) -> Any:
    """Call a module-level function in a new interpreter, whose memory nothing else has touched, and return its JSON
    value.
    """
    program = (
        "import importlib, json, sys\n"
        "module, name, arguments = json.loads(sys.argv[1])\n"
        "value = getattr(importlib.import_module(module), name)(**arguments)\n"
        "print('\\n' + json.dumps(value))\n"
    )
    call = json.dumps([function.__module__, function.__name__, arguments])
    finished = subprocess.run(
        [sys.executable, "-c", program, call], capture_output=True, text=True, env=os.environ, check=False
    )
    if finished.returncode:
        raise RuntimeError(f"{function.__name__} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1])
