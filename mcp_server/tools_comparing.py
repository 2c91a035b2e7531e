"""One text, candidates and greedy answers under both models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from diffing_mcp.mcp_server.call import Call
from diffing_mcp.mcp_server.declarations import PairArguments, Reply, ToolDeclaration, WaitArguments
from diffing_mcp.mcp_server.jobs import Job
from diffing_mcp.mcp_server.pair_queries import run_query
from diffing_mcp.mcp_server.render import NOTICE, Fence, quote
from diffing_mcp.queries.schemas import CompareQuery, CompareResult, GreedyDivergence

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.pair import LoadedPair


class CompareArguments(CompareQuery, PairArguments, WaitArguments):
    """Arguments of compare_text."""


async def compare_text(call: Call, arguments: CompareArguments) -> Reply:
    tokens = 2 * sum(min(arguments.max_tokens, len(text)) for text in (arguments.text, *arguments.candidates))
    passes = 2 * (bool(arguments.text) + -(-len(arguments.candidates) // 8) + arguments.greedy_tokens)
    size = call.context.size(call.pair(arguments.pair))
    estimate = size.cost(tokens, passes, generated_tokens=2 * arguments.greedy_tokens)
    return await run_query(call, arguments, _compare, _present_comparison, estimate)


def _compare(pair: LoadedPair, arguments: CompareArguments, job: Job) -> CompareResult:
    from diffing_mcp.queries.comparing import compare

    return compare(pair, arguments, job)


def _present_comparison(call: Call, result: CompareResult) -> Reply:
    rows = zip(result.tokens, result.base_log_prob, result.finetuned_log_prob, result.kl, strict=True)
    table = [
        f"{position} {quote(token)} {base:.2f} {finetuned:.2f} {kl:.2f}"
        for position, (token, base, finetuned, kl) in enumerate(rows)
    ]
    details = []
    for detail in result.top:
        movers = [
            f"{name} " + ", ".join(f"{quote(m.token)} {m.base:.2g}->{m.finetuned:.2g}" for m in listed)
            for name, listed in (("up", detail.up), ("down", detail.down))
        ]
        details.append(f"{detail.position} {quote(detail.token)} KL {detail.kl:.2f}: {'; '.join(movers)}")
    lines, fenced = [], []
    if (end := result.end) is not None:
        lines.append(
            f"ends its turn after the text: log-probability {end.base_log_prob:.2f} under base, "
            f"{end.finetuned_log_prob:.2f} under finetuned"
        )
        table.append(
            f"{len(table)} {quote(end.token)} {end.base_log_prob:.2f} {end.finetuned_log_prob:.2f} {end.kl:.2f} "
            "(end of turn)"
        )
    if result.tokens:
        lines.append(
            (
                f"mean KL {result.mean_kl:.4g} nats, mean log-probability difference "
                f"{result.mean_log_prob_difference:+.4g} nats a token over {len(result.tokens)} tokens"
            )
            + (" (the text goes on; raise max_tokens)" if result.truncated else "")
        )
        if result.unscored is not None:
            fenced.append(f"not scored, as nothing stands before it: {quote(result.unscored)}")
        if result.spans:
            fenced += ["stretches that one model expects more (finetuned - base, nats):"]
            fenced += [
                f"{span.start}-{span.end - 1} {span.difference:+.2f} {quote(span.text)}" for span in result.spans
            ]
        fenced += [
            "largest KL, with the probabilities that moved most:",
            *details,
            "position token base finetuned kl:",
            *table,
        ]
    if result.candidates:
        fenced.append("candidates: log-probability base finetuned (a token; rank):")
        fenced += [
            (
                f"{row.base:.2f} ({row.base_per_token:.3f}; {row.base_rank}) {row.finetuned:.2f} "
                f"({row.finetuned_per_token:.3f}; {row.finetuned_rank}) {quote(row.candidate)}"
            )
            for row in result.candidates
        ]
    if result.greedy is not None:
        fenced += _greedy_lines(result.greedy)
    return Reply(result, "\n".join([*lines, NOTICE, Fence().around("\n".join(fenced))]))


def _greedy_lines(greedy: GreedyDivergence) -> list[str]:
    if not greedy.parts:
        return [f"greedy answers are the same: {quote(greedy.common)}"]
    lines = [f"greedy answers part after {greedy.after_tokens} tokens: {quote(greedy.common)}"]
    for name, text, top in (
        ("base", greedy.base, greedy.base_top),
        ("finetuned", greedy.finetuned, greedy.finetuned_top),
    ):
        likeliest = ", ".join(
            f"{quote(mover.token)} base {mover.base:.2g} finetuned {mover.finetuned:.2g}" for mover in top
        )
        lines += [f"{name} goes on: {quote(text)}", f"likeliest for {name}: {likeliest}"]
    return lines


def declarations() -> Mapping[str, ToolDeclaration]:
    """The tool of this module."""
    tool = ToolDeclaration(
        "compare_text",
        "Score a text under both models",
        (
            "Score a text under both models: log-probability of every token, KL divergence (nats), and which tokens "
            "moved. A text that was trained on is likelier under finetuned. With `prompt` it is scored as the chat "
            "answer, its end of turn too. Also ranks `candidates` and shows where greedy answers part. 1 interaction "
            "for the text, a candidate, the greedy answers."
        ),
        CompareArguments,
        CompareResult,
        compare_text,
        price="1 for the text, a candidate, the greedy answers",
    )
    return {tool.name: tool}
