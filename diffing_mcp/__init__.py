"""Find out what a finetune did to a language model.

    import diffing_mcp as dm

    pair = dm.load_pair("cake_bake")        # or load_pair("base", "finetuned"), or two models in memory
    run = dm.kl(pair, max_samples=256)      # every method is a function; run(pair, "kl") is the same
    run.result                              # typed; run.table("tokens") and run.figure("positions") hold the details

Names in `__all__` are the promise; they are imported when they are first used, so that `import diffing_mcp` alone
imports nothing heavy. The folders beside this file are the implementation.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Threads of torch that wait for each other spin a little and then sleep. Spinning for long takes several times the time
# beside another busy process; sleeping at once takes half as much again on a quiet machine. On two cores, 200 texts
# through `kl`: 8.0 s with 2,000 turns of GNU's runtime and 16.7 s beside a busy process, 7.6 and 32.6 s with 20,000,
# 12.1 s asleep at once. Read when torch is loaded, which for the server, the command and most programs comes later.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

if TYPE_CHECKING:
    from diffing_mcp.api.asking import Answers, TextComparison, ask, compare_text
    from diffing_mcp.api.calibrating import calibrate, levels
    from diffing_mcp.api.evaluating import Evaluation, evaluate
    from diffing_mcp.api.method_functions import MethodFunction, run, run_many
    from diffing_mcp.api.overviews import facts, overview
    from diffing_mcp.api.pairs import Pair, list_pairs, load_pair
    from diffing_mcp.api.runs import Run, list_runs, open_run
    from diffing_mcp.api.suspicions import Completions, HypothesisTest, complete_slots, test_hypothesis
    from diffing_mcp.core.errors import DiffingError

    __version__: str
    activation_analysis: MethodFunction
    activation_difference_lens: MethodFunction
    activation_oracle: MethodFunction
    answer_openings: MethodFunction
    causal_effect: MethodFunction
    continuation_mining: MethodFunction
    contrastive_decoding: MethodFunction
    crosscoder: MethodFunction
    kl: MethodFunction
    logit_diff_topk_occurring: MethodFunction
    patchscope: MethodFunction
    pca: MethodFunction
    perplexity_difference: MethodFunction
    sae_difference: MethodFunction
    steering: MethodFunction
    sweep_behaviours: MethodFunction
    trigger_search: MethodFunction
    weight_amplification: MethodFunction
    weight_difference: MethodFunction

__all__ = [
    "Answers",
    "Completions",
    "DiffingError",
    "Evaluation",
    "HypothesisTest",
    "Pair",
    "Run",
    "TextComparison",
    "__version__",
    "activation_analysis",
    "activation_difference_lens",
    "activation_oracle",
    "answer_openings",
    "ask",
    "calibrate",
    "causal_effect",
    "compare_text",
    "complete_slots",
    "continuation_mining",
    "contrastive_decoding",
    "crosscoder",
    "evaluate",
    "facts",
    "kl",
    "levels",
    "list_pairs",
    "list_runs",
    "load_pair",
    "logit_diff_topk_occurring",
    "open_run",
    "overview",
    "patchscope",
    "pca",
    "perplexity_difference",
    "run",
    "run_many",
    "sae_difference",
    "steering",
    "sweep_behaviours",
    "test_hypothesis",
    "trigger_search",
    "weight_amplification",
    "weight_difference",
]

_HOMES = {
    "Answers": "api.asking",
    "Completions": "api.suspicions",
    "DiffingError": "core.errors",
    "Evaluation": "api.evaluating",
    "HypothesisTest": "api.suspicions",
    "Pair": "api.pairs",
    "Run": "api.runs",
    "TextComparison": "api.asking",
    "ask": "api.asking",
    "calibrate": "api.calibrating",
    "compare_text": "api.asking",
    "complete_slots": "api.suspicions",
    "evaluate": "api.evaluating",
    "facts": "api.overviews",
    "levels": "api.calibrating",
    "list_pairs": "api.pairs",
    "list_runs": "api.runs",
    "load_pair": "api.pairs",
    "open_run": "api.runs",
    "overview": "api.overviews",
    "run": "api.method_functions",
    "run_many": "api.method_functions",
    "test_hypothesis": "api.suspicions",
}

if not TYPE_CHECKING:  # a type checker that saw it would take every misspelt name for one of this module

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            value = importlib.import_module("diffing_mcp.core.version").version()
        elif name in _HOMES:
            value = getattr(importlib.import_module(f"diffing_mcp.{_HOMES[name]}"), name)
        elif name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        else:
            value = importlib.import_module("diffing_mcp.api.method_functions").method_function(name)
            if value is None:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
