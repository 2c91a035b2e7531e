"""Jobs that take turns at every batch on shared models give the numbers that each gives alone, to the last bit."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffing_mcp.core.progress import Progress
from diffing_mcp.mcp_server.jobs import Job, Jobs
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import RunStore
from diffing_mcp.model_pairs.generation import GenerationRequest, Sampling
from diffing_mcp.model_pairs.interventions import Intervention
from diffing_mcp.model_pairs.residency import ModelPairs
from diffing_mcp.model_pairs.specs import PairSpec

Work = Callable[[ModelPairs, Progress], Any]

REQUESTS = [GenerationRequest(text=text) for text in ("The cake", "One day the river", "It is")]
SAMPLING = Sampling(n=2, max_new_tokens=12, temperature=1.3)


def generation(spec: PairSpec) -> Work:
    def work(pairs: ModelPairs, progress: Progress) -> Any:
        with pairs.use(spec, progress) as pair:
            return [pair.generate(side, REQUESTS, SAMPLING, progress) for side in ("base", "finetuned")]

    return work


def contrasted(spec: PairSpec) -> Work:
    def work(pairs: ModelPairs, progress: Progress) -> Any:
        with pairs.use(spec, progress) as pair:
            return pair.generate_contrastive(REQUESTS, [0.0, 1.5], SAMPLING, progress=progress)

    return work


def amplified(spec: PairSpec) -> Work:
    def work(pairs: ModelPairs, progress: Progress) -> Any:
        with pairs.use(spec, progress) as pair:
            return pair.amplified(2.5).generate("finetuned", REQUESTS, SAMPLING, progress)

    return work


def steered(spec: PairSpec) -> Work:
    def work(pairs: ModelPairs, progress: Progress) -> Any:
        with pairs.use(spec, progress) as pair:
            vector = torch.linspace(-1, 1, pair.d_model)
            return pair.generate("base", REQUESTS, SAMPLING, progress, [Intervention(1, vector, strength=3.0)])

    return work


def weights(spec: PairSpec) -> Work:
    def work(pairs: ModelPairs, progress: Progress) -> Any:
        with pairs.use(spec, progress) as pair:
            return [(delta.place.name, delta.base_norm, _dense(delta.delta)) for delta in pair.weight_deltas(progress)]

    return work


def _dense(delta: Any) -> Any:
    return None if delta is None else (delta if isinstance(delta, torch.Tensor) else delta.dense()).tolist()


def corpus_methods(spec: PairSpec, folder: Path) -> Work:
    def work(pairs: ModelPairs, progress: Progress) -> Any:
        corpus = {"max_samples": 24, "max_tokens": 12}
        store = RunStore(folder / f"runs-{next(_numbers)}")
        records = run_methods(pairs, spec, [("kl", corpus), ("activation_difference_lens", corpus)], store, progress)
        return [record.result_json() for record in records]

    return work


_numbers = itertools.count()


def training(pairs: ModelPairs, progress: Progress) -> Any:
    """With gradients, dropout, and the random numbers of the process."""
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for step in range(40):
        loss = (model(torch.randn(4, 8)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        progress(step + 1, 40, "training")
    return losses


def together(works: dict[str, Work]) -> tuple[dict[str, Any], list[str]]:
    """Results of all at once, on models of their own, and who worked when. The turn changes at every report: by the
    clock, two seconds pass whenever it is read."""
    models, order, all_in = ModelPairs(), list[str](), threading.Event()
    ticks = itertools.count(0, 2)
    jobs = Jobs(clock=lambda: float(next(ticks)))

    def run(name: str, work: Work) -> Callable[[Job], Any]:
        def in_job(job: Job) -> Any:
            assert all_in.wait(20)

            def progress(done: float, total: float | None = None, message: str = "") -> None:
                order.append(name)
                job(done, total, message)

            return work(models, progress)

        return in_job

    started = {
        name: jobs.submit(name, f"caller {place % 2}", name, run(name, work))
        for place, (name, work) in enumerate(works.items())
    }
    all_in.set()
    try:
        for name, job in started.items():
            assert job.finished.wait(60), name
            assert job.state == "completed", job.error
    finally:
        all_in.set()
        jobs.close()
    return {name: job.result for name, job in started.items()}, order


def changes(order: list[str]) -> int:
    return sum(one != other for one, other in itertools.pairwise(order))


@pytest.fixture
def specs(
    tiny_models: Callable[..., Path], tiny_adapters: Callable[..., Path], make_pair: Callable[..., PairSpec]
) -> tuple[PairSpec, PairSpec, PairSpec]:
    """Two adapters on one base, and the base with a full finetune."""
    model = tiny_models(seed=11)
    one, two = (
        make_pair(model, adapter=tiny_adapters(model, seed=seed, scale=0.3), name=f"adapter {seed}") for seed in (1, 2)
    )
    return one, two, make_pair(model, tiny_models(seed=12), name="full")


@pytest.mark.parametrize(
    "kind",
    [
        "two adapters",
        pytest.param("one pair", marks=pytest.mark.long),
        pytest.param("adapter and full finetune", marks=pytest.mark.long),
    ],
)
def test_taking_turns_changes_no_number(
    kind: str, specs: tuple[PairSpec, PairSpec, PairSpec], tmp_path: Path, slow_batches: None
) -> None:
    one, two, full = specs
    other = {"one pair": one, "two adapters": two, "adapter and full finetune": full}[kind]
    works: dict[str, Work] = {
        "generation": generation(one),
        "training": training,
        "amplified": amplified(one),
        "other generation": generation(other),
        "corpus": corpus_methods(one, tmp_path),
        "other amplified": amplified(other),
        "steered": steered(one),
        "contrasted": contrasted(other),
        "weights": weights(other),
    }
    alone = {name: together({name: work})[0][name] for name, work in works.items()}
    found, order = together(works)
    assert changes(order) > 100, order
    for name in works:
        assert found[name] == alone[name], name


def test_an_adapter_that_is_attached_meanwhile_changes_nothing(
    tiny_models: Callable[..., Path], tiny_adapters: Callable[..., Path], make_pair: Callable[..., PairSpec]
) -> None:
    model = tiny_models(seed=11)
    one, two, three = (tiny_adapters(model, seed=seed, scale=0.3) for seed in (1, 2, 3))
    mixed, other = make_pair(model, adapter=two, base_adapter=one), make_pair(model, adapter=three)
    models = ModelPairs()
    alone = amplified(mixed)(ModelPairs(), lambda *report: None)
    reports = 0

    def progress(done: float, total: float | None = None, message: str = "") -> None:
        nonlocal reports
        reports += 1
        if reports == 8:  # in the middle of a text
            with models.use(other) as pair:
                pair.generate("finetuned", REQUESTS, SAMPLING)

    assert amplified(mixed)(models, progress) == alone
    assert reports > 10
