"""A step of a dictionary's training against the matrix products that no step can do without.

Bare means two products forward (encoder, decoder) and three backward (gradients of decoder, latents and encoder),
dense, in float32, of the same shapes. Activation selection, auxiliary loss, clipping, Adam and the decoder's norms are
what a step costs on top.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.measurement import Measurement, Sizes

AIM = 1.5
D_MODEL, LATENTS, ROWS, K = 576, 1152, 1024, 32
_STEPS = 5
_ROUNDS = 5


def run(sizes: Sizes) -> list[Measurement]:
    """Time steps and bare products in turn; the fastest round of each counts."""
    kinds = (("SAE", "sae", 1), ("crosscoder", "batch_top_k", 2), ("L1 crosscoder", "l1", 2))
    return [measurement for name, kind, sources in kinds for measurement in _measured(name, kind, sources)]


def _measured(name: str, kind: Any, sources: int) -> list[Measurement]:
    import torch

    from diffing_mcp.methods.dictionaries.recipe import TrainingRecipe
    from diffing_mcp.methods.dictionaries.training import make_trainer

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, sources * D_MODEL, generator=generator)
    recipe = TrainingRecipe(
        kind=kind, latents=LATENTS, k=K, l1_weight=0.1, steps=10_000, batch_rows=ROWS, learning_rate=1e-4
    )
    trainer = make_trainer(recipe, D_MODEL, rows, "cpu")
    encoder, decoder = torch.randn(sources * D_MODEL, LATENTS), torch.randn(LATENTS, sources * D_MODEL)

    def step() -> None:
        trainer.step(2000, rows)  # late enough for the threshold to be kept as well

    def bare() -> None:
        latents = rows @ encoder
        written = latents @ decoder
        latents.T @ written
        rows.T @ (written @ decoder.T)

    step()
    bare()
    spent: dict[str, list[tuple[float, float]]] = {"step": [], "bare": []}
    for _ in range(_ROUNDS):
        spent["step"].append(_seconds(step))
        spent["bare"].append(_seconds(bare))
    wall, processor = (
        {key: min(each[clock] for each in values) for key, values in spent.items()} for clock in range(2)
    )
    detail = (
        f"{1 / wall['step']:.1f} steps/s, bare {1 / wall['bare']:.1f}; {ROWS} tokens, {LATENTS} latents, {sources} x "
        f"{D_MODEL} dimensions"
    )
    title = f"{name}: training step / bare matrix products"
    return [
        Measurement(name=title, value=wall["step"] / wall["bare"], unit="ratio", aim=AIM, detail=detail),
        # On a machine that does other work, this is the ratio to look at.
        Measurement(name=f"{title}, processor time", value=processor["step"] / processor["bare"], unit="ratio"),
    ]


def _seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds a call, on the wall and of the processor."""
    started, used = time.perf_counter(), time.process_time()
    for _ in range(_STEPS):
        work()
    return (time.perf_counter() - started) / _STEPS, (time.process_time() - used) / _STEPS
