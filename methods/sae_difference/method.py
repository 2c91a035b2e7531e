"""Declaration of the SAE on differences. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffing_mcp.methods.contract import Figure
from diffing_mcp.methods.dictionaries.method import DictionaryMethod, latents, training_curve
from diffing_mcp.methods.dictionaries.schema import SAEDifferenceParams, SAEDifferenceResult

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair


class SAEDifference(DictionaryMethod[SAEDifferenceParams, SAEDifferenceResult]):
    """SAE on activation differences: a sparse dictionary of what finetuning adds to the residual stream, token by
    token.
    """

    name = "sae_difference"
    title = "SAE on differences"
    papers = (
        "Bussmann et al. 2024, arXiv 2412.06410 (BatchTopK)",
        "Minder et al. 2025, arXiv 2504.02922 (latent scaling)",
    )
    for_agents = (
        "Good at behaviour that needs a trigger: a latent that fires on few tokens, and on what, is the finding. "
        "Costs minutes of training; run the cheaper methods first. Each latent has its lens words, examples, and "
        "how much of its direction base and finetuned activations have (`beta`): near 0 and 1 it is new, higher "
        "in both it is an old feature made stronger. Give RUN/latentN to `steering`, `patchscope` or "
        "`causal_effect`. Stands out when latents promote strong content words more often than their negatives "
        "do. On text far from what was taught a latent may never fire: choose the corpus accordingly. Views: "
        "`latents` (list, filter, sort), `latent` (lens, examples by quantile), `search` (by text), `examples`."
    )
    Params = SAEDifferenceParams
    Result = SAEDifferenceResult
    sources = 1
    figures = (
        Figure("latents", "Latents of the difference", latents),
        Figure("training", "Training", training_curve),
    )

    def run(
        self, pair: LoadedPair, params: SAEDifferenceParams, run: RunWriter, progress: Progress
    ) -> SAEDifferenceResult:
        from diffing_mcp.methods.sae_difference.measure import compare

        return compare(pair, params, run, progress)
