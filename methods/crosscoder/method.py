"""Declaration of the crosscoder. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffing_mcp.methods.contract import Figure
from diffing_mcp.methods.dictionaries.method import DictionaryMethod, decoder_norms, ratios, training_curve
from diffing_mcp.methods.dictionaries.schema import CrosscoderParams, CrosscoderResult

if TYPE_CHECKING:
    from diffing_mcp.core.progress import Progress
    from diffing_mcp.methods.contract import RunWriter
    from diffing_mcp.model_pairs.pair import LoadedPair


class Crosscoder(DictionaryMethod[CrosscoderParams, CrosscoderResult]):
    """Crosscoder: one sparse dictionary trained on the activations of both models at once, with a decoder for each."""

    name = "crosscoder"
    title = "Crosscoder"
    version = 2
    papers = (
        "Lindsey et al. 2024, Sparse Crosscoders (transformer-circuits.pub)",
        "Minder et al. 2025, arXiv 2504.02922 (BatchTopK, latent scaling)",
        "arXiv 2602.11729 (with `dedicated`)",
    )
    for_agents = (
        "Latent scaling then measures how much of every latent each model really has: ratios near 0 mean the "
        "finetuned model's own, near 1 shared; decoder norms alone mislead (rare latents of short trainings). Use "
        "it to find features that finetuning added, at the cost of minutes of training; run the cheaper methods "
        "first. `owner` marks latents beyond chance on held-out tokens; stands out when the finetuned model owns "
        "more than the base does. Give RUN/latentN to `steering`, `patchscope` or `causal_effect`. Read the "
        "examples: a latent is what it fires on. On text far from what was taught its latents may never fire: "
        "choose the corpus accordingly. `dedicated` sets latents apart for each model (finds more, with more "
        "false ones). Views: `latents` (list, filter, sort), `latent` (lens, examples by quantile), `search` (by "
        "text), `examples`."
    )
    Params = CrosscoderParams
    Result = CrosscoderResult
    sources = 2
    figures = (
        Figure("ratios", "Latent scaling", ratios),
        Figure("decoder_norms", "Decoder norms", decoder_norms),
        Figure("training", "Training", training_curve),
    )

    def run(self, pair: LoadedPair, params: CrosscoderParams, run: RunWriter, progress: Progress) -> CrosscoderResult:
        from diffing_mcp.methods.crosscoder.measure import compare

        return compare(pair, params, run, progress)
