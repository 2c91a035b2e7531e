"""How probable models find given answers. Imports numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffing_mcp.core.progress import Progress
from diffing_mcp.model_pairs.specs import Side

if TYPE_CHECKING:
    from diffing_mcp.model_pairs.answering import AnsweringPair
    from diffing_mcp.model_pairs.generation import GenerationRequest


def mean_log_probs(
    pair: AnsweringPair, texts: Sequence[tuple[GenerationRequest, str]], sides: Sequence[Side], progress: Progress
) -> dict[Side, np.ndarray]:
    """Mean log-probability (nats a token) [N] of each answer after its request under each side; NaN for one without
    tokens. What does not fit in the context is left out of the mean.
    """
    return {side: np.array([each.mean for each in pair.answer_scores(side, texts, progress)]) for side in sides}
