"""exact_topk against torch.topk."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing_mcp.preprocessing.topk import exact_topk


@settings(max_examples=150)
@given(rows=st.integers(1, 4), width=st.integers(1, 700), data=st.data(), largest=st.booleans())
def test_same_values_as_torch_with_ties(rows: int, width: int, data: st.DataObject, largest: bool) -> None:
    k = data.draw(st.integers(1, width))
    distinct = data.draw(st.integers(1, 50))
    seed = data.draw(st.integers(0, 2**31))
    # Few distinct values make many ties, at the edge too.
    values = torch.randint(-distinct, distinct, (rows, width), generator=torch.Generator().manual_seed(seed)).float()
    if data.draw(st.booleans()):
        values[0, : width // 2] = -torch.inf
    found, indices = exact_topk(values, k, largest)
    assert torch.equal(found, torch.topk(values, k, dim=1, largest=largest).values)
    assert torch.equal(values.gather(1, indices), found)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize(("width", "k"), [(49152, 100), (49152, 1), (151_936, 20), (50_257, 333)])
def test_vocabulary_sized_rows(width: int, k: int) -> None:
    values = torch.randn(3, width, generator=torch.Generator().manual_seed(k))
    for largest in (True, False):
        found, indices = exact_topk(values, k, largest)
        expected = torch.topk(values, k, dim=1, largest=largest)
        assert torch.equal(found, expected.values)
        assert torch.equal(indices, expected.indices)


def test_a_view_into_a_larger_buffer() -> None:
    buffer = torch.randn(8, 5000)
    assert torch.equal(exact_topk(buffer[2:5], 7)[0], torch.topk(buffer[2:5], 7, dim=1).values)


@pytest.mark.parametrize(("shape", "k"), [((2, 5), 0), ((2, 5), 6), ((5,), 1)])
def test_bad_input(shape: tuple[int, ...], k: int) -> None:
    with pytest.raises(ValueError):
        exact_topk(torch.zeros(shape), k)
