"""Scores of the logit lens: directions that move the whole vocabulary are no topic."""

from __future__ import annotations

import pytest
import torch

from diffing_mcp.methods.directions.lens import beyond_vocabulary


def test_random_directions_keep_their_scores() -> None:
    z = torch.randn(4, 50_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(beyond_vocabulary(z), z, atol=0.05)


def test_a_few_raised_tokens_keep_their_scores() -> None:
    z = torch.randn(50_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z[:20] = 9.0
    assert beyond_vocabulary(z)[:20].min() == pytest.approx(9.0, abs=0.2)


def test_an_axis_through_the_whole_vocabulary_counts_in_its_own_spread() -> None:
    generator = torch.Generator().manual_seed(2)
    frequency = torch.randn(50_000, dtype=torch.float64, generator=generator)
    z = 5.0 + 4.0 * frequency
    raised = beyond_vocabulary(z)
    assert float(z.max()) > 15
    assert float(raised.max()) < 5
    assert float(raised.mean()) == pytest.approx(0, abs=1e-6)
