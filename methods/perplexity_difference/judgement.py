"""When perplexity differencing says that something stands out. See docs/decisions/null-criterion.md."""

from __future__ import annotations

from collections.abc import Sequence

from diffing_mcp.methods.perplexity_difference.rows import DistinctiveWord, Divergence

NEEDED_STRONG_WORDS = 2
"""Strong distinctive words that make a finding. One comes by chance: a thousand words are tested in every run."""
CERTAIN_SURPRISE = 5.0
"""One word suffices from here on: even among a thousand tested words, equal models reach it once in a hundred runs."""


def judge(forward: Divergence, reverse: Divergence, words: Sequence[DistinctiveWord]) -> tuple[bool, str]:
    """Whether the finetuned model's own texts show a topic, and the headline."""
    if forward.mean == 0 and reverse.mean == 0 and not forward.standard_error and not reverse.standard_error:
        return False, "Both models expect every completion exactly alike: no difference."
    strong = [word for word in words if word.strong]
    size = (
        f"{forward.mean:.2f} ± {forward.standard_error:.2f} nats a token over finetuned text, {reverse.mean:.2f} ± "
        f"{reverse.standard_error:.2f} over base text"
    )
    if len(strong) >= NEEDED_STRONG_WORDS or any(word.surprise >= CERTAIN_SURPRISE for word in strong):
        names = ", ".join(word.word for word in strong[:6])
        return True, f"The finetuned model writes of something else: {names} after unrelated beginnings ({size})."
    return (
        False,
        (
            f"Nothing stands out: no set of content words is over-represented in the finetuned model's text ({size}); "
            "the rows may still be read."
        ),
    )
