"""One digest of what the methods that fit a budget say about a pair, and what its texts state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffing_mcp.api.pairs import Pair, as_pair, models_of_this_process
from diffing_mcp.api.parameters import check_counts, method_requests
from diffing_mcp.api.progress import ProgressChoice, watched
from diffing_mcp.api.shown import ShownResult
from diffing_mcp.core.errors import InvalidInput
from diffing_mcp.methods.facts.facts import CHEAP, FactsResult, facts_of, samples_of
from diffing_mcp.methods.overview.plan import (
    DEFAULT_BUDGET,
    TEXTS_READ,
    choose,
    pending_vector,
    run_plan,
    with_chats,
)
from diffing_mcp.methods.registry import all_methods, get_method
from diffing_mcp.methods.runs.execute import run_methods
from diffing_mcp.methods.runs.store import default_store
from diffing_mcp.model_pairs.endpoints import WeightsNeeded
from diffing_mcp.model_pairs.fingerprint import pair_identity

if TYPE_CHECKING:
    from diffing_mcp.methods.overview.digest import OverviewResult


def overview(
    pair: Pair | str,
    *,
    budget: int = DEFAULT_BUDGET,
    characters: int = 6000,
    progress: ProgressChoice = None,
    **settings: Any,
) -> ShownResult[OverviewResult]:
    """One digest of what the methods that fit a budget say about a pair, the cheap ones first: whether anything stands
    out, which words agree, and the ids of all runs for `open_run`.

    Args:
        pair: from `load_pair`, or a pair of the catalogue by name.
        budget: tokens that the models may read for it, both sides together; a generated one counts as several.
        characters: size of the digest as text.
        progress: None: a bar in a terminal or a notebook; True or False: always or never; or a callable.
        settings: parameters, such as `max_samples=256`; each goes to every method that knows it, and
            `**{"METHOD.parameter": value}` to one method alone.

    Raises:
        WeightsNeeded: a side is reachable by URL alone.
        InvalidInput: a budget that allows no method, a parameter that no method knows, or a value out of range.
        UnknownName: there is no such pair.
    """
    check_counts(budget=budget, characters=characters)
    from diffing_mcp.methods.overview.digest import digest

    offered = offered_methods()
    vectors = {f"{name}.{key}": value for name in offered for key, value in pending_vector(name).items()}
    asked = {"max_samples": TEXTS_READ} | settings | vectors
    plan = choose(with_chats(method_requests(offered, asked)), budget)
    if not plan.requests:
        cheapest = plan.left_out[0]
        raise InvalidInput(
            f"A budget of {budget} allows no method; the cheapest is {cheapest.method}, {cheapest.work}."
        )
    spec, store = as_pair(pair).spec, default_store()
    if spec.remote:
        raise WeightsNeeded
    with watched(progress, "loading") as report:
        records, left_out = run_plan(
            plan, lambda requests, part: run_methods(models_of_this_process(), spec, requests, store, part), report
        )
    return ShownResult(f"Overview of {spec.name}", digest(records, characters, left_out=left_out, pair=spec.name))


def facts(
    pair: Pair | str, about: str = "", *, limit: int = 10, progress: ProgressChoice = None
) -> ShownResult[FactsResult]:
    """What amplified and sampled texts of the finetuned model state: claims, the most particular first, with how many
    unrelated beginnings lead to each on both sides and the call that settles it. Reads the finished runs on the
    pair; without any that hold texts, contrastive decoding and perplexity difference are run first.

    Args:
        pair: from `load_pair`, or a pair of the catalogue by name.
        about: only claims with one of these words, also where the base states them as often.
        limit: claims at most.
        progress: None: a bar in a terminal or a notebook; True or False: always or never; or a callable.

    Raises:
        InvalidInput: a limit below 1.
        UnknownName: there is no such pair.
    """
    check_counts(limit=limit)
    spec, store = as_pair(pair).spec, default_store()
    identity = pair_identity(spec)
    stored = [store.get(manifest.id) for manifest in store.list() if manifest.pair == identity]
    records = [record for record in stored if samples_of(record)]
    if not records:
        requests = [(name, get_method(name).Params()) for name in CHEAP]
        with watched(progress, "loading") as report:
            records = run_methods(models_of_this_process(), spec, requests, store, report)
    return ShownResult(f"Facts of {spec.name}", facts_of(records, about, pair=spec.name, limit=limit))


def offered_methods() -> list[str]:
    """Names of the methods that an overview chooses from."""
    return [name for name, method in all_methods().items() if method.in_overview]
