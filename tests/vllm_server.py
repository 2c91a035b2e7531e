"""`vllm serve` with the embedded model, for tests of our clients against a real OpenAI-compatible server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2

from diffing_mcp.agents.server_process import free_port


@contextmanager
def vllm_server(log: Path, options: Sequence[str] = ()) -> Iterator[str]:
    """The address of a running server whose model is called `embedded`; what it says goes to `log`."""
    from diffing_mcp.organisms.embedded import embedded_model_folder

    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(embedded_model_folder())]
    command += ["--served-model-name", "embedded", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    command += ["--max-model-len", "8192", "--enforce-eager", *options]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + 600
        while True:
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, "vLLM did not start"
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                    break
            except (OSError, httpx2.TransportError):
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)
