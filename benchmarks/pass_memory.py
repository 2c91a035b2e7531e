"""Peak memory of the corpus pass beyond the resident pair, for two token counts: it must not grow with the tokens."""

from __future__ import annotations

from benchmarks.measurement import Measurement, PeakMemory, Sizes, in_fresh_process, resident_bytes

GROWTH = 4
"""The larger pass reads this many times the tokens of the smaller."""
AIM = 1.1


def run(sizes: Sizes) -> list[Measurement]:
    """Each token count in a process of its own."""
    small = in_fresh_process(peak_beyond_pair, sizes=sizes.model_dump())
    large = in_fresh_process(
        peak_beyond_pair, sizes=sizes.model_copy(update={"samples": GROWTH * sizes.samples}).model_dump()
    )
    detail = (
        f"{small['tokens']} tokens: {small['bytes'] / 1e6:.0f} MB, {large['tokens']} tokens: "
        f"{large['bytes'] / 1e6:.0f} MB"
    )
    return [
        Measurement(
            name=f"peak memory of the pass, {GROWTH} x tokens / 1 x tokens",
            value=large["bytes"] / small["bytes"],
            unit="ratio",
            aim=AIM,
            detail=detail,
        ),
        Measurement(name="peak memory of the pass beyond the pair", value=large["bytes"] / 1e6, unit="MB"),
    ]


def peak_beyond_pair(sizes: dict[str, object]) -> dict[str, int]:
    """Bytes that a pass with the three readers adds, at its highest, to a pair that has already read a batch."""
    from benchmarks.corpus_pass import same_batches, tokenized
    from diffing_mcp.core.progress import silent
    from diffing_mcp.methods.registry import get_method
    from diffing_mcp.model_pairs.residency import ModelPairs
    from diffing_mcp.model_pairs.resolve import resolve_pair
    from diffing_mcp.preprocessing.corpus_pass import run_corpus_pass

    asked = Sizes.model_validate(sizes)
    with ModelPairs().use(resolve_pair(asked.pair), silent) as pair:
        corpus, requests = tokenized(pair, asked)
        ids, mask = same_batches(pair, corpus)[0]
        for side in ("base", "finetuned"):
            pair.forward(side, ids[:1], mask[:1])
        before = resident_bytes()
        with PeakMemory() as memory:
            accumulators = [get_method(name).accumulator(pair, params, corpus) for name, params in requests]  # type: ignore[attr-defined]
            run_corpus_pass(pair, corpus, accumulators, silent)
    return {"tokens": corpus.tokens, "bytes": memory.peak - before}
