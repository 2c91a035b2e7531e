"""Candidate answers are counted in the tokens that they are scored in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffing_mcp.queries.beyond_tokens import score_candidates
from diffing_mcp.queries.schemas import CompareQuery
from tests.reference_models import reference_model
from tests.spacing_tokenizer import PIECES, spacing_tokenizer


def test_means_are_over_the_tokens_that_were_scored(
    tiny_models: Callable[..., Path], make_pair: Any, pairs: Any
) -> None:
    """Where a tokenizer puts a space before every text, a candidate that goes on inside of a line has a token less
    than it has alone.
    """
    tokenizer = spacing_tokenizer()
    folder = tiny_models(vocabulary=len(PIECES), tokenizer=False, change=lambda model: None)
    tokenizer.save_pretrained(folder)
    pieces = {"\nrun": ["\n", "run"], " run": ["▁run"]}
    context = tokenizer("rivers 4")["input_ids"]
    with pairs.use(make_pair(folder, declared_identical=True, name="spacing")) as pair:
        rows = score_candidates(pair, CompareQuery(text="rivers 4", candidates=list(pieces)))
    model = reference_model(folder)
    for row in rows:
        ids = tokenizer.convert_tokens_to_ids(pieces[row.candidate])
        with torch.inference_mode():
            logs = model(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1].log_softmax(-1)
        total = float(logs.gather(1, torch.tensor(ids)[:, None]).sum())
        assert row.tokens == len(ids)
        assert row.base == pytest.approx(total, abs=2e-3)
        assert row.base_per_token == pytest.approx(total / len(ids), abs=1e-3)
