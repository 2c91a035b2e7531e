"""`--set key=value`."""

from __future__ import annotations

import contextlib
import string
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from diffing_mcp.cli.methods import method_requests
from diffing_mcp.cli.output import parse_params
from diffing_mcp.core.errors import InvalidInput


class Example(BaseModel):
    """Parameters with every sort of field that methods have."""

    model_config = ConfigDict(extra="forbid")

    count: int = Field(10, ge=1)
    share: float = 0.5
    layers: list[int | float] = [0.5]
    words: tuple[str, ...] = ()
    column: str | None = None
    deep: bool = False


def test_values_are_yaml() -> None:
    params = parse_params(Example, ["count=3", "share=0.25", "layers=[0.25, 7]", "column=null", "deep=true"])
    assert params == Example(count=3, share=0.25, layers=[0.25, 7], column=None, deep=True)
    assert [type(layer) for layer in params.layers] == [float, int], (
        "a relative depth and an absolute layer stay what they are"
    )


def test_one_value_stands_for_a_list_of_one() -> None:
    assert parse_params(Example, ["layers=0.5"]).layers == [0.5]
    assert parse_params(Example, ["words=cake"]).words == ("cake",)


def test_dashes_are_as_good_as_underscores() -> None:
    [(name, params)] = method_requests(["kl"], ["max-samples=7"])
    assert name == "kl"
    assert params.max_samples == 7  # type: ignore[attr-defined]


def test_settings_reach_every_method_that_knows_them_and_a_prefix_reaches_one() -> None:
    requests: dict[str, Any] = dict(
        method_requests(["kl", "logit_diff_topk_occurring"], ["max_samples=9", "logit_diff_topk_occurring.top_k=5"])
    )
    assert requests["kl"].max_samples == requests["logit_diff_topk_occurring"].max_samples == 9
    assert requests["logit_diff_topk_occurring"].top_k == 5


@given(st.integers(min_value=1, max_value=10**9), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_the_way_through_text(count: int, share: float) -> None:
    params = parse_params(Example, [f"count={count}", f"share={yaml.safe_dump(share).splitlines()[0]}"])
    assert (params.count, params.share) == (count, share)


@given(st.text(alphabet=string.printable, max_size=40))
def test_any_text_is_a_value_or_a_clear_refusal(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        assert isinstance(parse_params(Example, [text]), Example)


@pytest.mark.parametrize("text", ["", "=", "=1", "count"])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="key=value"):
        parse_params(Example, [text])
